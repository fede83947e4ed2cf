"""Tasks on the master's own loop: waits, what ends them, and what they leave."""

from __future__ import annotations

import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.master.loop import Loop
from fdhandoff.master.tasks import Cancelled, Future, Task, first, pause, sleep, within
from tests.support.signalled import by_another_thread

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


def run(loop: Loop, coroutine: Coroutine[Any, None, Any]) -> Any:
    task: Task[Any] = Task(loop, coroutine)
    task.when_done(loop.stop)
    loop.run()
    return task.result()


def test_a_timer_may_be_a_month_away(loop: Loop) -> None:
    loop.after(31 * 86400.0, lambda: None)
    somebody = threading.Timer(0.01, partial(loop.call, loop.stop))
    somebody.start()
    loop.run()
    somebody.join()


def test_the_first_value_of_a_future_counts() -> None:
    future: Future[int] = Future()
    future.set(1)
    future.set(2)
    future.fail(ValueError())
    assert future.result() == 1


def test_a_signal_that_another_thread_got_ends_the_loops_wait(loop: Loop) -> None:
    heard: list[int] = []

    def handle(number: int, _: object) -> None:
        heard.append(number)
        loop.call(loop.stop)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        loop.heed_signals()
        by_another_thread(signal.SIGUSR1)
        loop.after(20, loop.stop)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
    assert loop._timers[0][2].pending


def test_a_failure_is_raised_where_it_is_awaited(loop: Loop) -> None:
    async def fails() -> None:
        raise ValueError("so")

    async def waits() -> None:
        await Task(loop, fails())

    with pytest.raises(ValueError, match="so"):
        run(loop, waits())


def test_first_is_the_one_that_is_known_first(loop: Loop) -> None:
    async def both() -> bool:
        soon, late = sleep(loop, 0.001), sleep(loop, 60)
        return await first(late, soon) is soon

    assert run(loop, both())


def test_a_future_that_is_watched_again_and_again_remembers_none_of_it(loop: Loop) -> None:
    never: Future[None] = Future()

    async def watches() -> None:
        for _ in range(50):
            await pause(loop, 0, never)

    run(loop, watches())
    assert not never._callbacks


def test_a_pause_is_over_when_another_is_known_and_leaves_no_timer(loop: Loop) -> None:
    known: Future[None] = Future()
    loop.after(0.001, lambda: known.set(None))
    began = time.monotonic()
    run(loop, pause(loop, 60, known))
    assert time.monotonic() - began < 10
    assert not any(timer.pending for _, _, timer in loop._timers)


def test_a_cancelled_task_tidies_up(loop: Loop) -> None:
    said: list[str] = []

    async def waits() -> None:
        try:
            await sleep(loop, 60)
        finally:
            said.append("tidied")

    async def cancels() -> BaseException | None:
        task = Task(loop, waits())
        await sleep(loop, 0)
        over: Future[None] = Future()
        task.when_done(lambda: over.set(None))
        task.cancel()
        await over
        return task.error

    assert isinstance(run(loop, cancels()), Cancelled)
    assert said == ["tidied"]


def test_within_gives_up_after_its_time(loop: Loop) -> None:
    with pytest.raises(TimeoutError):
        run(loop, within(loop, 0.001, Future()))
