"""The command line with real processes: a tiny unmodified server, a load generator that counts what its clients saw, and the
verbs as an operator runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from fdhandoff import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PACKAGE = cli.__name__.rpartition(".")[0]
DEADLINE = 30.0

#: A server that knows LISTEN_FDS and nothing of handoffs. It drains on TERM and then exits with the status in argv[2].
SERVER = """
import os, selectors, signal, socket, sys, time
name, status = sys.argv[1], int(sys.argv[2])
assert os.environ["LISTEN_PID"] == str(os.getpid()), "the variables are for somebody else"
fds = range(3, 3 + int(os.environ["LISTEN_FDS"]))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
signal.signal(signal.SIGUSR1, lambda *_: print("USR1", flush=True))
time.sleep(float(os.environ.get("BOOT", "0")))
selector = selectors.DefaultSelector()
for fd in fds:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    selector.register(sock, selectors.EVENT_READ)
while not stop:
    for key, _ in selector.select(0.05):
        try:
            connection, _ = key.fileobj.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue
        connection.settimeout(10)
        connection.recv(1000)
        connection.sendall(name.encode())
        connection.close()
sys.exit(status)
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def verb(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A verb that ends by itself."""
    env = environment(**options.pop("env", {}))
    return subprocess.run(
        [sys.executable, "-m", PACKAGE, *words],
        capture_output=True, text=True, timeout=DEADLINE, env=env, check=False, **options,
    )  # fmt: skip


def wait_for(what: Callable[[], Any], why: str = "what the test waits for") -> Any:
    """The first true answer."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        answer = what()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"{why} did not come within {DEADLINE:g} s")


def free_port() -> int:
    """One that nobody had a moment ago: for who must be told one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Running:
    """A verb that stays: its lines are collected as they come."""

    def __init__(
        self, *words: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ("-m",), **options: Any
    ) -> None:
        self._start([sys.executable, *prefix, PACKAGE, *words], env=environment(**(env or {})), **options)

    def _start(self, words: Sequence[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        self.out: list[str] = []
        self.err: list[str] = []
        pairs = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pairs]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend([]) if stream is None else [lines.append(line.rstrip("\n")) for line in stream]

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self, part: str) -> str:
        """The line, of either stream, that has ``part`` in it, once it came."""

        def look() -> str:
            line = next((line for line in [*self.out, *self.err] if part in line), "")
            if not line and self.process.poll() is not None and not any(map(threading.Thread.is_alive, self._readers)):
                raise AssertionError(f"ended with {self.process.returncode} without saying {part!r}: {self.text()}")
            return line

        return str(wait_for(look, f"{part!r} (so far: {self.text()})"))

    def text(self) -> str:
        return "\n".join([*self.out, *self.err])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Its exit status."""
        status = self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return status

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.ends()


def status(path: Path) -> dict[str, Any]:
    answer = verb("status", str(path), "--json")
    facts: dict[str, Any] = json.loads(answer.stdout)
    assert facts["schema"] == 1
    return facts


def ask(address: tuple[str, int]) -> str:
    """One request on one connection: the name of the server that answered."""
    with socket.create_connection(address, timeout=DEADLINE) as sock:
        sock.sendall(b"hello")
        answer = sock.recv(100)
        if not answer:
            raise ConnectionError("closed without an answer")
        return answer.decode()


class Load:
    """Clients that ask without a pause; ``answers`` counts by server, ``failures`` must stay empty."""

    def __init__(self, address: tuple[str, int], clients: int = 6) -> None:
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._address = address
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                name = ask(self._address)
            except OSError as error:
                with self._lock:
                    self.failures.append(repr(error))
            else:
                with self._lock:
                    self.answers[name] = self.answers.get(name, 0) + 1

    def heard(self, name: str, more: int = 20) -> None:
        """Returns when ``name`` answered so many times more."""
        before = self.answers.get(name, 0)
        wait_for(lambda: self.answers.get(name, 0) >= before + more, f"answers of {name}")


@contextlib.contextmanager
def stopping(*running: Running) -> Iterator[None]:
    """Whatever happens, they end."""
    try:
        yield
    finally:
        for one in running:
            one.stop()


def server(name: str, code: int = 0) -> list[str]:
    return ["--", sys.executable, "-c", SERVER, name, str(code)]
