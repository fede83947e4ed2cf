"""The new side, with a real old side in the other process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdhandoff
from fdhandoff import registry
from fdhandoff.deadline import after
from tests.support.forked import Forked


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    found = str(tmp_path / "h.sock")
    yield found
    registry.remove(found)


def owner_of(path: str, listener: socket.socket, **options: Any) -> Forked:
    """A child that offers once and says what came of it."""

    def child() -> list[str]:
        try:
            handed = fdhandoff.send(path, {"http": listener}, timeout=20, **options)
            return ["handed", str(handed.peer.pid == os.getppid())]
        except fdhandoff.HandoffError as error:
            return [type(error).__name__, error.serving]

    return Forked(child)


def slowly(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_the_takeover_says_what_came_from_whom(path: str, listener: socket.socket) -> None:
    owner = owner_of(path, listener, state=b"state", probation=0.5)
    with fdhandoff.receive(path, require=["http"]) as takeover:
        assert takeover.peer.pid == owner.pid
        assert takeover.peer.uid == os.geteuid()
        assert takeover.state == b"state"
        assert takeover.generation.number == 2
        assert takeover.probation == 0.5
        assert takeover.strict is False
        assert "TAKEN" in repr(takeover)
        takeover.ready()
        assert takeover.listeners["http"].getsockname() == listener.getsockname()
        assert not takeover.orphaned
        with pytest.raises(fdhandoff.LocalProtocolError, match="already"):
            takeover.ready()
        assert takeover.wait_old(20)
        takeover.listeners.close()
    assert owner.result() == ["handed", "True"]


def test_leaving_without_ready_aborts(path: str, listener: socket.socket) -> None:
    owner = owner_of(path, listener)
    with fdhandoff.receive(path) as takeover:
        assert len(takeover.listeners) == 1
    assert owner.result() == ["PeerAborted", "old"]
    with pytest.raises(fdhandoff.Aborted):
        takeover.ready()
    takeover.abort()  # again: nothing happens
    takeover.close()


def test_abort_from_another_thread_ends_a_ready_that_waits(path: str, listener: socket.socket) -> None:
    entered = threading.Event()
    owner = owner_of(path, listener, on_commit=lambda: slowly(1))
    takeover = fdhandoff.receive(path, on_step=lambda before, step, after: step == "say READY" and entered.set())

    def abort() -> None:
        entered.wait(10)
        takeover.abort("changed my mind")

    thread = threading.Thread(target=abort)
    thread.start()
    with pytest.raises(fdhandoff.Aborted) as caught:
        takeover.ready()
    thread.join()
    assert caught.value.serving == "old"
    assert owner.result()[1] == "old"


def test_a_commit_that_does_not_come_in_time_is_given_up(path: str, listener: socket.socket) -> None:
    owner = owner_of(path, listener, on_commit=lambda: slowly(0.6))
    takeover = fdhandoff.receive(path)
    with pytest.raises(fdhandoff.DeadlineExceeded) as caught:
        takeover.ready(0.1)
    assert caught.value.serving == "old"
    assert owner.result()[1] == "old"  # its commit met the abort: the service came back


def test_the_service_can_be_given_back_in_probation(path: str, listener: socket.socket) -> None:
    owner = owner_of(path, listener, probation=20)
    takeover = fdhandoff.receive(path)
    takeover.ready()
    takeover.abort("the new release answers nothing")
    assert owner.result() == ["RolledBack", "old"]
    assert takeover.listeners[0].fileno() == -1  # nothing is kept
    assert registry.find(path) is None


def test_after_probation_the_service_cannot_be_given_back_and_stays(path: str, listener: socket.socket) -> None:
    owner = owner_of(path, listener, probation=0)
    takeover = fdhandoff.receive(path)
    takeover.ready()
    assert owner.result() == ["handed", "True"]
    with pytest.raises(fdhandoff.PeerGone) as caught:
        takeover.abort()
    assert caught.value.serving == "new"
    assert takeover.listeners["http"].getsockname() == listener.getsockname()
    assert registry.find(path) is not None
    takeover.close()
    takeover.listeners.close()


def test_an_old_side_that_drains_says_that_it_is_too_late(path: str, listener: socket.socket) -> None:
    told, told_write = os.pipe()

    def old() -> str:
        from fdhandoff.handoff import Handoff, Offering
        from fdhandoff.inventory import collect

        endpoint = registry.obtain(path)
        came: list[Any] = []
        here = threading.Event()
        endpoint.begin_offer(lambda conversation, hello: (came.append((conversation, hello)), here.set()))
        here.wait(20)
        handoff = Handoff(came[0][0], Offering(collect([listener]), generation=2))
        handoff.run(came[0][1])
        while handoff.conversation.session.state == "DRAINING":
            handoff.report(1, 0.5, 10)  # each looks for a late word first
            if os.get_blocking(told) and os.read(told, 1):
                break
        handoff.drained(3, 1)
        handoff.close()
        registry.forget(path)
        return handoff.conversation.session.state

    owner = Forked(old)
    os.close(told)
    takeover = fdhandoff.receive(path)
    takeover.ready()
    asking = threading.Thread(target=lambda: os.write(told_write, b"x"))
    asking.start()
    with pytest.raises(fdhandoff.PeerGone) as caught:
        takeover.abort()
    asking.join()
    assert caught.value.serving == "new"
    os.close(told_write)
    assert owner.result() == "DONE"
    takeover.close()
    takeover.listeners.close()


def test_the_drain_of_the_old_side_is_told(path: str, listener: socket.socket) -> None:
    def old() -> str:
        from fdhandoff.handoff import Handoff, Offering
        from fdhandoff.inventory import collect

        endpoint = registry.obtain(path)
        came: list[Any] = []
        here = threading.Event()
        endpoint.begin_offer(lambda conversation, hello: (came.append((conversation, hello)), here.set()))
        here.wait(20)
        handoff = Handoff(came[0][0], Offering(collect([listener]), generation=2))
        handoff.run(came[0][1])
        handoff.report(7, 0.25, 3)
        handoff.drained(9, 2)
        handoff.close()
        registry.forget(path)
        return "done"

    owner = Forked(old)
    with fdhandoff.receive(path) as takeover:
        takeover.ready()
        assert takeover.wait_old(20)
        assert (takeover.drain.finished, takeover.drain.forced) == (9, 2)
        takeover.listeners.close()
    assert owner.result() == "done"


def test_nobody_offers_in_time(path: str) -> None:
    with pytest.raises(fdhandoff.DeadlineExceeded, match="there is no such socket"):
        fdhandoff.receive(path, timeout=0.05)


def test_an_owner_that_does_not_offer_yet_is_waited_for(path: str, listener: socket.socket) -> None:
    release, hold = os.pipe()

    def old() -> str:
        registry.obtain(path)  # it answers, and does not offer
        os.read(release, 1)
        fdhandoff.send(path, [listener], timeout=20)
        return "handed"

    owner = Forked(old)
    while not os.path.exists(path):
        pass
    with pytest.raises(fdhandoff.DeadlineExceeded, match="does not offer the service yet"):
        fdhandoff.receive(path, timeout=0.1)
    os.write(hold, b"x")
    with fdhandoff.receive(path, timeout=20) as takeover:
        takeover.ready()
        takeover.listeners.close()
    assert owner.result() == "handed"
    os.close(release)
    os.close(hold)


def test_a_timeout_must_be_a_duration(path: str) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"):
        fdhandoff.receive(path, timeout=-1)
    assert after(None) > after(10**6)
