"""Starts actors and asks what became of them: what they said, who answers at a port, what a process holds."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fdhandoff

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0


class Actor:
    """A process that runs ``tests.support.actor``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self.said: list[dict[str, Any]] = []
        self._buffer = b""

    def _read(self, deadline: float) -> bool:
        """Whether something more was said before ``deadline``."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return False
        data = os.read(self.process.stdout.fileno(), 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.said += [json.loads(line) for line in lines]
        return bool(data)

    def hears(self, event: str, seconds: float = DEADLINE) -> dict[str, Any]:
        """Waits for ``event`` and takes it, and everything that was said before it, off the record."""
        deadline = time.monotonic() + seconds
        while True:
            for index, one in enumerate(self.said):
                if one["event"] == event:
                    del self.said[: index + 1]
                    return one
            if not self._read(deadline):
                raise AssertionError(f"pid {self.pid} never said {event!r}; it said {self.said}, {self._errors()}")

    def ends_or_says(self, event: str, seconds: float = DEADLINE) -> dict[str, Any] | None:
        """``event``, or ``None`` when the process ends without it."""
        deadline = time.monotonic() + seconds
        while True:
            for one in self.said:
                if one["event"] == event:
                    return one
            if not self._read(deadline):
                self.process.wait(max(0.1, deadline - time.monotonic()))
                return None

    def has_failed(self) -> bool:
        """Whether it ended because of an error, looking for a moment only."""
        self._read(time.monotonic() + 0.05)
        return any(one["event"] == "failed" for one in self.said)

    def _errors(self) -> str:
        code = self.process.poll()
        if code is None or self.process.stderr is None:
            return f"exit status {code}"
        return f"exit status {code}: {self.process.stderr.read().decode()}"

    def tell(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = DEADLINE) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Cast:
    """All the actors of one test, around one handoff path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "h.sock")
        self.actors: list[Actor] = []
        self.port = 0

    def start(self, *, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None, **orders: Any) -> Actor:
        orders.setdefault("path", self.path)
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.support.actor", json.dumps(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=env,
        )
        actor = Actor(process)
        self.actors.append(actor)
        return actor

    def owner(self, **orders: Any) -> Actor:
        actor = self.start(port=self.port, **orders)
        self.port = actor.hears("bound")["port"]
        self.offers(actor)
        return actor

    def taker(self, **orders: Any) -> Actor:
        return self.start(take=True, **orders)

    def offers(self, actor: Actor, seconds: float = DEADLINE) -> dict[str, Any]:
        """Waits until ``actor`` is the one who answers at the path, and offers."""
        deadline = time.monotonic() + seconds
        why: object = None
        while time.monotonic() < deadline:
            try:
                status = fdhandoff.ask(self.path, "status", timeout=5)
                if status["pid"] == actor.pid and status["state"] == "offering":
                    return status
                why = status
            except fdhandoff.HandoffError as error:
                why = error
            time.sleep(0.002)
        raise AssertionError(f"pid {actor.pid} never offered at {self.path}: {why!r}")

    def at_rest(self, actor: Actor) -> Counter[str]:
        """What ``actor``, who answers at the path, holds once it has closed the channels of all who asked before."""
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(self.path)
            guest.sendall(b"no frame at all")
            while guest.recv(4096):
                pass  # its end comes when the answer's channel is closed
        return held_by(actor.pid)

    def close(self) -> None:
        for actor in self.actors:
            if actor.process.poll() is None:
                actor.process.send_signal(signal.SIGCONT)
                actor.kill()
            actor.close()


def who_answers(port: int, timeout: float = 10.0) -> int:
    """The pid of the process that answers a fresh connection; 0 when it is refused."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as connection, connection.makefile("rb") as answer:
            return int(answer.read() or b"-1")
    except ConnectionRefusedError:
        return 0


def only_answers(port: int, times: int = 8) -> int:
    """The one pid that answers ``times`` fresh connections."""
    pids = {who_answers(port) for _ in range(times)}
    assert len(pids) == 1, f"several answer: {pids}"
    return pids.pop()


def held_by(pid: int) -> Counter[str]:
    """What the descriptors of ``pid`` are, without the numbers in it that differ by nature."""
    found: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue
        found["pidfd" if target.startswith("pidfd:") else target.partition(":[")[0]] += 1
    return found


def children_of(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()
