"""Actors for dramatiq: ``python on_dramatiq.py NUMBER…`` sends their messages."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from worked import work

dramatiq.set_broker(RedisBroker(url=f"unix://{os.environ['REDIS']}"))


@dramatiq.actor(max_retries=0)
def job(number: str) -> None:
    work(number)


if __name__ == "__main__":
    for number in sys.argv[1:]:
        job.send(number)
