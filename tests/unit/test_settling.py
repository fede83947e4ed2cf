"""Processes that share a gate count each for itself, and what was inside of one that died is settled, by proof of death."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from fdhandoff.counters import Counters, CountersView
from fdhandoff.errors import SystemCallError
from fdhandoff.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 10.0


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.release()


def readable(fd: int, timeout: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


class Child:
    """A forked child that does ``work`` and then waits to be killed; made once the work is done."""

    def __init__(self, work: Callable[[], object]) -> None:
        ready, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                work()
                os.write(done, b"+")
                signal.pause()
            finally:
                os._exit(1)
        os.close(done)
        assert os.read(ready, 1) == b"+"
        os.close(ready)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        os.waitpid(self.pid, 0)


def test_a_forked_child_counts_in_its_own_slot(gate: Gate) -> None:
    gate.enter()
    child = Child(gate.enter)
    assert gate.active == 2
    assert {slot.pid: slot.counters.active for slot in gate.slots()} == {os.getpid(): 1, child.pid: 1}
    gate.leave()
    child.kill()
    child.reap()
    assert gate.settle() == 1


def test_what_was_inside_of_a_killed_process_is_counted_as_forced(gate: Gate) -> None:
    child = Child(lambda: (gate.enter(), gate.enter(), gate.leave(), gate.note(idle=1)))
    gate.close()
    assert not gate.wait(0)
    child.kill()
    assert gate.wait(LONG)
    assert gate.counters == Counters(accepted=2, finished=1, forced=1)
    child.reap()


def test_a_living_process_is_not_settled(gate: Gate) -> None:
    child = Child(gate.enter)
    assert gate.settle() == 0
    assert gate.active == 1
    child.kill()
    child.reap()
    assert gate.settle() == 1
    assert gate.settle() == 0


def test_wait_async_notices_the_death_of_another_process(gate: Gate) -> None:
    child = Child(gate.enter)
    gate.close()

    async def main() -> bool:
        waiting = asyncio.create_task(gate.wait_async(LONG))
        await asyncio.sleep(0)
        child.kill()
        return await waiting

    assert asyncio.run(main())
    child.reap()


def test_room_is_made_by_the_death_of_a_process() -> None:
    gate = Gate(limit=1)
    child = Child(gate.enter)
    threading.Timer(0.01, child.kill).start()
    assert gate.enter_wait(LONG)
    child.reap()


def test_slots_of_the_dead_are_used_again(gate: Gate) -> None:
    for _ in range(140):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if gate.enter() else 1)
        assert os.waitpid(pid, 0)[1] == 0
    gate.close()
    assert gate.wait(LONG)
    assert gate.counters == Counters(accepted=140, forced=140)


def test_a_process_that_was_given_the_descriptors_shares_the_gate(gate: Gate) -> None:
    fds = [os.dup(fd) for fd in gate.share()]

    def stranger() -> None:
        other = Gate.from_fds(*fds)
        assert other.enter()
        assert other.limit == 5

    gate.limit = 5
    child = Child(stranger)
    for fd in fds:
        os.close(fd)
    assert gate.active == 1
    gate.close()
    child.kill()
    assert gate.wait(LONG)
    child.reap()


def test_two_handles_on_one_gate_agree(gate: Gate) -> None:
    other = Gate.from_fds(*(os.dup(fd) for fd in gate.share()))
    assert other.enter()
    gate.close()
    assert not other.enter()
    assert gate.settle() == 0
    other.leave()
    assert readable(gate.fileno())
    other.release()


def test_counters_are_read_live_through_the_memory_alone(gate: Gate) -> None:
    with CountersView(os.dup(gate.memory_fd)) as view:
        gate.enter()
        gate.limit = 7
        assert view.counters == gate.counters
        assert (view.active, view.closed, view.limit) == (1, False, 7)
        gate.close()
        assert view.closed
        assert [slot.pid for slot in view.slots()] == [os.getpid()]
        gate.leave()
    with pytest.raises(ValueError, match="closed"):
        view.counters  # noqa: B018 - the property is what is tested


def test_memory_that_is_no_gate_is_refused() -> None:
    fd = os.memfd_create("stranger")
    os.truncate(fd, 1 << 20)
    with pytest.raises(SystemCallError):
        CountersView(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
