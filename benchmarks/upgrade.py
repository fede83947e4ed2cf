"""Upgrade: from the moment it is asked for to the first user who is answered by the new generation, in milliseconds.

``run`` with a server under a steady load; again and again it is asked for an upgrade, by HUP or by the verb, and each time
waited for until the old generation has ended. What the server itself needs, from being spawned to its first answer, is
measured in between, with nobody but it, and its median is taken off. The gap is from the last connection that the old
generation got to the first that the new one got, as they were due; 0.5 ms is the load's own step. Beside it: what gunicorn
needs after a HUP, where a fork of the same interpreter is enough."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fdhandoff import ask
from fdhandoff.deadline import after
from fdhandoff.system.process import spawn

from .measure import Row, c_program, quantile
from .servers import MILLISECOND, PATIENCE, PYTHON_SERVER, Load, Peer, Run, free_port, get, gunicorn, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RATE = 2000
# An upgrade ends as soon as it can.
_SWIFT = ("--settle", "0", "--probation", "0", "--max-draining", "10")


def _startup(command: Sequence[str]) -> float:
    """Milliseconds from the spawn of a server to its first answer, without a master."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        began = time.monotonic_ns()
        process = spawn(command, fds={0: 0, 1: 1, 2: 2, 3: listener.fileno()}, env={**os.environ, "LISTEN_FDS": "1"})
        with process:
            get(listener.getsockname()[1])
            took = time.monotonic_ns() - began
            process.signal(signal.SIGKILL)
            process.wait(after(PATIENCE))
    return took / MILLISECOND


class _Series:
    """Upgrades of one service: ``total`` milliseconds until the first answer each, ``startup`` of the server, ``gap``."""

    def __init__(
        self, command: Sequence[str], options: Sequence[str], times: int, *, rate: int = _RATE, verb: bool = False
    ) -> None:
        self.startup: list[float] = []
        asked: list[int] = []
        pids: list[int] = []
        with Run(command, *_SWIFT, *options) as service, Load(service.port, rate) as load:
            pids += service.settled()
            for number in range(2, times + 3):
                self.startup.append(_startup(command))
                time.sleep(0.02)
                asked.append(time.monotonic_ns())
                if verb:
                    ask(service.path, "upgrade", {"wait": False}, timeout=PATIENCE)
                else:
                    service.upgrade()
                time.sleep(0.05)
                pids += service.settled(number)
            time.sleep(0.05)
        if load.failed:
            raise SystemExit(f"{len(load.failed)} requests failed during upgrades, which none must")
        self.total: list[float] = []
        self.gap: list[float] = []
        # The first upgrade does not count.
        for old, new, moment in list(zip(pids, pids[1:], asked, strict=False))[1:]:
            by_new = [(due, due + took) for due, took, who in load.answers if who == new]
            self.total.append((min(done for _, done in by_new) - moment) / MILLISECOND)
            last = max(due for due, _, who in load.answers if who == old)
            self.gap.append((min(due for due, _ in by_new) - last) / MILLISECOND)
        own = quantile(self.startup, 0.5)
        self.net = [total - own for total in self.total]


def _after_hup(times: int) -> list[float]:
    """Milliseconds from gunicorn's HUP to the first answer of a new worker."""
    with tempfile.TemporaryDirectory() as folder:
        command = gunicorn(Path(folder))
        if command is None:
            print("gunicorn is missing, and left out: pip install gunicorn", file=sys.stderr)
            return []
        port = free_port()
        began, known, samples = [], list[set[int]](), []
        with Peer([*command, "-b", f"127.0.0.1:{port}"], port, signal.SIGHUP) as peer, Load(port, _RATE // 4) as load:
            children = Path(f"/proc/{peer.pid}/task/{peer.pid}/children")

            def workers() -> set[int]:
                return {int(pid) for pid in children.read_text().split()}

            for _ in range(times):
                before = wait_for(lambda: (found := workers()) and len(found) == 2 and found, "gunicorn's workers")
                known.append(before)
                began.append(time.monotonic_ns())
                peer.upgrade()
                time.sleep(0.05)
                wait_for(lambda before=before: not before & workers(), "gunicorn's new workers")
                time.sleep(0.1)
        answered = sorted((due + took, who) for due, took, who in load.answers)
        for moment, old in zip(began, known, strict=True):
            known_by_then = old | {who for done, who in answered if done <= moment}
            first = next(done for done, who in answered if done > moment and who not in known_by_then)
            samples.append((first - moment) / MILLISECOND)
    return samples


def run(turns: int) -> list[Row]:
    swift = [c_program("server")]
    python = [sys.executable, "-I", "-S", "-c", PYTHON_SERVER]
    many, few = turns * 15, turns * 5
    series: dict[str, Callable[[], _Series]] = {
        "HUP, accept": lambda: _Series(swift, ("--ready", "accept"), many),
        "HUP, notify": lambda: _Series(swift, ("--ready", "notify"), few),
        "HUP, http": lambda: _Series(swift, ("--ready", "http:/"), few),
        "verb, accept": lambda: _Series(swift, ("--ready", "accept"), few, verb=True),
        "HUP, accept, a Python server": lambda: _Series(python, ("--ready", "accept"), few, rate=_RATE // 4),
    }
    rows = []
    for name, make in series.items():
        one = make()
        rows.append(Row(f"{name}: the server's own start", one.startup, "ms"))
        rows.append(Row("  first answer", one.total, "ms"))
        rows.append(Row("  less its start", one.net, "ms", at_most=20))
        rows.append(Row("  of these p99", [quantile(one.net, 0.99)], "ms", at_most=60))
        rows.append(Row("  gap between old and new", one.gap, "ms"))
    peer = _after_hup(few)
    if peer:
        rows.append(Row("gunicorn, HUP to the first answer of a new worker", peer, "ms"))
    return rows
