"""The smallest supervisors, such as a container has as its process 1: they pass signals on, and end with their child."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.client import ask

from ...conftest import needs
from ..cli import PACKAGE, Running, environment, wait_for
from ..master import Load, quick, rude
from ..pidproxy import descendants_of
from .life import Slow

if TYPE_CHECKING:
    from collections.abc import Sequence

INITS = [("tini", "-s", "--"), ("dumb-init", "--")]  # -s: process 1 or not, it is to have the orphans


class UnderInit(Running):
    def __init__(self, init: Sequence[str], *words: str) -> None:
        self._start([needs(init[0], init[0]), *init[1:], sys.executable, "-m", PACKAGE, *words], env=environment())


@pytest.mark.parametrize("init", INITS, ids=[init[0] for init in INITS])
def test_twenty_upgrades_pass_an_init_by_and_a_stop_drains_and_leaves_nothing(
    tmp_path: Path, init: tuple[str, ...]
) -> None:
    path = tmp_path / "web.sock"
    family: list[int] = []

    def status() -> dict[str, Any]:
        return ask(path, "status", timeout=5.0)

    running = UnderInit(init, "run", "--path", str(path), "--bind", "http=127.0.0.1:0", *quick(), "--", *rude())
    try:
        running.says("generation 1 serves")
        master = status()["pid"]
        host, _, port = status()["listeners"][0]["address"].rpartition(":")
        with Load((host, int(port)), 3) as load:
            for number in range(2, 22):
                running.signal(signal.SIGHUP)
                load.heard(number, 5)
                wait_for(lambda number=number: status()["counters"]["upgrades"] == number - 1, f"upgrade to {number}")
            load.end()
        assert not load.failures, (len(load.answers), load.failures)
        assert status()["pid"] == master
        family = descendants_of(running.pid)
        slow = Slow((host, int(port)), 1.5)
        wait_for(lambda: any(one["active"] for one in status()["generations"]), "the slow request")
        running.signal(signal.SIGTERM)
        assert slow.over()[1] == 21, slow.answer
        assert running.ends() == 0
        assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []
        assert not path.exists()
    finally:
        if running.process.poll() is None:
            for pid in {running.pid, *family, *descendants_of(running.pid)}:
                os.kill(pid, signal.SIGKILL)
            running.ends()
