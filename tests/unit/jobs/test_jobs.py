"""Jobs inside one process: who gets in, what a job is told, and what a drain says of it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fdhandoff import DeadlineExceeded, GateClosed, Service, UpgradeError
from fdhandoff.jobs import Job, Jobs, current

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 20.0


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def service(lines: list[str]) -> Iterator[Service]:
    with Service("jobs", path=None, signals={}, grace=DEADLINE, log=lines.append) as found:
        yield found


@pytest.fixture
def jobs(service: Service) -> Iterator[Jobs]:
    service.ready()
    with Jobs(service, at_most=2, patience=0.1) as found:
        yield found


def test_nothing_is_accepted_before_the_service_is_ready(service: Service) -> None:
    with Jobs(service) as jobs, pytest.raises(UpgradeError, match="only after ready"), jobs.accept():
        pass


def test_a_block_is_a_job_that_knows_itself(jobs: Jobs) -> None:
    with jobs.accept("mail 7") as job:
        assert current() is job
        assert [one.name for one in jobs.running] == ["mail 7"]
        assert not job.cancelled
    assert current() is None
    assert not jobs.running
    assert jobs.service.gate.active == 0


def test_no_more_than_so_many_at_once(jobs: Jobs) -> None:
    with jobs.accept(), jobs.accept():
        with pytest.raises(DeadlineExceeded), jobs.accept(timeout=0.05):
            pass
        assert jobs.service.gate.active == 2
    with jobs.accept(timeout=0):
        pass


def test_who_waits_for_room_gets_it_when_a_job_has_ended(jobs: Jobs) -> None:
    over = threading.Event()
    for _ in range(2):
        jobs.submit(over.wait, DEADLINE)
    third = ThreadPoolExecutor(1)
    waiting = third.submit(jobs.submit, int, "3")
    assert not waiting.done()
    over.set()
    assert waiting.result(DEADLINE).result(DEADLINE) == 3
    third.shutdown()


def test_a_loop_over_places_ends_with_the_service(jobs: Jobs) -> None:
    names = iter(["first", "", "second", ""])
    seen: list[Job] = []
    for job in jobs:
        seen.append(job)
        name = next(names, "")
        if name:
            job.start(int, name=name)
        if len(seen) == 4:
            jobs.service.stop()
    # A place in which nothing was begun was given back, and counts as no job.
    assert len(seen) >= 4
    report = jobs.drain()
    assert jobs.service.gate.active == 0
    assert (report.cut, report.cancelled) == ([], [])


def test_a_place_is_given_back_when_the_loop_is_left(jobs: Jobs) -> None:
    for _ in jobs:
        assert jobs.service.gate.active == 1
        break
    assert jobs.service.gate.active == 0


def test_one_place_is_for_one_job(jobs: Jobs) -> None:
    for job in jobs:
        job.start(int)
        with pytest.raises(RuntimeError, match="one place is for one job"):
            job.start(int)
        break


def test_what_fails_is_logged_and_leaves(jobs: Jobs, lines: list[str]) -> None:
    future = jobs.submit(int, "seven", name="count")
    with pytest.raises(ValueError, match="seven"):
        future.result(DEADLINE)
    assert jobs.service.gate.active == 0
    assert any("job 'count' failed: ValueError" in line for line in lines)


def test_an_executor_that_takes_nothing_leaves_no_place_behind(jobs: Jobs) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError):
        jobs.submit(int, executor=executor)
    assert jobs.service.gate.active == 0


def test_a_decorated_function_is_a_job_each_time(jobs: Jobs) -> None:
    @jobs.job
    def plain() -> str:
        return str(current())

    @jobs.job(name="other", cancellable=True)
    async def other() -> str:
        return str(current())

    assert "plain" in plain()
    assert "'other'" in asyncio.run(other())


def test_a_drain_asks_those_who_want_it_and_waits_for_the_others(jobs: Jobs) -> None:
    over = threading.Event()

    def cancellable() -> None:
        job = current()
        assert job is not None
        assert job.wait_cancelled(DEADLINE)
        over.set()

    def patient() -> None:
        job = current()
        assert job is not None
        assert over.wait(DEADLINE)
        assert not job.cancelled

    jobs.submit(cancellable, name="cancellable", cancellable=True)
    later = jobs.submit(patient, name="patient")
    jobs.service.stop()
    report = jobs.drain()
    later.result(DEADLINE)
    assert (report.finished, report.cancelled, report.cut) == (2, ["cancellable"], [])
    with pytest.raises(GateClosed), jobs.accept():
        pass
    with pytest.raises(GateClosed):
        jobs.submit(int)


def test_what_is_cut_is_named_and_counted_as_forced(jobs: Jobs, lines: list[str]) -> None:
    def asked() -> None:
        job = current()
        assert job is not None
        job.wait_cancelled(DEADLINE)

    jobs.submit(asked, name="slow")
    jobs.service.stop()
    report = jobs.drain(grace=0.05)
    assert (report.finished, report.cut) == (0, ["slow"])
    assert jobs.service.gate.counters.forced == 1
    assert any("cut at the deadline: 'slow'" in line for line in lines)


def test_tasks_are_jobs_too(service: Service) -> None:
    async def work(number: int) -> int:
        job = current()
        assert job is not None
        await asyncio.sleep(0)
        return number

    async def main() -> None:
        await service.ready_async()
        with Jobs(service, at_most=2) as jobs:
            async with jobs.accept("block") as job:
                assert current() is job
            tasks = []
            async for job in jobs:
                tasks.append(job.start(work, len(tasks)))
                if len(tasks) == 5:
                    service.stop()
                    await service.wait_async()
            assert [await task for task in tasks] == list(range(len(tasks)))
            assert (await jobs.drain_async()).cut == []

    asyncio.run(main())


def test_a_cancelled_block_ends_by_the_tasks_cancellation(service: Service) -> None:
    async def block(jobs: Jobs, ended: list[str]) -> None:
        try:
            async with jobs.accept("block", cancellable=True):
                await asyncio.sleep(DEADLINE)
        except asyncio.CancelledError:
            ended.append("put back")

    async def main() -> None:
        await service.ready_async()
        ended: list[str] = []
        with Jobs(service) as jobs:
            task = asyncio.create_task(block(jobs, ended))
            while not jobs.running:
                await asyncio.sleep(0)
            service.stop()
            await service.wait_async()
            report = await jobs.drain_async()
            await task
            assert (report.finished, report.cancelled, ended) == (1, ["block"], ["put back"])

    asyncio.run(main())


def test_waiting_jobs_are_told_when_this_process_takes_no_more(jobs: Jobs) -> None:
    over = threading.Event()
    for _ in range(2):
        jobs.submit(over.wait, DEADLINE)
    refused: list[BaseException] = []

    def wait() -> None:
        try:
            jobs.submit(int)
        except GateClosed as error:
            refused.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    jobs.service.stop()
    waiting.join(DEADLINE)
    assert refused
    over.set()
    assert jobs.drain().cut == []


def test_mistakes_are_named(service: Service, jobs: Jobs) -> None:
    with pytest.raises(ValueError, match="at_most is 0"):
        Jobs(service, at_most=-1)
    with pytest.raises(ValueError, match="'fork' is no way to start shielded processes: say spawn or forkserver"):
        jobs.context("fork")
