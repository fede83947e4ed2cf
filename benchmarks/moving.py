"""Moving: 10,000 established connections to another process, in microseconds for all; and how long one is not answered. The two
sides have a processor each, where there are two, in every way: left to the scheduler, now and then both are on one.

``give`` is ``fdhandoff.moving.Giver.give``: every connection described, sent with 16 bytes of state, verified and
acknowledged, in a conversation that has begun already. ``give, to sockets`` ends when the other side has made a
``socket.socket`` of each. The limit is C that does no more than send them, in messages of 64 that are acknowledged.

``unanswered`` is measured with two real servers, of which the second takes over from the first, with 10,000 idle connections:
50 clients beside them ask every 10 ms, each by one connection, and what counts is how long each had to wait for its first
answer from the second server."""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from fdhandoff.listener import Connection
from fdhandoff.moving import Giver, Reception

from . import processors
from .measure import ROOT, Row, as_installed, in_child, join, quantile, run_c, take_turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ALL = 10_000
_STATE = bytes(16)
_ASKING = 50
_EVERY = 0.01
_PATIENCE = 60.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n"


class Clients:
    """``count`` connections to us, whose clients are silent, in a process of their own."""

    def __init__(self, count: int) -> None:
        self.sockets: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            address = listener.getsockname()
            silent, self._end = os.pipe()

            def connect() -> None:
                os.close(self._end)
                listener.close()
                far = [socket.create_connection(address) for _ in range(count)]
                os.read(silent, 1)
                for sock in far:
                    sock.close()

            self._child = in_child(connect)
            os.close(silent)
            self.sockets = [listener.accept()[0] for _ in range(count)]

    def close(self) -> None:
        os.write(self._end, b".")
        os.close(self._end)
        join(self._child)
        for sock in self.sockets:
            sock.close()


class Receiver:
    """A reception in a child, which says when it has all."""

    def __init__(self, folder: str, clients: Clients, *, objects: bool) -> None:
        self._told, tell = os.pipe()
        begun, self._end = os.pipe()

        def receive() -> None:
            os.sched_setaffinity(0, processors.MEASURED)
            os.close(self._end)
            for sock in clients.sockets:
                sock.close()
            came: list[object] = []
            counted = 0

            def take(connections: Iterable[Connection]) -> None:
                nonlocal counted
                counted += len(connections)  # type: ignore[arg-type]
                came.extend(connections if objects else [connections])
                if counted == len(clients.sockets):
                    if objects:
                        os.write(tell, b"!")
                        for one in came:
                            one.target.close()  # type: ignore[attr-defined]
                    came.clear()
                    counted = 0
                    os.write(tell, b".")

            reception = Reception(folder, 2, take)
            os.write(tell, b".")
            os.read(begun, 1)
            reception.close()

        self._child = in_child(receive)
        os.close(tell)
        os.close(begun)
        assert os.read(self._told, 1) == b"."
        self._giver = Giver(os.path.join(folder, f"2-{self._child}.sock"))
        self._objects = objects
        self._connections = [Connection("connection", sock, _STATE) for sock in clients.sockets]

    def turn(self) -> float:
        """As the one in C: after one that does not count, the median of three."""
        self._once()
        return statistics.median(self._once() for _ in range(3))

    def _once(self) -> float:
        os.sched_setaffinity(0, processors.ASKING)
        before = time.perf_counter_ns()
        given = self._giver.give(self._connections)
        if self._objects:
            assert os.read(self._told, 1) == b"!"
        took = (time.perf_counter_ns() - before) / 1000
        os.sched_setaffinity(0, processors.ALL)
        assert given == len(self._connections), f"{given} were taken"
        assert os.read(self._told, 1) == b"."
        return took

    def close(self) -> None:
        self._giver.close()
        os.write(self._end, b".")
        os.close(self._end)
        join(self._child)
        os.close(self._told)


# --- how long one is not answered -----------------------------------------------------------------------------------


def _asked(sock: socket.socket) -> bytes:
    """The answer's body, which ends its line."""
    sock.sendall(_REQUEST)
    answer = b""
    while not answer.partition(b"\r\n\r\n")[2].endswith(b"\n"):
        part = sock.recv(65536)
        assert part, "a connection was closed"
        answer += part
    return answer.partition(b"\r\n\r\n")[2]


class Asking:
    """Clients that ask now and then: ``waits`` are, by connection, the milliseconds until its first answer by another server
    than the one before, counted from when it asked."""

    def __init__(self, port: int, count: int) -> None:
        self.socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        self.waits: dict[socket.socket, float] = {}
        self._who: dict[socket.socket, bytes] = {}
        for sock in self.socks:
            self._who[sock] = _asked(sock)

    def run(self) -> list[float]:
        """Until each was answered by the second server."""
        selector = selectors.DefaultSelector()
        due = {}
        asked: dict[socket.socket, float] = {}
        buffers = dict.fromkeys(self.socks, b"")
        start = time.monotonic()
        for place, sock in enumerate(self.socks):
            selector.register(sock, selectors.EVENT_READ)
            due[sock] = start + _EVERY * place / len(self.socks)
        while len(self.waits) < len(self.socks):
            now = time.monotonic()
            assert now - start < _PATIENCE, f"{len(self.waits)} of {len(self.socks)} were answered by the second server"
            for sock, moment in list(due.items()):
                if moment <= now:
                    sock.sendall(_REQUEST)
                    asked[sock] = now
                    del due[sock]
            for key, _ in selector.select(max(0.0, min(due.values(), default=now + 1) - now)):
                sock = key.fileobj  # type: ignore[assignment]
                part = sock.recv(65536)
                assert part, "a connection was closed"
                buffers[sock] += part
                _, end, body = buffers[sock].partition(b"\r\n\r\n")
                if not end or not body.endswith(b"\n"):
                    continue
                buffers[sock] = b""
                now = time.monotonic()
                if self._who[sock] != body and sock not in self.waits:
                    self.waits[sock] = (now - asked[sock]) * 1000
                due[sock] = max(now, asked[sock] + _EVERY)
        for sock in self.socks:
            sock.close()
        return list(self.waits.values())


def _unanswered(kind: str, idle: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.moving_server", kind, str(port), f"{folder}/h.sock"]

        def server() -> subprocess.Popen[str]:
            return subprocess.Popen(command, cwd=ROOT, env=as_installed(), stdout=subprocess.PIPE, text=True)

        servers = [server()]
        try:
            assert servers[0].stdout is not None
            assert servers[0].stdout.readline() == "serving\n"
            silent, end = os.pipe()
            connected, connect = os.pipe()

            def idling() -> None:
                far = []
                for _ in range(idle):
                    far.append(sock := socket.create_connection(("127.0.0.1", port)))
                    _asked(sock)
                os.write(connect, b".")
                os.read(silent, 1)

            child = in_child(idling)
            assert os.read(connected, 1) == b"."
            asking = Asking(port, _ASKING)
            servers.append(server())
            waits = asking.run()
            os.write(end, b".")
            join(child)
            for fd in (end, silent, connected, connect):
                os.close(fd)
        finally:
            for one in servers:
                one.terminate()
            for one in servers:
                one.wait(_PATIENCE)
                assert one.stdout is not None
                one.stdout.close()
        return waits


def _milliseconds(kind: str, idle: int, turns: int) -> Sequence[Row]:
    samples = [wait for _ in range(turns) for wait in _unanswered(kind, idle)]
    return [
        Row(f"unanswered, {kind}, p50", [quantile(samples, 0.5)], "ms"),
        Row(f"unanswered, {kind}, p99", [quantile(samples, 0.99)], "ms", at_most=20),
    ]


def run(turns: int) -> list[Row]:
    clients = Clients(_ALL)
    with tempfile.TemporaryDirectory() as folder:
        plain = Receiver(f"{folder}/a", clients, objects=False)
        objects = Receiver(f"{folder}/b", clients, objects=True)
        ways = {
            "bare": lambda: statistics.median(run_c("moving", 3, _ALL, 64)["bare"]),
            "give": plain.turn,
            "objects": objects.turn,
        }
        samples = take_turns(ways, turns)
        plain.close()
        objects.close()
    clients.close()
    bare = Row("C, messages of 64", samples["bare"], "us")
    rows = [
        bare,
        Row("give", samples["give"], "us", against=bare, inverse=True, at_least=0.5),
        Row("give, to sockets", samples["objects"], "us", against=bare, inverse=True),
    ]
    for kind in ("raw", "uvicorn"):
        rows += _milliseconds(kind, _ALL, max(1, turns // 3))
    return rows
