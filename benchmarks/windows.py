"""Windows: how long users wait while an upgrade is under way, beside the same service left alone, at one load, in milliseconds.

Each server answers 500 requests a second, each on a connection of its own and each counted from the moment when it was due. In
turns it is left alone for a second, and upgraded: the window is the second from the request for the upgrade on. p99.9 is of
all the windows of a turn, and of all its quiet seconds. What the same servers do by their own reload stands beside it."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .measure import Row, c_program, quantile
from .servers import Load, Peer, Run, free_port, gunicorn, haproxy, nginx

if TYPE_CHECKING:
    from collections.abc import Sequence

_RATE = 500
_WINDOWS = 4  # in a turn
_SECOND = 1_000_000_000
# What a window has begun may end after it: that is in neither.
_REST = 0.5
# Every step of an upgrade lies in its window.
_BRISK = ("--settle", "200ms", "--probation", "200ms", "--max-draining", "10")


class _Seen:
    """What users of one service saw, turn by turn."""

    def __init__(self, service: Peer) -> None:
        self.service = service
        self.quiet: list[float] = []
        self.upgrading: list[float] = []
        self.all_quiet: list[float] = []
        self.all_upgrading: list[float] = []
        self.failed = 0

    def turn(self) -> None:
        alone, windows = [], []
        with Load(self.service.port, _RATE) as load:
            time.sleep(_REST)
            for _ in range(_WINDOWS):
                alone.append(time.monotonic_ns())
                time.sleep(1)
                windows.append(time.monotonic_ns())
                self.service.upgrade()
                time.sleep(1 + _REST)
        quiet, upgrading = (_within(load.answers, begins) for begins in (alone, windows))
        self.all_quiet += quiet
        self.all_upgrading += upgrading
        self.quiet.append(quantile(quiet, 0.999))
        self.upgrading.append(quantile(upgrading, 0.999))
        self.failed += len(load.failed)


def _within(answers: Sequence[tuple[int, int, int]], begins: Sequence[int]) -> list[float]:
    """Milliseconds of the requests that were due in the second after one of these moments."""
    return [took / 1e6 for due, took, _ in answers if any(begin <= due < begin + _SECOND for begin in begins)]


def _services(stack: ExitStack) -> dict[str, Peer]:
    """Ours first; what is missing on this machine is named, and left out."""
    found: dict[str, Peer] = {"a C server under run": Run([c_program("server")], *_BRISK)}

    def folder() -> Path:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fdhandoff-bench-")))

    for name, make, reload, options in (
        ("nginx", nginx, signal.SIGHUP, ("--convention", "nginx")),
        ("gunicorn", lambda folder, _: gunicorn(folder), signal.SIGHUP, ("--ready", "http:/")),
        ("haproxy", haproxy, signal.SIGUSR2, None),
    ):
        ports = free_port(), free_port()
        command = make(folder(), ports[0])
        if command is None:
            print(f"{name} is missing, and left out", file=sys.stderr)
            continue
        bound = ["-b", f"127.0.0.1:{ports[0]}"] if name == "gunicorn" else []
        found[f"{name}'s own reload"] = Peer([*command, *bound], ports[0], reload)
        ours = make(folder(), ports[1])
        if options is not None and ours is not None:
            found[f"{name} under run"] = Run(ours, *options, *_BRISK, port=ports[1])
    for service in found.values():
        stack.enter_context(service)
    return found


def run(turns: int) -> list[Row]:
    rows = []
    with ExitStack() as stack:
        seen = {name: _Seen(service) for name, service in _services(stack).items()}
        for _ in range(turns):
            for one in seen.values():
                one.turn()
    for name, one in sorted(seen.items(), key=lambda item: " under run" not in item[0]):
        ours = " under run" in name
        quiet = Row(f"{name}: p99.9 left alone", one.quiet, "ms")
        rows += [
            quiet,
            Row("  p99.9 in the windows", one.upgrading, "ms", against=quiet, at_most=1.2 if ours else None),
        ]
        pooled = quantile(one.all_upgrading, 0.999) / quantile(one.all_quiet, 0.999)
        rows.append(Row(f"  the same of all {len(one.all_upgrading)} and {len(one.all_quiet)} requests", [pooled], "x"))
        rows.append(Row("  failed", [one.failed], "", at_most=0 if ours else None))
    return rows
