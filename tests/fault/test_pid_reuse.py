"""The kernel gives the pid of an owner that has ended to somebody else, who then takes over: a number is no name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cast import Actor, Cast, only_answers

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
ATTEMPTS = 20


def next_pid(number: int) -> None:
    try:
        LAST_PID.write_text(str(number - 1))
    except OSError:
        pytest.skip("needs root, to choose the next pid")


def hand_on(cast: Cast, old: Actor) -> Actor:
    new = cast.taker()
    new.hears("serving")
    assert old.ended() == 0
    cast.offers(new)
    assert only_answers(cast.port) == new.pid
    return new


def test_a_process_with_the_pid_of_an_earlier_owner_takes_over(cast: Cast) -> None:
    first = cast.owner()
    serving = hand_on(cast, first)
    for _ in range(ATTEMPTS):
        # Another process may have been quicker to get the number: then once more.
        next_pid(first.pid)
        serving = hand_on(cast, serving)
        if serving.pid == first.pid:
            break
    assert serving.pid == first.pid, f"the kernel never gave {first.pid} again in {ATTEMPTS} attempts"
    assert hand_on(cast, serving).pid != first.pid
