"""How long the answer to ``/slow/…`` takes: so many seconds, or until there is a file: ``x`` and its path in hexadecimal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_SECONDS = 0.01


def until(path: Path) -> str:
    return f"/slow/x{os.fsencode(path).hex()}"


def pauses(what: str) -> Iterator[float]:
    if not what.startswith("x"):
        yield float(what)
        return
    path = bytes.fromhex(what[1:])
    while not os.path.exists(path):
        yield _LOOK_SECONDS


def wait(what: str) -> None:
    for pause in pauses(what):
        time.sleep(pause)


async def wait_async(what: str) -> None:
    for pause in pauses(what):
        await asyncio.sleep(pause)
