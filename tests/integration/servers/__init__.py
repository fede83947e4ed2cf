"""Servers with their adapters, and clients that keep their connections: what they lose is counted by kind, and so is every
connection that they had to make anew."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdhandoff.successor import BLOCKED
from fdhandoff.system.processes import descendants

from ..cli import DEADLINE, status, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

    from ..cli import Running


def two_threads_sleep(server: Running, port: int) -> None:
    """Beside a server that has none of its own, once it has answered: who answers at the handoff path, and who listens to
    signals. Those of its start have ended, as sleeping threads are not free."""
    with contextlib.closing(Client(("127.0.0.1", port))) as client:
        assert client.ask() == 1
        wait_for(lambda: len(os.listdir(f"/proc/{server.pid}/task")) == 3, "the threads of its start to end")


class Crowd:
    """``count`` clients, each in a thread that runs ``_run`` until it is ``_over``. ``answers`` by generation, ``failures`` by
    kind."""

    def __init__(self, count: int) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_for(
            lambda: sum(self.answers.values()) >= max(10, len(self._threads)) or self.failures, "the first answers"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def heard(self, generation: int, more: int = 10) -> None:
        before = self.answers[generation]
        wait_for(
            lambda: self.answers[generation] >= before + more or self.failures, f"answers of generation {generation}"
        )

    def _run(self) -> None:
        raise NotImplementedError


class KeepAlive(Crowd):
    """``count`` clients with one connection each, or with one for each request (``once``); ``pause`` seconds between an answer
    and the next request. ``answers`` by generation, ``failures`` by kind, ``reconnects``: how often an announced end made one
    connect again."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        count: int = 4,
        pause: float = 0.005,
        path: str = "/",
        context: ssl.SSLContext | None = None,
        once: bool = False,
    ) -> None:
        super().__init__(count)
        self._once = once
        self.reconnects = 0
        self._address = address
        self._pause = pause
        self._path = path
        self._context = context

    def _run(self) -> None:
        client: Client | None = None
        while not self._over.is_set():
            try:
                if client is None:
                    client = Client(self._address, self._context)
                generation = client.ask(self._path)
            except OSError as error:
                with self._lock:
                    self.failures[f"{type(error).__name__}: {error}"] += 1
                if client is not None:
                    client.close()
                client = None
                continue
            with self._lock:
                self.answers[generation] += 1
                if client.ended:
                    self.reconnects += 1
            if client.ended or self._once:
                client.close()
                client = None
            time.sleep(self._pause)
        if client is not None:
            client.close()


def hang_up(address: tuple[str, int], count: int = 200) -> None:
    """Clients that reset their connections as soon as they have them, as port scanners do."""
    for _ in range(count):
        with connected(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def survives_who_hangs_up(server: Running, port: int) -> None:
    """It answers the next one, and ends as it should."""
    hang_up(("127.0.0.1", port))
    with contextlib.closing(Client(("127.0.0.1", port))) as client:
        assert client.ask() == 1
    server.signal(signal.SIGTERM)
    assert server.ends() == 0, server.text()


def connected(address: tuple[str, int] | str) -> socket.socket:
    """To a host's port, or a Unix socket's path."""
    if not isinstance(address, str):
        return socket.create_connection(address, timeout=DEADLINE)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(DEADLINE)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class Client:
    """One connection. ``ended``: the last answer announced its end."""

    def __init__(self, address: tuple[str, int] | str, context: ssl.SSLContext | None = None) -> None:
        self.sock = connected(address)
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
        self.ended = False
        self._buffer = b""

    def close(self) -> None:
        self.sock.close()

    def send(self, path: str = "/", method: str = "GET", body: bytes = b"", part: slice = slice(None)) -> None:
        """A request, or the ``part`` of its bytes."""
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.sock.sendall((head + body)[part])

    def receive(self) -> int:
        """One answer, whole: the generation that gave it."""
        head = self._until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers["content-length"])
        body = self._take(length)
        if " 200 " not in f"{lines[0]} ":
            raise ConnectionError(lines[0])
        kept = "close" if lines[0].startswith("HTTP/1.0") else "keep-alive"
        self.ended = headers.get("connection", kept).lower() == "close"
        return int(body.split()[1])

    def ask(self, path: str = "/", **request: Any) -> int:
        self.send(path, **request)
        return self.receive()

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(mark)
        return head

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        body, self._buffer = self._buffer[:count], self._buffer[count:]
        return body

    def _more(self) -> None:
        part = self.sock.recv(1 << 16)
        if not part:
            raise ConnectionError(
                "closed without an answer" if not self._buffer else "closed in the middle of an answer"
            )
        self._buffer += part


def the_first_serves(address: tuple[str, int]) -> int:
    """Generation 1 answers clients of both kinds, and nobody fails; how often one had to connect again."""
    with KeepAlive(address, count=2, once=True) as load, KeepAlive(address, count=2) as busy:
        load.heard(1)
        busy.heard(1, 100)
    assert not load.failures, load.failures
    assert not busy.failures, busy.failures
    return busy.reconnects


def replaces_itself(server: Running, port: int, path: Path, asked_by: int = signal.SIGHUP) -> None:
    """A signal has generation 1 start its successor, which loses nobody, and which takes signals as generation 1 did, as do
    the processes that it has."""
    address = ("127.0.0.1", port)
    with KeepAlive(address, count=2, once=True) as load, KeepAlive(address, count=2) as busy:
        server.signal(asked_by)
        assert server.process.wait(DEADLINE) == 0, server.text()  # its streams live on in the next one
        load.heard(2)
        busy.heard(2)
    family: list[int] = []
    try:
        pid = status(path)["pid"]
        family = [pid, *descendants(pid)]
        assert not load.failures, load.failures
        assert not busy.failures, busy.failures
        for one in family:
            words = dict(line.split(":\t") for line in Path(f"/proc/{one}/status").read_text().splitlines())
            assert int(words["SigBlk"], 16) & sum(1 << number - 1 for number in BLOCKED) == 0, words["Name"]
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not any(_lives(one) for one in family), "the successor's end")
        assert os.listdir(path.parent) == [], "nothing is left of it"
    finally:
        for one in filter(_lives, family):
            os.kill(one, signal.SIGKILL)


def gone(pids: Iterable[int]) -> bool:
    """Whether none of them is there any more, not even to be waited for."""
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def _lives(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
