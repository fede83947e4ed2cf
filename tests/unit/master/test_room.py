"""Whether a second generation fits, and which rights a master needs: what the options and the machine say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.master import rights, room
from fdhandoff.master.options import Options, parse_limit
from fdhandoff.system import capabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc to look into")

ALWAYS = {
    capabilities.SETUID, capabilities.SETGID, capabilities.KILL, capabilities.SYS_PTRACE, capabilities.DAC_READ_SEARCH,
    capabilities.NET_BIND_SERVICE,
}  # fmt: skip


class Serving:
    alive = True
    pids: Sequence[int] = (os.getpid(),)

    def __str__(self) -> str:
        return "generation 3"


def master(run: Any) -> Any:
    return SimpleNamespace(current=run)


def test_a_generation_that_is_bigger_than_what_is_left_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_left", lambda: (1 << 20, "the control group /app"))
    text = room.memory_shortage(master(Serving()))
    assert text.startswith("generation 3 uses ")
    assert "MiB and the control group /app has 1 MiB left: a second one may not fit beside it" in text


@pytest.mark.parametrize("left", [1 << 50, -1])
def test_one_that_fits_or_of_which_nothing_is_known_is_not(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    monkeypatch.setattr(room, "memory_left", lambda: (left, "the machine"))
    assert room.memory_shortage(master(Serving())) == ""


def test_nobody_serves_so_nothing_is_doubled() -> None:
    assert room.memory_shortage(master(None)) == ""


def needed(**values: Any) -> set[int]:
    return rights.needed(Options(["true"], **values)) - ALWAYS


def test_a_master_keeps_what_its_options_make_it_need(tmp_path: Path) -> None:
    assert needed(binds=["127.0.0.1:80"], path=str(tmp_path / "sock")) == set()
    assert needed(chroot="/srv") == {capabilities.SYS_CHROOT}
    assert needed(limits=[parse_limit("nofile=5")]) == {capabilities.SYS_RESOURCE}
    assert needed(binds=["@abstract"]) == set()
    assert needed(binds=[f"unix:{tmp_path}/public"]) == {capabilities.CHOWN, capabilities.FOWNER}


def test_a_directory_of_somebody_elses_takes_one_right_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    for name in ("path", "pidfile", "log", "health_file"):
        assert needed(**{name: str(tmp_path / "file")}) == {capabilities.DAC_OVERRIDE}
    tmp_path.chmod(0o1777)
    assert needed(log=str(tmp_path / "file")) == set(), "everybody may write there"
    assert needed(log=str(tmp_path / "missing" / "file")) == set()
