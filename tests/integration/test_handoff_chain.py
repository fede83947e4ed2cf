"""One service through very many handoffs: nothing grows, and no predecessor takes the path with it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdhandoff
from fdhandoff import registry
from tests.support.cast import Cast, only_answers
from tests.support.forked import Forked

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc")

TURNS = 500  # each is two handoffs
WARM = 150


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    found = Cast(tmp_path)
    yield found
    found.close()


def _weight() -> tuple[list[str], int, int]:
    """Descriptors by kind, size of the environment, resident KiB."""
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0].rstrip("0123456789"))
        except FileNotFoundError:
            pass
    rss = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return sorted(kinds), len(os.environ), int(rss.split()[1])


def _play(path: str, listener: socket.socket | None) -> dict[str, Any]:
    """Owns and takes in turns; the one without a listener begins by taking."""
    weights = {}
    generation = 0
    for turn in range(TURNS):
        if listener is None:
            with fdhandoff.receive(path, timeout=60) as takeover:
                takeover.ready(60)
                listener = takeover.listeners[0]
                assert takeover.generation.number > generation
                generation = takeover.generation.number
        handed = fdhandoff.send(path, [listener], state=b"x" * 1000, timeout=60)
        assert handed.items == 2
        listener.close()
        listener = None
        if turn in (WARM, TURNS - 1):
            weights[turn == WARM] = _weight()
    return {"before": weights[True], "after": weights[False], "generation": generation}


def test_a_thousand_handoffs_leave_both_processes_as_they_were(tmp_path: Path) -> None:
    path = str(tmp_path / "h.sock")

    def first() -> dict[str, Any]:
        return _play(path, socket.create_server(("127.0.0.1", 0)))

    one, two = Forked(first), Forked(lambda: _play(path, None))
    a = one.result()
    with fdhandoff.receive(path, timeout=60) as takeover:  # the second one's last listener
        takeover.ready(60)
        end = [takeover.generation.number, len(takeover.listeners)]
        takeover.listeners.close()
    b = two.result()
    assert end == [2 * TURNS + 1, 1]
    registry.remove(path)
    for found in (a, b):
        (fds, environment, before), (fds_after, environment_after, after) = found["before"], found["after"]
        assert fds_after == fds
        assert environment_after == environment
        assert after - before < 1024, f"{before} KiB before, {after} KiB after"
    assert os.listdir(tmp_path) == []


def test_a_unix_listener_goes_through_ten_unrelated_processes(cast: Cast) -> None:
    """Each predecessor exits with 0, and neither its path nor the handoff path disappears with it."""
    public = str(cast.directory / "public.sock")
    actor = cast.owner(unix=public)
    for _ in range(10):
        successor = cast.taker()
        successor.hears("serving")
        assert actor.ended() == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(public)
            assert int(client.recv(64)) == successor.pid
        assert sorted(os.listdir(cast.directory)) == ["h.sock", "public.sock"]
        actor = successor


def test_an_aborted_taker_leaves_the_unix_path_alive(cast: Cast) -> None:
    public = str(cast.directory / "public.sock")
    owner = cast.owner(unix=public)
    taker = cast.taker(wait_before_ready=True)
    taker.hears("taken")
    taker.kill()
    owner.hears("failed")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(public)
        assert int(client.recv(64)) == owner.pid
    assert sorted(os.listdir(cast.directory)) == ["h.sock", "public.sock"]


def test_generations_are_counted(cast: Cast) -> None:
    cast.owner()
    for number in (2, 3, 4):
        taker = cast.taker()
        assert taker.hears("owner")["generation"] == number
        taker.hears("serving")
        cast.offers(taker)
    assert only_answers(cast.port) == taker.pid
