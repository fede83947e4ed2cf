"""The test's side of ``trapped``: which edges a master came to, and at which of them it stands."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

SCRIPT = str(Path(__file__).with_name("trapped.py"))


class Traps:
    """``seen``: the edges since ``begin``. ``set`` one, and the master stops where it comes to it for the n-th time, until
    ``go``; ``reached`` waits for that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[str] = []
        self._target: tuple[str, int] = ("", 0)
        self._stopped: socket.socket | None = None
        self._reached = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> Traps:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._target = ("", 0)
        self.go()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def options(self) -> dict[str, Any]:
        """What makes a verb of the tests come to our traps."""
        return {"prefix": (SCRIPT,), "env": {"TRAP": str(self.path)}}

    def begin(self, edge: str = "", occurrence: int = 1) -> None:
        """Forgets what was seen, and sets the trap."""
        with self._lock:
            self.seen.clear()
            self._reached.clear()
            self._target = (edge, occurrence)

    def reached(self, seconds: float) -> None:
        assert self._reached.wait(seconds), f"it never came to {self._target}, only to {self.seen}"

    def go(self) -> None:
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.close()

    def _answer(self) -> None:
        while True:
            try:
                guest, _ = self._listener.accept()
            except OSError:
                return
            with guest.makefile("r") as words:
                name = words.readline().rstrip("\n")
            with self._lock:
                self.seen.append(name)
                if (name, Counter(self.seen)[name]) == self._target:
                    self._stopped = guest
                    self._reached.set()
                else:
                    guest.close()
