"""Asks a server that answers ``hello``, over eight connections that stay, each as soon as it is answered: ``wrk`` does the
same, but can't pause, and which of two is asked should change ten times a second, faster than the host's weather."""

from __future__ import annotations

import select
import socket
import time

_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_ANSWER = b"hello"
_LAST = b"connection: close"
_ONE_REQUEST = b"HTTP/1.0"
_CONNECTIONS = 8
_MOST = 65536
_PATIENCE_SECONDS = 10.0


class Asker:
    """Eight connections to a port of this machine, each of which has had an answer, and another for each that the server ends;
    a context manager that closes them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: dict[int, socket.socket] = {}
        self._poller = select.epoll()
        for _ in range(_CONNECTIONS):
            self._call()
        self.ask(0.0)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._poller.close()
        for sock in self._sockets.values():
            sock.close()

    def _call(self) -> int:
        """A new connection's descriptor."""
        sock = socket.create_connection(("127.0.0.1", self._port), _PATIENCE_SECONDS)
        sock.setblocking(False)
        self._sockets[sock.fileno()] = sock
        self._poller.register(sock, select.EPOLLIN)
        return sock.fileno()

    def ask(self, seconds: float) -> tuple[list[int], int]:
        """The nanoseconds that each request took which began within so many seconds (each connection has one at least), and
        those until the last of them was answered."""
        took: list[int] = []
        began: dict[int, int] = {}
        ending: set[int] = set()
        now, poll, sockets = time.perf_counter_ns, self._poller.poll, self._sockets
        start = now()
        end = start + int(seconds * 1e9)
        for fd, sock in list(sockets.items()):
            began[fd] = now()
            sock.send(_REQUEST)
        waiting = len(sockets)
        while waiting:
            events = poll(_PATIENCE_SECONDS)
            if not events:
                raise SystemExit(f"a request was not answered within {_PATIENCE_SECONDS:g} s")
            for fd, _ in events:
                got = sockets[fd].recv(_MOST)
                if not got:
                    raise SystemExit("the server has closed a connection and not said so")
                # wsgiref's, each of Flask's, hypercorn's thousandth of a connection
                if got.startswith(_ONE_REQUEST) or _LAST in got.lower():
                    ending.add(fd)
                if not got.endswith(_ANSWER):
                    continue  # the headers came first
                moment = now()
                took.append(moment - began[fd])
                if fd in ending:
                    ending.remove(fd)
                    sockets.pop(fd).close()
                    fd = self._call()
                if moment < end:
                    began[fd] = moment
                    sockets[fd].send(_REQUEST)
                else:
                    waiting -= 1
        return took, now() - start
