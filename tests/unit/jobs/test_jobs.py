"""Jobs inside one process: who gets in, what a job is told, and what a drain says of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fdhandoff import DeadlineExceeded, GateClosed, Service, UpgradeError
from fdhandoff.jobs import Job, Jobs, current
from fdhandoff.system.slots import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

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


def everybody_leaves(jobs: Jobs) -> bool:
    jobs.service.gate.close()
    return jobs.service.gate.wait(DEADLINE)


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
    assert everybody_leaves(jobs)
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


@pytest.mark.parametrize("pool", [False, True])
def test_an_acknowledgement_is_part_of_its_job(jobs: Jobs, pool: bool) -> None:
    inside: list[int] = []
    go_on = threading.Event()
    executor = ThreadPoolExecutor(1) if pool else None
    future = jobs.submit(go_on.wait, DEADLINE, executor=executor)
    future.add_done_callback(lambda _: inside.append(jobs.service.gate.active))
    assert future.running()
    go_on.set()
    assert everybody_leaves(jobs)
    assert inside == [1]
    assert future.result(0) is True
    if executor is not None:
        executor.shutdown()


def test_what_waits_in_an_executor_can_be_cancelled_and_leaves(jobs: Jobs) -> None:
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        first = jobs.submit(go_on.wait, DEADLINE, executor=executor)
        second = jobs.submit(int, executor=executor)
        assert not first.cancel()
        assert second.cancel()
        assert second.cancelled()
        assert jobs.service.gate.active == 1
        go_on.set()
    assert everybody_leaves(jobs)


def test_what_can_not_be_begun_leaves_no_place_behind(jobs: Jobs) -> None:
    async def work(number: int) -> int:
        return number

    class Works:
        async def __call__(self) -> None:
            """Nothing."""

    def steps() -> Iterator[int]:
        yield 1

    with ThreadPoolExecutor(1) as executor:
        for function in (work, Works()):
            with pytest.raises(TypeError, match="coroutine function, which an executor does not run"):
                jobs.submit(function, executor=executor)
    for function in (work, Works()):
        with pytest.raises(RuntimeError, match="no running event loop"):
            jobs.submit(function)
    with pytest.raises(TypeError, match="generator function"):
        jobs.submit(steps)
    with pytest.raises(TypeError, match="generator function"):
        jobs.job(steps)

    async def main() -> None:
        async for job in jobs:
            with pytest.raises(TypeError, match="missing 1 required positional"):
                job.start(work)
            assert await job.start(work, 7) == 7
            return

    asyncio.run(main())
    assert everybody_leaves(jobs)


def test_a_block_that_ends_in_another_context_leaves(jobs: Jobs) -> None:
    async def steps() -> AsyncIterator[int]:
        async with jobs.accept():
            yield 1
            yield 2

    async def main() -> None:
        async for _ in steps():
            break

    asyncio.run(main())
    assert jobs.service.gate.active == 0


def test_a_place_from_before_the_deadline_is_for_no_job_after_it(jobs: Jobs) -> None:
    for job in jobs:
        jobs.service.stop()
        assert jobs.drain(grace=0.05).cut == []
        with pytest.raises(GateClosed, match="no job is begun any more"):
            job.start(int)
        break
    assert jobs.service.gate.active == 0


def test_who_wants_to_be_asked_is_asked_as_soon_as_the_process_drains(jobs: Jobs) -> None:
    with jobs.accept("report", cancellable=True) as job:
        jobs.service.stop()
        assert job.wait_cancelled(DEADLINE)
    report = jobs.drain()
    assert (report.finished, report.cancelled) == (1, ["report"])


def test_a_drain_waits_for_no_thread_of_the_loops_executor(service: Service) -> None:
    """They may all be waiting for what the drain ends."""

    async def main() -> None:
        await service.ready_async()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        with Jobs(service, patience=0.1) as jobs:
            waits = asyncio.create_task(asyncio.to_thread(jobs.popen(["sleep", "60"]).wait))
            await asyncio.sleep(0)
            async with jobs.accept():
                service.stop()
                with contextlib.suppress(asyncio.CancelledError):
                    await jobs.drain_async(grace=0.05)
            assert await asyncio.wait_for(waits, DEADLINE) < 0

    asyncio.run(main())


def test_a_forked_child_accepts_with_jobs_of_its_own(jobs: Jobs) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        status = 1
        try:
            with Jobs(jobs.service) as own, own.accept():
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_job_that_goes_on_after_close_keeps_its_place(service: Service, tmp_path: Path) -> None:
    service.ready()
    go_on = threading.Event()
    with Jobs(service, at_most=1, slots=tmp_path / "slots", patience=0.0) as jobs:
        jobs.submit(go_on.wait, DEADLINE)
        service.gate.close()
    with contextlib.closing(Slots(tmp_path / "slots", 1)) as others:
        assert others.acquire() == -1
        go_on.set()
        assert service.gate.wait(DEADLINE)
        assert others.acquire() == 0  # nobody has it any more, and nobody will


def test_a_process_that_was_closed_is_nobody_to_end() -> None:
    """In a process of its own, as multiprocessing leaves a helper behind."""
    program = (
        "from fdhandoff.jobs import shielding\n"
        "shield = shielding.Shield()\n"
        "process = shield.context('spawn').Process(target=int)\n"
        "process.start()\n"
        "process.join()\n"
        "process.close()\n"
        "assert shield.end(1.0) == 0\n"
        "shield.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_those_of_one_service_end_only_their_own_processes(service: Service) -> None:
    service.ready()
    with Jobs(service) as mine:
        process = mine.popen(["sleep", "60"])
        with Jobs(service) as others:
            others.popen(["true"]).wait()
        assert process.poll() is None
    assert process.wait() < 0


def test_where_nobody_waits_for_children_a_command_is_run_once(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "from fdhandoff.jobs import shielding\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "look = shielding.was_only_forked\n"
        "shielding.was_only_forked = lambda pid: time.sleep(0.05) or look(pid)\n"
        "shield = shielding.Shield()\n"
        "for _ in range(5):\n"
        "    shield.popen(['sh', '-c', 'echo once >>' + sys.argv[1]], {}).wait()\n"
        "shield.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().split() == ["once"] * 5


def test_mistakes_are_named(service: Service, jobs: Jobs) -> None:
    for patience in (-1, "5", float("nan")):
        with pytest.raises(ValueError, match="patience is a number of seconds"):
            Jobs(service, patience=patience)  # type: ignore[arg-type]
    for at_most in (2.5, "8"):
        with pytest.raises(ValueError, match="at_most is 0"):
            Jobs(service, at_most=at_most)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at_most is 0"):
        Jobs(service, at_most=-1)
    with pytest.raises(ValueError, match="'fork' is no way to start shielded processes: say spawn or forkserver"):
        jobs.context("fork")
