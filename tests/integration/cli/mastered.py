"""A service under a master, whose configuration file a test rewrites as a deployment would."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from . import SERVER, ask, status, verb, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from . import Running


class Mastered:
    """``start()`` it once it is configured. Releases are told apart by their name, which they answer with."""

    def __init__(self, directory: Path, start: Callable[..., Running]) -> None:
        self.directory = directory
        self.path = directory / "m.sock"
        self.config = directory / "run.toml"
        self.settings: dict[str, Any] = {"bind": ["http=127.0.0.1:0"], "settle": "50ms", "probation": "200ms"}
        self.release("one")
        self._start = start
        self._running: Running | None = None

    def release(self, name: str, code: int = 0, **settings: Any) -> None:
        self.configure(command=[sys.executable, "-c", SERVER, name, str(code)], **settings)

    def configure(self, **settings: Any) -> None:
        self.settings.update({key.replace("_", "-"): value for key, value in settings.items()})
        # JSON's strings, numbers and lists are TOML's, too.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.settings.items() if value is not None)
        self.config.write_text(text)

    def start(self, *words: str, **options: Any) -> Mastered:
        self._running = self._start("run", "--path", str(self.path), "--config", str(self.config), *words, **options)
        self._running.says("serves")
        return self

    @property
    def running(self) -> Running:
        assert self._running is not None
        return self._running

    def verb(self, name: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return verb(name, str(self.path), *words, **options)

    def upgrade(self, *words: str) -> dict[str, Any]:
        """A good one."""
        answer = self.verb("upgrade", "--json", *words)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        facts: dict[str, Any] = json.loads(answer.stdout)["upgrade"]
        return facts

    def status(self) -> dict[str, Any]:
        return status(self.path)

    def generation(self, number: int) -> dict[str, Any]:
        return next(one for one in self.status()["generations"] if one["number"] == number)

    def serving(self) -> dict[str, Any]:
        facts = self.status()
        return next(one for one in facts["generations"] if one["number"] == facts["generation"])

    def address(self, name: str = "http") -> tuple[str, int]:
        text = next(one["address"] for one in self.status()["listeners"] if one["name"] == name)
        host, _, port = text.rpartition(":")
        return host, int(port)

    def answers(self, name: str) -> None:
        address = self.address()
        wait_for(lambda: ask(address) == name, f"an answer of {name}")
