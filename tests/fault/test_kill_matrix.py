"""SIGKILL of either side when either side enters each state of its table: who serves then, and what is left behind.

The cases are the states of the tables; what must come of each follows from the tables and from who is dead.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

import pytest

from fdhandoff.protocol.states import FIRST, OWNER, TABLES, TAKER
from tests.support.cast import Actor, Cast, children_of, environment_of, only_answers
from tests.support.pair import OTHER, WAYS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc")

# Failures are entered after the conversation is lost, or not at all without one; these are reached by a handoff that works.
WORKING = {
    OWNER: ("GREETED", "OFFERING", "OFFERED", "CLOSING", "COMMITTED", "PROBATION", "DRAINING"),
    TAKER: ("GREETING", "TAKING", "TAKEN", "WAITING", "OWNING", "SERVING"),
}
# And these by one in which the new side finds that it can't serve after all.
GIVING = {OWNER: ("RECLAIMING",), TAKER: ("GIVING_BACK",)}
FAILING = {
    OWNER: {"AWAITING", "REFUSED", "ABORTED", "TAKEN_BACK", "DONE"},
    TAKER: {"CONNECTED", "REFUSED", "FAILED", "ORPHANED", "GAVE_BACK", "COMPLETE"},
}
MATRIX = [(role, state, victim) for role in (OWNER, TAKER) for state in WORKING[role] for victim in (OWNER, TAKER)]

# What the taker has when the owner dies as somebody enters this state: from *taken* on the service is its own.
TAKER_SURVIVES_WITH_THE_SERVICE = {
    (OWNER, "OFFERED"), (OWNER, "CLOSING"), (OWNER, "COMMITTED"), (OWNER, "PROBATION"), (OWNER, "DRAINING"),
    (TAKER, "TAKEN"), (TAKER, "WAITING"), (TAKER, "OWNING"), (TAKER, "SERVING"),
}  # fmt: skip


def test_the_matrix_has_every_state_of_the_tables() -> None:
    for role, table in TABLES.items():
        assert set(WORKING[role]) | set(GIVING[role]) | FAILING[role] == set(table)
        assert FIRST[role] in FAILING[role]
        assert set(WAYS[role]) == set(table)


@pytest.mark.parametrize(("role", "state", "victim"), MATRIX)
def test_kill(cast: Cast, role: str, state: str, victim: str) -> None:
    trap = {"role": role, "state": state, "victim": victim}
    probation = 0 if state == "DRAINING" else 60
    owner = cast.owner(trap=trap, probation=probation, linger=True)
    before = cast.at_rest(owner)
    environment = environment_of(owner.pid)
    taker = cast.taker(trap=trap, timeout=1.0)
    sides = {OWNER: owner, TAKER: taker}
    if role != victim:
        assert sides[role].hears("trapped")["state"] == state
        sides[victim].kill()
        sides[role].tell()
    assert sides[victim].ended() == -9
    survivor = sides[OTHER[victim]]
    if victim == TAKER and state == "DRAINING":
        # Probation was over: nobody is left, by the old side's leave. The next start binds afresh.
        assert owner.hears("handed")["pid"] == taker.pid
        owner.kill()
        _starts_afresh(cast)
    elif (role, state, victim) == (TAKER, "GREETING", TAKER):
        _serves_on(cast, owner, before, environment)  # the greeting was not sent: the owner never knew
    elif victim == TAKER:
        failed = owner.hears("failed")
        assert failed["serving"] == "old"
        assert failed["error"] == ("RolledBack" if state in ("OWNING", "SERVING", "PROBATION") else "SuccessorDied")
        _serves_on(cast, owner, before, environment)
    elif (role, state) in TAKER_SURVIVES_WITH_THE_SERVICE:
        _serves_on(cast, survivor, before, environment)
    else:
        assert taker.hears("failed")["serving"] == "unknown"
        assert taker.ended() == 3
        _starts_afresh(cast)
    _next_attempt_works(cast)


@pytest.mark.parametrize(("role", "victim"), [(role, victim) for role in (OWNER, TAKER) for victim in (OWNER, TAKER)])
def test_kill_while_the_service_is_given_back(cast: Cast, role: str, victim: str) -> None:
    """Whoever is left has the service, whatever had been said of it."""
    trap = {"role": role, "state": GIVING[role][0], "victim": victim}
    owner = cast.owner(trap=trap, probation=60, linger=True)
    before = cast.at_rest(owner)
    environment = environment_of(owner.pid)
    taker = cast.taker(trap=trap, timeout=1.0, give_back=True)
    sides = {OWNER: owner, TAKER: taker}
    if role != victim:
        sides[role].hears("trapped")
        sides[victim].kill()
        sides[role].tell()
    assert sides[victim].ended() == -9
    if victim == OWNER:
        assert taker.hears("kept")["serving"] == "new"
    else:
        assert owner.hears("failed")["error"] == "RolledBack"
    _serves_on(cast, sides[OTHER[victim]], before, environment)
    _next_attempt_works(cast)


def test_a_stopped_old_side_has_the_service_when_it_goes_on(cast: Cast) -> None:
    """The new side does not wait for ever to be rid of it, and does not serve meanwhile."""
    trap = {"role": TAKER, "state": "SERVING", "victim": OWNER}
    owner = cast.owner(probation=60, linger=True)
    before = cast.at_rest(owner)
    environment = environment_of(owner.pid)
    taker = cast.taker(trap=trap, give_back=True, patience=0.2)
    taker.hears("trapped")
    os.kill(owner.pid, signal.SIGSTOP)
    try:
        taker.tell()
        assert taker.hears("unconfirmed")["serving"] == "old"
        assert taker.ended() == 0
    finally:
        os.kill(owner.pid, signal.SIGCONT)
    assert owner.hears("failed")["error"] == "RolledBack"
    _serves_on(cast, owner, before, environment)
    _next_attempt_works(cast)


def test_a_service_that_is_given_back_is_served_by_the_old_side(cast: Cast) -> None:
    owner = cast.owner(probation=60, linger=True)
    before = cast.at_rest(owner)
    environment = environment_of(owner.pid)
    taker = cast.taker(give_back=True)
    assert owner.hears("failed")["error"] == "RolledBack"
    assert taker.ended() == 0
    _serves_on(cast, owner, before, environment)
    _next_attempt_works(cast)


def _serves_on(cast: Cast, survivor: Actor, before: Counter[str], environment: bytes) -> None:
    """It alone answers, and is as it was."""
    cast.offers(survivor)
    assert only_answers(cast.port) == survivor.pid
    assert cast.at_rest(survivor) == before
    assert children_of(survivor.pid) == ""
    assert environment_of(survivor.pid) == environment
    assert os.listdir(cast.directory) == ["h.sock"]
    cast.serving = survivor  # type: ignore[attr-defined]


def _starts_afresh(cast: Cast) -> None:
    """Nobody answers; the next start finds the path stale and becomes the owner."""
    assert only_answers(cast.port) == 0
    fresh = cast.owner(linger=True)
    assert only_answers(cast.port) == fresh.pid
    assert os.listdir(cast.directory) == ["h.sock"]
    cast.serving = fresh  # type: ignore[attr-defined]


def _next_attempt_works(cast: Cast) -> None:
    serving: Actor = cast.serving  # type: ignore[attr-defined]
    held = cast.at_rest(serving)
    taker = cast.taker(linger=True)
    taker.hears("owner")
    taker.hears("serving")
    cast.offers(taker)
    assert only_answers(cast.port) == taker.pid
    assert cast.at_rest(taker) == held
    assert os.listdir(cast.directory) == ["h.sock"]
