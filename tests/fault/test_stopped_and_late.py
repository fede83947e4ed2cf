"""Processes that are stopped, late, forked or first: who owns the service is never in doubt."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from tests.support.cast import Cast, children_of, only_answers, who_answers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc")


def test_a_taker_that_is_never_ready_leaves_the_owner_and_its_late_ready_is_refused(cast: Cast) -> None:
    owner = cast.owner(ready_timeout=0.4)
    rest = cast.at_rest(owner)
    late = cast.taker(wait_before_ready=True)
    late.hears("taken")
    failed = owner.hears("failed")
    assert (failed["error"], failed["serving"]) == ("NotReady", "old")
    cast.offers(owner)
    assert only_answers(cast.port) == owner.pid
    assert cast.at_rest(owner) == rest
    third = cast.taker()
    third.hears("serving")
    cast.offers(third)
    late.tell()
    refused = late.hears("failed")
    assert (refused["error"], refused["serving"]) == ("PeerAborted", "old")
    assert late.ended() == 3
    assert only_answers(cast.port) == third.pid


def test_a_taker_that_stops_after_the_commit_and_continues_is_the_only_owner(cast: Cast) -> None:
    owner = cast.owner(serving_timeout=0.3, linger=True)
    taker = cast.taker(trap={"role": "taker", "state": "OWNING", "victim": "nobody"})
    taker.hears("trapped")
    taker.process.send_signal(signal.SIGSTOP)
    taker.tell()
    failed = owner.hears("failed")
    assert (failed["error"], failed["serving"]) == ("Unconfirmed", "new")
    owner.hears("ending")  # its gate stays closed, though it holds the listener
    taker.process.send_signal(signal.SIGCONT)
    taker.hears("serving")
    assert only_answers(cast.port) == taker.pid
    cast.offers(taker)


def test_a_taker_that_was_stopped_while_another_became_the_owner_does_not_become_one(cast: Cast) -> None:
    owner = cast.owner(
        final=8 << 20, serving_timeout=0.3, trap={"role": "owner", "state": "CLOSING", "victim": "nobody"}
    )
    stopped = cast.taker()
    owner.hears("trapped")
    stopped.process.send_signal(signal.SIGSTOP)
    owner.tell()  # the final state can't be sent, and no abort can follow it
    assert owner.hears("failed")["serving"] == "old"
    other = cast.taker()
    other.hears("serving")
    assert owner.ended() == 0
    stopped.process.send_signal(signal.SIGCONT)
    failed = stopped.hears("failed")
    assert failed["error"] == "PeerGone"
    assert stopped.ended() == 3
    assert only_answers(cast.port) == other.pid


def test_a_third_process_is_told_at_once_who_is_taking_over(cast: Cast) -> None:
    cast.owner()
    first = cast.taker(wait_before_ready=True)
    first.hears("taken")
    second = cast.taker(timeout=30)
    failed = second.hears("failed", seconds=10)
    assert failed["error"] == "InProgress"
    assert failed["serving"] == "old"
    assert str(first.pid) in failed["sentence"]
    assert second.ended() == 3
    first.tell()
    first.hears("serving")
    assert only_answers(cast.port) == first.pid


def test_a_worker_of_a_dead_taker_that_holds_the_channel_open_hides_no_death(cast: Cast) -> None:
    owner = cast.owner(probation=60)
    rest = cast.at_rest(owner)
    taker = cast.taker(trap={"role": "taker", "state": "OWNING", "victim": "nobody", "fork": True})
    worker = taker.hears("forked")["pid"]
    try:
        taker.hears("trapped")
        assert children_of(taker.pid) == str(worker)
        taker.kill()
        failed = owner.hears("failed")
        assert (failed["error"], failed["serving"]) == ("RolledBack", "old")
        cast.offers(owner)
        assert only_answers(cast.port) == owner.pid
        assert cast.at_rest(owner) == rest
        os.kill(worker, 0)  # it lives, and has all that the taker had
    finally:
        os.kill(worker, signal.SIGKILL)
    taker = cast.taker()
    taker.hears("serving")
    assert only_answers(cast.port) == taker.pid


def test_of_newcomers_that_race_for_a_dead_owners_path_one_becomes_the_owner(cast: Cast) -> None:
    dead = cast.owner()
    dead.kill()
    assert os.path.exists(cast.path)
    racing = [cast.start(port=0) for _ in range(4)]
    for actor in racing:
        actor.hears("bound")
    losers = []
    while len(losers) < 3:  # whoever finds the winner alive says so and ends; the winner says nothing
        losers += [actor for actor in racing if actor not in losers and actor.has_failed()]
    (winner,) = (actor for actor in racing if actor not in losers)
    assert [actor.hears("failed")["error"] for actor in losers] == ["PathInUse"] * 3
    cast.offers(winner)
    taker = cast.taker()
    taker.hears("serving")
    assert os.listdir(cast.directory) == ["h.sock"]


def test_connections_that_wait_while_nobody_owns_are_answered_by_the_next_owner(cast: Cast) -> None:
    owner = cast.owner(trap={"role": "owner", "state": "COMMITTED", "victim": "nobody"}, linger=True)
    taker = cast.taker()
    owner.hears("trapped")  # the gate is closed, the commit is not sent
    answered: list[int] = []
    clients = [threading.Thread(target=lambda: answered.append(who_answers(cast.port, 30))) for _ in range(20)]
    for client in clients:
        client.start()
    owner.tell()
    for client in clients:
        client.join()
    assert answered == [taker.pid] * 20
