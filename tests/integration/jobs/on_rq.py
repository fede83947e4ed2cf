"""Jobs for rq: ``python on_rq.py NUMBER…`` sends them."""

from __future__ import annotations

import os
import sys

from redis import Redis
from rq import Queue
from worked import work

if __name__ == "__main__":
    queue = Queue("default", connection=Redis.from_url(f"unix://{os.environ['REDIS']}"))
    for number in sys.argv[1:]:
        queue.enqueue(work, number)
