"""A celery application: ``python on_celery.py NUMBER…`` sends its jobs."""

from __future__ import annotations

import os
import sys

from celery import Celery
from worked import work

app = Celery("on_celery", broker=f"redis+socket://{os.environ['REDIS']}")
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_connection_retry_on_startup = True


@app.task
def job(number: str) -> None:
    work(number)


if __name__ == "__main__":
    import on_celery

    for number in sys.argv[1:]:
        on_celery.job.delay(number)
