"""What a job of a queue does: a line when it begins, and one when it is done."""

from __future__ import annotations

import os
import time
from pathlib import Path


def note(file: str, line: str) -> None:
    fd = os.open(Path(os.environ["SPOOL"]) / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def work(number: str) -> None:
    note("begun", number)
    time.sleep(float(os.environ["SECONDS"]))
    note("done", number)
