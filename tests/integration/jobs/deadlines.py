"""A worker whose jobs do not end by themselves: SPOOL KIND… (a file named after its kind says that one has begun)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fdhandoff import Service
from fdhandoff.jobs import Jobs, current

SPOOL, KINDS = Path(sys.argv[1]), sys.argv[2:]
# A tree: the shell, one that clears its environment, and one that goes on in a session of its own.
TREE = "echo $$ > process.pid; env -i sleep 600 & setsid sleep 600 & touch process; wait"


def begun(kind: str) -> None:
    (SPOOL / f"{kind}.pid").write_text(str(os.getpid()))
    (SPOOL / kind).touch()


def stubborn(kind: str) -> None:
    begun(kind)
    time.sleep(600)


def polite(kind: str) -> None:
    begun(kind)
    job = current()
    assert job is not None
    job.wait_cancelled(600)
    (SPOOL / f"{kind}.put-back").touch()


def tree(jobs: Jobs) -> None:
    subprocess.run(["sh", "-c", TREE], cwd=SPOOL, check=False, **jobs.shielded())


async def stubborn_task(kind: str) -> None:
    begun(kind)
    await asyncio.sleep(600)


def main() -> None:
    with (
        Service("jobs", path=None, grace=0.5) as service,
        Jobs(service, at_most=8, patience=0.5, slots=SPOOL / "slots") as jobs,
    ):
        service.ready()
        threads = ThreadPoolExecutor(2)
        for kind in KINDS:
            if kind == "process":
                jobs.submit(tree, jobs, name=kind)
            elif kind == "cancellable":
                jobs.submit(polite, kind, name=kind, cancellable=True)
            elif kind == "polite":
                jobs.submit(polite, kind, name=kind)
            else:
                _, pool, method = kind.partition("pool-")
                executor = jobs.process_pool(1, method=method) if pool else threads if kind == "executor" else None
                jobs.submit(stubborn, kind, name=kind, executor=executor)
        service.wait()
        print(jobs.drain(), flush=True)


async def in_a_loop() -> None:
    with Service("jobs", path=None, grace=0.5) as service, Jobs(service, patience=0.5) as jobs:
        await service.ready_async()
        async for job in jobs:
            job.start(stubborn_task, "task", name="task")
            break
        await service.wait_async()
        print(await jobs.drain_async(), flush=True)


if __name__ == "__main__":
    if KINDS == ["task"]:
        asyncio.run(in_a_loop())
    else:
        main()
