"""Descriptors run out, system calls are interrupted, buffers are tiny: a clear end or a good one, and nothing kept."""

from __future__ import annotations

import os
import resource
import sys
import threading

import pytest

from tests.support.cast import Cast, only_answers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc")


@pytest.mark.parametrize("nofile", [12, 20, 40, 64])
def test_a_taker_that_is_out_of_descriptors_says_so_and_the_owner_serves_on(cast: Cast, nofile: int) -> None:
    owner = cast.owner(extra=60)
    rest = cast.at_rest(owner)
    taker = cast.taker(nofile=nofile)
    failed = taker.hears("failed")
    assert failed["error"] in ("ProtocolError", "SystemCallError"), failed
    assert "open files" in failed["sentence"] or "open-files limit" in failed["sentence"]
    assert taker.ended() == 3
    cast.offers(owner)
    assert only_answers(cast.port) == owner.pid
    assert cast.at_rest(owner) == rest
    again = cast.taker()
    again.hears("serving")
    assert only_answers(cast.port) == again.pid


@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_an_owner_that_is_out_of_descriptors_refuses_and_serves_on(cast: Cast, spare: int) -> None:
    owner = cast.owner()
    rest = cast.at_rest(owner)
    limits = resource.prlimit(owner.pid, resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir(f"/proc/{owner.pid}/fd"))
    resource.prlimit(owner.pid, resource.RLIMIT_NOFILE, (highest + 1 + spare, limits[1]))
    taker = cast.taker(timeout=2)
    outcome = taker.ends_or_says("serving")
    resource.prlimit(owner.pid, resource.RLIMIT_NOFILE, limits)
    if outcome is None:  # it was refused, in whatever words
        assert taker.ended() == 3
        cast.offers(owner)
        assert only_answers(cast.port) == owner.pid
        assert cast.at_rest(owner) == rest
        taker = cast.taker()
        taker.hears("serving")
    assert only_answers(cast.port) == taker.pid


def test_a_storm_of_signals_changes_nothing(cast: Cast) -> None:
    owner = cast.owner(storm=True, state=4 << 20, final=2 << 20, extra=300, linger=True)
    taker = cast.taker(storm=True, trap={"role": "taker", "state": "GREETING", "victim": "nobody"})
    taker.hears("trapped")
    over = threading.Event()

    def storm() -> None:
        while not over.wait(0.0002):
            for actor in (owner, taker):
                actor.process.send_signal(10)  # USR1; nothing happens when it has ended

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        taker.tell()
        assert taker.hears("taken")["state"] == 4 << 20
        assert taker.hears("owner")["orphaned"] is False
        owner.hears("ending")
        taker.hears("serving")
    finally:
        over.set()
        thread.join()
    assert only_answers(cast.port) == taker.pid


@pytest.mark.parametrize("who", ["owner", "taker", "both"])
def test_tiny_buffers_only_make_it_slower(cast: Cast, who: str) -> None:
    owner = cast.owner(tiny=who != "taker", state=1 << 20, final=1 << 19, extra=600)
    taker = cast.taker(tiny=who != "owner")
    assert taker.hears("taken")["state"] == 1 << 20
    taker.hears("serving")
    assert owner.ended() == 0
    assert only_answers(cast.port) == taker.pid
