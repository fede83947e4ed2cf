"""The master with real commands: a service under it, clients that never retry, and the verbs as an operator runs them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ..cli import DEADLINE, Running, verb, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: The worst of servers: it dies at once of SIGTERM, whatever it is doing, and takes 0.3 s for 3 % of its requests. ``RELEASE``
#: and its generation are its answer. What it does wrong is asked by ``FAULT`` in its environment.
RUDE = """
import os, random, signal, socket, sys, threading, time
fault = os.environ.get("FAULT", "")
if fault.startswith("exit"):
    sys.exit(int(fault[4:]))
if fault == "hang":
    time.sleep(1000)
listener = socket.socket(fileno=3)
listener.setblocking(True)
slow, pause = float(os.environ.get("SLOW", "0.03")), float(os.environ.get("PAUSE", "0.3"))
body = f"{os.environ.get('RELEASE', '')} {os.environ.get('FDHANDOFF_GENERATION', '?')} {os.getpid()}".encode()
head = b"HTTP/1.1 500 Broken" if fault == "500" else b"HTTP/1.1 200 OK"
answer = head + b"\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body
def serve(connection):
    with connection:
        connection.settimeout(30)
        try:
            asked = connection.recv(4096)
            if not asked:
                return
            if random.random() < slow:
                time.sleep(pause)
            if b"/sleep" in asked:
                time.sleep(float(asked.split(b"/sleep")[1].split()[0]))
            connection.sendall(answer)
        except OSError:
            pass
if os.environ.get("NOTIFY_SOCKET") and fault != "mute":
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1))
        notify.send(b"READY=1")
if fault.startswith("die"):
    def die():
        time.sleep(float(fault[3:]))
        os._exit(7)
    threading.Thread(target=die, daemon=True).start()
while True:
    connection, _ = listener.accept()
    if fault == "silent":
        keep = globals().setdefault("kept", [])
        keep.append(connection)
        continue
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""


def rude(*arguments: str) -> list[str]:
    return [sys.executable, "-c", RUDE, *arguments]


def polite(before: str = "") -> list[str]:
    """It stops accepting at SIGTERM, and ends when it has answered."""
    command = rude()
    command[2] = (
        command[2]
        .replace("daemon=True", "daemon=False")
        .replace(
            "while True:\n    connection, _ = listener.accept()",
            f"{before}\n"
            "import select\n"
            "stop = []\n"
            "signal.signal(signal.SIGTERM, lambda *_: stop.append(1))\n"
            "listener.setblocking(False)\n"
            "while not stop:\n"
            "    if not select.select([listener], [], [], 0.05)[0]: continue\n"
            "    try: connection, _ = listener.accept()\n"
            "    except BlockingIOError: continue\n"
            "    connection.setblocking(True)",
        )
    )
    return command


class Service:
    """``run`` with a command. ``options`` come before the command; the first listener is a free TCP port unless they bind one.
    ``release(**variables)`` sets the environment that the next generation finds."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        command: Sequence[str] | None = None,
        bind: str = "http=127.0.0.1:0",
        wait: bool = True,
        verb: str = "run",
        **run: Any,
    ) -> None:
        self.path = folder / "master.sock"
        self.env_file = folder / "release.env"
        self.release()
        binds = ["--bind", bind] if bind else []
        self.running = Running(
            verb, "--path", str(self.path), "--env-file", str(self.env_file), *binds, *options,
            "--", *(rude() if command is None else command), **run,
        )  # fmt: skip
        if wait:
            self.serves()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody survives it, whatever the test did."""
        family = [pid for one in self.quietly().get("generations", ()) for pid in one.get("pids", ())]
        if self.running.process.poll() is None:
            self.running.process.kill()
        for pid in family:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.running.ends()

    @property
    def pid(self) -> int:
        return self.running.pid

    def release(self, **variables: str) -> None:
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")

    # --- asking ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return ask(self.path, "status", timeout=DEADLINE)

    def quietly(self) -> dict[str, Any]:
        try:
            return ask(self.path, "status", timeout=2.0)
        except (HandoffError, OSError):
            return {}

    def serves(self) -> dict[str, Any]:
        """The status, once the first generation serves."""

        def look() -> dict[str, Any] | None:
            if self.running.process.poll() is not None:
                raise AssertionError(f"it ended with {self.running.process.returncode}: {self.running.text()}")
            facts = self.quietly()
            return facts if facts.get("state") == "serving" else None

        return dict(wait_for(look, "the first generation"))

    def address(self, position: int = 0) -> tuple[str, int]:
        host, _, port = self.status()["listeners"][position]["address"].rpartition(":")
        return host.strip("[]"), int(port)

    def generations(self) -> dict[int, dict[str, Any]]:
        """Those with a process, by number."""
        return {one["number"]: one for one in self.status()["generations"] if one["pids"]}

    def upgrade(self, **body: Any) -> dict[str, Any]:
        """By the verb, to its end. Raises what ``upgrade`` would say."""
        return dict(ask(self.path, "upgrade", {"wait": True, **body}, timeout=DEADLINE)["upgrade"])

    def command(self, *words: str) -> tuple[int, str, str]:
        """``upgrade`` by the command line: exit code, output, errors."""
        done = verb("upgrade", str(self.path), *words)
        return done.returncode, done.stdout, done.stderr

    def settled(self, number: int | None = None) -> None:
        """Until one generation alone is left, ``number`` if one is named."""
        wait_for(
            lambda: (alive := self.generations()) and len(alive) == 1 and (number is None or number in alive),
            f"generation {number} to be alone: {self.generations()}",
        )

    def stop(self) -> int:
        self.running.signal(signal.SIGTERM)
        return self.running.ends()


def request(address: Any, path: str = "/", timeout: float = DEADLINE) -> tuple[str, int, int]:
    """One request on one connection: release, generation and pid of who answered. ``OSError`` says in which way it failed."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        raw = b""
        while part := sock.recv(65536):
            raw += part
    return read_answer(raw)


def read_answer(raw: bytes) -> tuple[str, int, int]:
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not raw:
        raise ConnectionError("closed without an answer")
    if not separator or not body.strip():
        raise ConnectionError(f"an incomplete answer of {len(raw)} bytes")
    if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise ConnectionError(head.split(b"\r\n", 1)[0].decode("latin-1"))
    # A chunked body has its sizes around it.
    words = next(line for line in body.split(b"\r\n") if b" " in line).decode().rsplit(" ", 2)
    return words[0], int(words[1]), int(words[2])


def kill(pid: int) -> None:
    """SIGKILL; returns when it is dead, which is later."""
    os.kill(pid, signal.SIGKILL)

    def dead() -> bool:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                return file.read().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    wait_for(dead, f"the death of {pid}")


class Load:
    """Clients that ask without a pause, one request to a connection, and retry nothing. ``answers``: (moment of connecting,
    moment of the answer, generation) each; ``failures``: how often, by kind."""

    def __init__(self, address: Any, clients: int = 4, path: str = "/") -> None:
        self.failures: Counter[str] = Counter()
        self.answers: list[tuple[float, float, int]] = []
        self._address = address
        self._path = path
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.answers) >= 10 or self.failures, "the first answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _ask(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                _, generation, _ = request(self._address, self._path)
            except OSError as error:
                with self._lock:
                    self.failures[f"{type(error).__name__}: {error}"] += 1
            else:
                self.answers.append((began, time.monotonic(), generation))

    def generations(self, since: float = 0.0) -> Counter[int]:
        """How many connections begun since then each generation answered."""
        return Counter(generation for began, _, generation in list(self.answers) if began >= since)

    def heard(self, generation: int, more: int = 20) -> None:
        """Returns when ``generation`` answered so many times more."""
        before = self.generations()[generation]
        wait_for(lambda: self.generations()[generation] >= before + more, f"answers of generation {generation}")


def quick(*more: str) -> list[str]:
    """Options that leave nothing out and wait for nothing long."""
    return ["--settle", "0.1", "--probation", "0.3", "--grace", "10", *more]
