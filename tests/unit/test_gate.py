"""The gate: nobody enters once it is closed, everybody who entered is counted until he left, whatever became of him."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fdhandoff.counters import Counters, CountersView
from fdhandoff.errors import GateClosed
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


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up
        os.sched_yield()


def test_enter_and_leave_are_counted(gate: Gate) -> None:
    assert gate.enter()
    assert gate.enter()
    assert gate.active == 2
    gate.leave()
    assert gate.counters == Counters(accepted=2, finished=1, active=1)
    gate.leave_forced()
    assert gate.counters == Counters(accepted=2, finished=1, forced=1)


def test_nobody_enters_a_closed_gate(gate: Gate) -> None:
    gate.close()
    assert gate.closed
    assert not gate.enter()
    with pytest.raises(GateClosed), gate:
        pytest.fail("it was closed")
    assert gate.counters == Counters(refused=2)


def test_a_reopened_gate_lets_in(gate: Gate) -> None:
    gate.close()
    assert readable(gate.fileno())
    assert readable(gate.closed_fileno())
    gate.reopen()
    assert not readable(gate.fileno())
    assert not readable(gate.closed_fileno())
    with gate:
        assert gate.active == 1
    assert gate.active == 0


def test_the_block_leaves_when_it_raises(gate: Gate) -> None:
    with pytest.raises(KeyError), gate:
        raise KeyError
    assert gate.active == 0


def test_wait_returns_when_the_last_has_left(gate: Gate) -> None:
    gate.enter()
    gate.close()
    assert not readable(gate.fileno())
    assert not gate.wait(0)
    drained = threading.Thread(target=gate.wait)
    drained.start()
    gate.leave()
    drained.join(LONG)
    assert not drained.is_alive()
    assert readable(gate.fileno())


def test_wait_does_not_return_while_the_gate_is_open(gate: Gate) -> None:
    assert not gate.wait(0.01)


def test_wait_can_be_awaited_by_several(gate: Gate) -> None:
    gate.enter()
    gate.close()

    async def main() -> list[bool]:
        waiting = [asyncio.create_task(gate.wait_async(LONG)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not await gate.wait_async(0)
        gate.leave()
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [True, True, True]


def test_wait_async_can_be_cancelled(gate: Gate) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(gate.wait_async(), 0.01)

    asyncio.run(main())


def test_no_more_than_the_limit_are_inside() -> None:
    gate = Gate(limit=2)
    assert gate.limit == 2
    assert gate.enter()
    assert gate.enter()
    assert not gate.enter()
    assert not gate.enter_wait(0.01)
    gate.limit = 3
    assert gate.enter()
    gate.limit = 0
    assert all(gate.enter() for _ in range(100))
    with pytest.raises(ValueError, match="limit"):
        gate.limit = -1


def test_the_block_waits_for_room() -> None:
    gate = Gate(limit=1)
    gate.enter()
    entered = threading.Event()

    def job() -> None:
        with gate:
            entered.set()

    thread = threading.Thread(target=job)
    thread.start()
    until(lambda: gate.counters.refused > 0)
    assert not entered.is_set()
    gate.leave()
    thread.join(LONG)
    assert entered.is_set()


def test_closing_wakes_who_waits_for_room() -> None:
    gate = Gate(limit=1)
    gate.enter()
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(gate.enter_wait(LONG))) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: gate.counters.refused >= 4)
    gate.close()
    for thread in threads:
        thread.join(LONG)
    assert answers == [False] * 4


def test_all_who_wait_for_room_get_in_in_the_end() -> None:
    gate = Gate(limit=3)
    most = 0

    def job() -> None:
        nonlocal most
        for _ in range(50):
            with gate:
                most = max(most, gate.active)

    threads = [threading.Thread(target=job) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert gate.active == 0
    assert gate.counters.finished == 400


def test_threads_are_all_counted_and_none_enters_after_close(gate: Gate) -> None:
    late = []

    def job() -> None:
        while gate.enter():
            if closed:
                late.append(gate.active)
            gate.leave()

    closed = False
    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: gate.counters.accepted > 1000)
    gate.close()
    assert gate.wait(LONG)
    closed = True
    for thread in threads:
        thread.join(LONG)
    assert not late
    counters = gate.counters
    assert counters.accepted == counters.finished
    assert counters.refused == 4


def test_gauges_are_what_the_server_says(gate: Gate) -> None:
    gate.enter()
    gate.note(idle=1, detached=1)
    assert (gate.counters.idle, gate.counters.detached) == (1, 1)
    gate.note(idle=-1)
    assert (gate.counters.idle, gate.counters.detached) == (0, 1)
    gate.leave()


def test_a_released_gate_lets_nobody_in_and_keeps_nothing() -> None:
    gate = Gate()
    fds = [gate.memory_fd, gate.fileno(), gate.closed_fileno(), gate.room_fileno()]
    enter = gate.enter
    assert enter()
    gate.leave()
    del enter
    gate.release()
    gate.release()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    assert not gate.enter()
    gate.leave()
    gate.close()
    assert gate.closed
    assert gate.wait(0)
    assert gate.settle() == 0
    assert "released" in repr(gate)
    with pytest.raises(GateClosed):
        gate.reopen()


def test_a_bound_enter_outlives_the_release() -> None:
    gate = Gate()
    enter, leave = gate.enter, gate.leave
    gate.release()
    assert enter()
    leave()


def test_who_is_inside_at_the_release_may_still_leave() -> None:
    gate = Gate()
    view = CountersView(os.dup(gate.memory_fd))
    gate.enter()
    gate.release()
    gate.leave()
    assert view.counters == Counters(accepted=1, finished=1)
    view.close()


def test_a_signal_handler_may_use_the_gate_while_the_main_thread_waits(gate: Gate) -> None:
    def handler(*_: object) -> None:
        gate.settle()
        gate.close()
        gate.leave()

    gate.enter()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert gate.wait(LONG)
    finally:
        signal.signal(signal.SIGUSR1, before)
