"""The life of a service under circus."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from ..life import Life, Supervisor, ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Circus(Supervisor):
    kind = "circus"

    timeout = 0  # another than the one that was written

    def install(self) -> None:
        unit = self.folder / "unit" / "web.ini"
        if self.timeout:
            unit.write_text(re.sub("graceful_timeout = .*", f"graceful_timeout = {self.timeout}", unit.read_text()))
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


@pytest.mark.parametrize("options", [[], ["--death-signal", "KILL"]])
def test_after_a_stop_that_took_too_long_one_service_is_there(supervisor: Circus, options: list[str]) -> None:
    """circus kills the master, and what is below it where it still finds that."""
    supervisor.timeout = 1
    supervisor.begin(*options)
    server = supervisor.serving_pid()
    os.kill(supervisor.pid(), signal.SIGSTOP)
    supervisor.stop()
    assert set(supervisor.family()) <= (set() if options else {server})
    supervisor.start()
    supervisor.serves()
    assert set(supervisor.family()) == {supervisor.pid(), supervisor.serving_pid()}
