"""A worker of arq: ``python on_arq.py NUMBER…`` sends its jobs."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from worked import work

SETTINGS = RedisSettings(unix_socket_path=os.environ["REDIS"])


async def job(_: dict[str, Any], number: str) -> None:
    await asyncio.to_thread(work, number)


class WorkerSettings:
    functions = (job,)
    redis_settings = SETTINGS
    max_jobs = 2
    job_completion_wait = 60


async def send() -> None:
    pool = await create_pool(SETTINGS)
    for number in sys.argv[1:]:
        await pool.enqueue_job("job", number)
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(send())
