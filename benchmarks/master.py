"""Master: what the process that stays costs while nothing happens, in MiB of memory, and how long its status takes.

Everything is on: TCP, UDP and Unix listeners, two workers, a readiness probe by HTTP, a configuration file, the journal, the
operators' socket; after five upgrades. PSS divides what is shared (most of all Python's own code) by the number of processes
that share it, so it depends on who else runs Python; "of its own" is what nobody shares, RSS is all of it. The service under it
is a C program, which shares nothing of that; this benchmark is a Python, and the marks, which are taken at the same time, are
some more."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from .measure import Row, as_installed, c_program
from .servers import Peer, Run, free_port, gunicorn, memory, nginx

_UPGRADES = 5
_IDLE_SECONDS = 10
_OPTIONS = ("--workers", "2", "--ready", "http:/", "--settle", "100ms", "--probation", "100ms")


class _Idle:
    """A bare interpreter that waits."""

    def __init__(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", "import sys; print(flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=as_installed(),
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid


def _wake_ups(pid: int) -> int:
    """How often its threads went to sleep: so often they had been woken."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        count += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return count


def _everything(stack: ExitStack, folder: Path) -> Run:
    options = [*_OPTIONS, "--bind", "udp:127.0.0.1:0", "--bind", f"unix:{folder}/public"]
    if sys.version_info >= (3, 11):
        (folder / "run.toml").write_text("grace = '5s'\n")
        options += ["--config", str(folder / "run.toml")]
    service = stack.enter_context(Run([c_program("server")], *options))
    for number in range(2, _UPGRADES + 2):
        service.upgrade()
        time.sleep(0.1)
        service.settled(number)
    return service


def run(turns: int) -> list[Row]:
    names = ["the master, everything on", "a bare interpreter", "a bare interpreter with -I -S"]
    found: dict[str, dict[str, list[float]]] = {}
    status, wakes = [], []
    for turn in range(max(1, turns // 3)):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fdhandoff-bench-")))
            service = _everything(stack, folder)
            pids = dict(
                zip(
                    names, (service.pid, *(stack.enter_context(_Idle(*f)).pid for f in ((), ("-I", "-S")))), strict=True
                )
            )
            for name, make in (("nginx's master", nginx), ("gunicorn's arbiter", lambda folder, _: gunicorn(folder))):
                port = free_port()
                command = make(folder, port)
                if command is None:
                    print(f"{name} is missing, and left out", file=sys.stderr)
                    continue
                bound = ["-b", f"127.0.0.1:{port}"] if "gunicorn" in name else []
                pids[name] = stack.enter_context(Peer([*command, *bound], port, signal.SIGHUP)).pid
            for name, pid in pids.items():
                for kind, mib in memory(pid).items():
                    found.setdefault(name, {}).setdefault(kind, []).append(mib)
            for _ in range(20):
                began = time.perf_counter()
                service.status()
                status.append((time.perf_counter() - began) * 1000)
            if turn == 0:
                time.sleep(2)  # what the questions have left to do
                before = _wake_ups(service.pid)
                time.sleep(_IDLE_SECONDS)
                wakes.append(_wake_ups(service.pid) - before)
    rows = []
    for name, kinds in found.items():
        ours = name == names[0]
        rows.append(Row(f"{name}: PSS", kinds["pss"], "MiB", at_most=10 if ours else None))
        if "nginx" not in name:
            rows.append(Row("  PSS, were it the only Python here", kinds["alone"], "MiB"))
        rows.append(Row("  of its own", kinds["own"], "MiB"))
        rows.append(Row("  RSS", kinds["rss"], "MiB"))
    rows.append(Row(f"wake-ups in {_IDLE_SECONDS} s", wakes, "", at_most=0))
    rows.append(Row("status, asked and answered", status, "ms", at_most=100))
    return rows
