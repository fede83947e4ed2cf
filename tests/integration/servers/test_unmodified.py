"""Servers as they are, under ``run``: clients with one request for each connection lose none, whichever server it is. What
those lose that keep theirs is counted by ``python -m benchmarks swaps``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs, needs_that
from ..master import Service, quick
from . import KeepAlive

if TYPE_CHECKING:
    from benchmarks.swapped import Server

ROOT = Path(__file__).parents[3]
UPGRADES = 2
#: Those that other tests have: with workers, without, killed, by themselves.
ELSEWHERE = {"gunicorn sync", "gunicorn gthread", "uvicorn", "uvicorn --workers 2", "node", "nginx"}
#: Not among what the tests install, the first because it has to be built with a library of its own: tried where it is there.
EXTRA = {"bjoern", "gunicorn uvicorn-worker"}


def servers() -> dict[str, Server]:
    if not (ROOT / "benchmarks").is_dir():
        return {}
    from benchmarks.swapped import UNMODIFIED

    wanted = {name: server for name, server in UNMODIFIED.items() if name not in ELSEWHERE}
    return {name: server for name, server in wanted.items() if name not in EXTRA or server.there()}


@pytest.mark.skipif(not servers(), reason="the benchmarks, whose servers these are, are not part of this copy")
@pytest.mark.parametrize("name", servers())
def test_a_server_as_it_is_loses_no_request(tmp_path: Path, name: str) -> None:
    from benchmarks.swapped import environment

    server = servers()[name]
    if server.needs == "haproxy":
        needs("haproxy")
    else:
        needs_that(server.there(), f"{server.needs}: pip install 'fdhandoff[test]'")
    path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"
    words = [word for pair in (("PATH", path), *environment().items()) for word in ("--env", "=".join(pair))]
    options = quick("--ready", "http:/", "--grace", "10", *words, *server.options)
    with Service(tmp_path, *options, command=server.command(tmp_path)) as service:
        with KeepAlive(service.address(), count=2, once=True) as load:
            for number in range(2, UPGRADES + 2):
                assert service.upgrade()["result"] == "done"
                load.heard(number)
            load.end()
        assert not load.failures
        assert service.stop() == 0
