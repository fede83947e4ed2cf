"""The life of a service under s6."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ....conftest import needs
from ...cli import wait_for
from ..life import Life, Supervisor, ended

if TYPE_CHECKING:
    from collections.abc import Iterator


class S6(Supervisor):
    kind = "s6"

    @property
    def directory(self) -> Path:
        return self.folder / "scan" / "web"

    def install(self) -> None:
        (self.folder / "scan").mkdir()
        (self.folder / "scan" / "web").symlink_to(self.folder / "unit" / "web")

    def command(self) -> list[str]:
        return [needs("s6-svscan", "s6"), str(self.folder / "scan")]

    def says(self, what: str) -> str:
        return self.tell(needs("s6-svstat", "s6"), "-o", what, str(self.directory), code=None).strip()

    def pid(self) -> int:
        said = self.says("pid")
        return int(said) if said.isdigit() else 0

    def stop(self) -> None:
        self.tell("s6-svc", "-wd", "-T", "25000", "-d", str(self.directory))

    def start(self) -> None:
        self.tell("s6-svc", "-wU", "-T", "25000", "-u", str(self.directory))

    def reload(self) -> None:
        self.tell("s6-svc", "-h", str(self.directory))

    def others(self) -> list[int]:
        return supervising(b"s6-supervise\0web", self.folder)


def supervising(words: bytes, folder: Path) -> list[int]:
    """Processes of that command line that work below ``folder``."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            ours = (
                words in Path(f"/proc/{pid}/cmdline").read_bytes()
                and folder in Path(f"/proc/{pid}/cwd").resolve().parents
            )
        except OSError:
            continue
        if ours:
            found.append(pid)
    return found


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[S6]:
    with ended(S6(tmp_path)) as one:
        yield one


class TestS6(Life):
    pass


def test_it_is_up_at_once_and_ready_when_the_service_is(supervisor: S6) -> None:
    """The relay of readiness: ``s6-svwait -U`` returns when the first generation serves."""
    gate = supervisor.folder / "gate"
    os.mkfifo(gate)
    slow = (supervisor.folder / "rude.py").read_text()
    (supervisor.folder / "rude.py").write_text(f"open({str(gate)!r}).read()\n{slow}")
    supervisor.begin(wait=False)
    wait_for((supervisor.directory / "supervise" / "status").exists, "s6-supervise to look after it")
    supervisor.tell("s6-svwait", "-u", "-t", "25000", str(supervisor.directory))
    assert supervisor.says("ready") == "false"
    gate.write_text("go")
    supervisor.tell("s6-svwait", "-U", "-t", "25000", str(supervisor.directory))
    assert supervisor.says("ready") == "true"
    assert supervisor.status()["state"] == "serving"


def test_the_death_tally_has_the_one_crash(supervisor: S6) -> None:
    supervisor.begin()
    os.kill(supervisor.pid(), 9)
    supervisor.tell("s6-svwait", "-U", "-t", "25000", str(supervisor.directory))
    supervisor.serves()
    tally = supervisor.tell("s6-svdt", str(supervisor.directory)).splitlines()
    assert len(tally) == 1
    assert "SIGKILL" in tally[0] or "signal 9" in tally[0], tally
