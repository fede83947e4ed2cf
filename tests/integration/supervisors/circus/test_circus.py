"""The life of a service under circus."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from ..life import Life, Supervisor, ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Circus(Supervisor):
    kind = "circus"

    def install(self) -> None:
        (self.folder / "circus.ini").write_text(
            f"[circus]\nendpoint = ipc://{self.folder}/endpoint\npubsub_endpoint = ipc://{self.folder}/events\n"
            f"check_delay = 0.2\ninclude_dir = {self.folder}/unit\n"
        )

    def command(self) -> list[str]:
        return [sys.executable, "-W", "ignore", "-m", "circus.circusd", str(self.folder / "circus.ini")]

    def control(self, *words: str, code: int | None = 0) -> str:
        tool = [sys.executable, "-W", "ignore", "-m", "circus.circusctl", "--endpoint", f"ipc://{self.folder}/endpoint"]
        return self.tell(*tool, "--timeout", "30", *words, code=code)

    def pid(self) -> int:
        said = self.control("--json", "list", "web", code=None)
        try:
            pids = json.loads(said.strip().splitlines()[-1])["pids"]
        except (ValueError, LookupError):
            return 0
        return int(pids[0]) if len(pids) == 1 else 0

    def stop(self) -> None:
        self.control("stop", "web", "--waiting")

    def start(self) -> None:
        self.control("start", "web", "--waiting")

    def reload(self) -> None:
        self.control("reload", "web", "--waiting")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Circus]:
    with ended(Circus(tmp_path)) as one:
        yield one


class TestCircus(Life):
    pass
