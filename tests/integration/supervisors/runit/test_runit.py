"""The life of a service under runit."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from ....conftest import needs
from ..life import Life, Slow, Supervisor, ended
from ..s6.test_s6 import supervising

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Runit(Supervisor):
    kind = "runit"

    @property
    def directory(self) -> Path:
        return self.folder / "service" / "web"

    def install(self) -> None:
        (self.folder / "service").mkdir()
        (self.folder / "service" / "web").symlink_to(self.folder / "unit" / "web")

    def command(self) -> list[str]:
        return [needs("runsvdir", "runit"), str(self.folder / "service")]

    def control(self, *words: str, code: int | None = 0) -> str:
        return self.tell(needs("sv", "runit"), "-w", "25", *words, str(self.directory), code=code)

    def pid(self) -> int:
        found = re.match(r"run: .*\(pid (\d+)\)", self.control("status", code=None))
        return int(found[1]) if found else 0

    def stop(self) -> None:
        assert self.control("stop").startswith("ok: down:")

    def start(self) -> None:
        assert self.control("start").startswith("ok: run:")

    def reload(self) -> None:
        assert self.control("reload").startswith("ok: run:")

    def others(self) -> list[int]:
        return supervising(b"runsv\0web", self.folder)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Runit]:
    with ended(Runit(tmp_path)) as one:
        yield one


class TestRunit(Life):
    own_group = False


def test_start_says_ok_when_the_service_serves(supervisor: Runit) -> None:
    """By the ``check`` that ``unit`` writes."""
    supervisor.begin()
    supervisor.stop()
    supervisor.start()
    assert supervisor.status()["state"] == "serving"


def test_a_stop_that_runit_does_not_wait_for_drains_on(supervisor: Runit) -> None:
    supervisor.begin()
    slow = Slow(supervisor.address(), 2.0).asked(supervisor)
    pid = supervisor.pid()
    said = supervisor.tell("sv", "-w", "1", "stop", str(supervisor.directory), code=1)
    assert said.startswith("timeout:")
    assert os.path.exists(f"/proc/{pid}")
    assert slow.over()[1] == 1, slow.answer
    supervisor.stop()
    assert supervisor.family() == []
