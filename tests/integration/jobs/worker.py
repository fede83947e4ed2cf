"""A worker on a spool directory: a file in ``new`` is a job, whoever renames it into ``claimed`` has it, and a line in ``done``
says that it was done, and by which process. Each kind of job is done in turn: in a thread, an executor, a subprocess, a pool.

    python -m … SPOOL PATH [--asyncio] [--at-most N] [--grace S] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fdhandoff import Service
from fdhandoff.jobs import Jobs

if TYPE_CHECKING:
    from fdhandoff.jobs import Job

KINDS = ("thread", "executor", "process", "pool")


def note(spool: Path, file: str, line: str) -> None:
    fd = os.open(spool / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def work(spool: Path, name: str, seconds: float) -> None:
    """How many are inside at once is noted by each of them."""
    inside = spool / "inside" / name
    inside.touch()
    note(spool, "most", str(len(os.listdir(spool / "inside"))))
    time.sleep(seconds)
    inside.unlink()
    note(spool, "done", f"{name} {os.getpid()}")


def script(spool: Path, name: str, seconds: float) -> list[str]:
    """The same as a subprocess that has one of its own. What ends it half way leaves no line."""
    code = 'touch "inside/$0"; ls inside | wc -l >> most; sleep "$1" & wait; rm "inside/$0"; echo "$0 $$" >> done'
    return ["sh", "-ec", f"cd {spool}; {code}", name, str(seconds)]


def claim(spool: Path) -> str:
    for name in sorted(os.listdir(spool / "new")):
        try:
            os.rename(spool / "new" / name, spool / "claimed" / name)
        except FileNotFoundError:
            continue
        return name
    return ""


def kind_of(name: str) -> str:
    return KINDS[int(name) % len(KINDS)]


def in_threads(service: Service, options: argparse.Namespace) -> None:
    spool, seconds = options.spool, options.seconds
    with (
        Jobs(service, at_most=options.at_most, patience=2.0) as jobs,
        ThreadPoolExecutor(4) as threads,
        jobs.process_pool(2) as pool,
    ):

        def run(name: str) -> None:
            assert jobs.popen(script(spool, name, seconds)).wait() == 0

        def begin(job: Job, name: str) -> None:
            words = (spool, name, seconds)
            kind = kind_of(name)
            if kind == "process":
                job.start(run, name, name=name)
            elif kind == "thread":
                job.start(work, *words, name=name)
            else:
                job.submit(threads if kind == "executor" else pool, work, *words, name=name)

        service.ready()
        for job in jobs:
            name = claim(spool)
            if name:
                begin(job, name)
            else:
                time.sleep(0.02)
        print(f"{os.getpid()} {jobs.drain()!r}", flush=True)


async def in_a_loop(service: Service, options: argparse.Namespace) -> None:
    spool, seconds = options.spool, options.seconds
    loop = asyncio.get_running_loop()
    with Jobs(service, at_most=options.at_most, patience=2.0) as jobs, jobs.process_pool(2) as pool:

        async def run(name: str) -> None:
            kind = kind_of(name)
            if kind == "process":
                assert await asyncio.to_thread(jobs.popen(script(spool, name, seconds)).wait) == 0
            else:
                await loop.run_in_executor(pool if kind == "pool" else None, work, spool, name, seconds)

        await service.ready_async()
        async for job in jobs:
            name = claim(spool)
            if name:
                job.start(run, name, name=name)
            else:
                await asyncio.sleep(0.02)
        print(f"{os.getpid()} {await jobs.drain_async()!r}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spool", type=Path)
    parser.add_argument("path")
    parser.add_argument("--asyncio", action="store_true")
    parser.add_argument("--at-most", type=int, default=0)
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    with Service("jobs", path=options.path or None, probation=0.2, grace=options.grace) as service:
        if options.asyncio:
            asyncio.run(in_a_loop(service, options))
        else:
            in_threads(service, options)


if __name__ == "__main__":
    main()
    sys.exit(0)
