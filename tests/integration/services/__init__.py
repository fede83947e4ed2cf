"""Tiny real servers, one for each way of life, and what drives them.

A server reads ``config.json`` in its directory when it starts, so a test deploys a release by writing it. What happens to it
goes to standard output, line by line, which its successors inherit: one pipe tells of all generations, and its end says that
all are gone. ``ask`` speaks to whoever serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATIENCE = 20.0

Address = Any


class App:
    """A server program, its releases, and every process that ran it."""

    def __init__(self, directory: Path, script: str = "puppet.py", **config: Any) -> None:
        self.directory = directory
        self.script = script
        self.path = directory / "handoff.sock"
        self.lines: list[str] = []
        self.starters: list[subprocess.Popen[str]] = []
        self._changed = threading.Condition()
        self._readers: list[threading.Thread] = []
        self.config: dict[str, Any] = {"listeners": {"main": "127.0.0.1:0"}, "probation": 0.3, "ready_timeout": 15}
        self.deploy(**config)

    def deploy(self, **config: Any) -> None:
        """The next process to start finds this."""
        self.config.update(config)
        fresh = self.directory / "config.new"
        fresh.write_text(json.dumps(self.config))
        fresh.rename(self.directory / "config.json")

    def start(self, *, wait: bool = True, **options: Any) -> subprocess.Popen[str]:
        """Starts a process as anybody would. With ``wait`` it is ready when this returns."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        environment.update(options.pop("env", {}))
        command = options.pop("command", [sys.executable, str(HERE / self.script), str(self.directory)])
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
        )
        self.starters.append(process)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._readers.append(reader)
        reader.start()
        if wait:
            self.wait_for(rf"^{process.pid} ready")
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()

    def find(self, pattern: str, start: int = 0) -> list[str]:
        return [line for line in self.lines[start:] if re.search(pattern, line)]

    def wait_for(self, pattern: str, *, count: int = 1, start: int = 0, timeout: float = PATIENCE) -> str:
        """The ``count``-th line that matches, once it is there."""
        give_up = time.monotonic() + timeout
        with self._changed:
            while len(found := self.find(pattern, start)) < count:
                left = give_up - time.monotonic()
                if not any(reader.is_alive() for reader in self._readers):
                    left = 0  # nobody will say anything any more
                assert left > 0, f"no line matches {pattern!r}:\n  " + "\n  ".join(self.lines)
                self._changed.wait(min(left, 0.5))
        return found[count - 1]

    # --- the addresses --------------------------------------------------------------------------------------

    def address(self, name: str = "main") -> Address:
        """Where the listener ``name`` is, as the newest process said."""
        word = self.wait_for(rf"^\d+ listens {name} ").split()[-1]
        word = self.find(rf"^\d+ listens {name} ")[-1].split()[-1]
        return json.loads(word)

    def ask(self, question: str = "who", *, name: str = "main", timeout: float = PATIENCE) -> str:
        with self.connect(name, timeout) as sock:
            return ask_on(sock, question)

    def connect(self, name: str = "main", timeout: float = PATIENCE) -> socket.socket:
        return connect(self.address(name), timeout)

    def pid(self) -> int:
        return int(self.ask("who").split()[1])

    def generation(self) -> int:
        return int(self.ask("who").split()[0])

    # --- the end --------------------------------------------------------------------------------------------

    def pids(self) -> set[int]:
        """Every process that ran and has not ended."""
        seen = {int(line.split()[0]) for line in self.find(r"^\d+ (started|listens|worker)")} | {
            one.pid for one in self.starters
        }
        return {pid for pid in seen if alive(pid)}

    def stop(self, timeout: float = PATIENCE) -> None:
        """TERM to whoever lives, and waits until nobody does."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.gone(timeout)

    def gone(self, timeout: float = PATIENCE) -> None:
        """Waits until every process has ended."""
        give_up = time.monotonic() + timeout
        for process in self.starters:
            process.wait(max(0.1, give_up - time.monotonic()))
        for reader in self._readers:
            reader.join(max(0.1, give_up - time.monotonic()))
            assert not reader.is_alive(), f"somebody lives: {self.pids()}\n  " + "\n  ".join(self.lines)

    def kill(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.starters:
            process.wait(5)
        for reader in self._readers:
            reader.join(5)

    def __enter__(self) -> App:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            print("\n".join(self.lines))
        self.kill()


def connect(address: Address, timeout: float = PATIENCE) -> socket.socket:
    if isinstance(address, list):
        return socket.create_connection((address[0], address[1]), timeout)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except BaseException:
        sock.close()
        raise
    return sock


def ask_on(sock: socket.socket, question: str = "who") -> str:
    """One question and its answer on a connection that may be used again."""
    sock.sendall(question.encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError(f"no answer to {question!r}, only {answer!r}")
        answer += piece
    return answer.decode().rstrip("\n")


def alive(pid: int) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def fds_of(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{fd}")))
    return sorted(found)


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def eventually(condition: Any, what: str = "", timeout: float = PATIENCE) -> Any:
    """Waits until ``condition()`` is true, and returns it: for what only can be looked at."""
    give_up = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < give_up, what or "it never happened"
        time.sleep(0.005)
    return result
