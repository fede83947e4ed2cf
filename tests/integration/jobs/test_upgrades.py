"""A worker through upgrades of each kind and signals to its whole process group: every accepted job is done exactly once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ..cli import DEADLINE, environment, wait_for
from ..master import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

#: So many jobs wait or are under way at most: who is slow has not more to catch up on in the end.
BACKLOG = 30
WORKER = Path(__file__).with_name("worker.py")


class Spool:
    """Jobs, from a feeder that never stops for an upgrade, and what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "jobs.sock"
        self.fed = 0
        self.workers: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        for name in ("new", "claimed", "inside"):
            (folder / name).mkdir()

    def command(self, *options: str, path: str | None = None) -> list[str]:
        return [sys.executable, str(WORKER), str(self.folder), str(self.path) if path is None else path, *options]

    def worker(self, *options: str, path: str | None = None) -> subprocess.Popen[bytes]:
        """In a process group of its own, which can be signalled as a whole."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self.command(*options, path=path), stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        self.workers.append(process)
        return process

    def feed(self) -> None:
        self._feeder.start()

    def _feed(self) -> None:
        while not self._over.wait(0.05) and self.fed < 20_000:
            if self.claimed() - self.done().total() + len(os.listdir(self.folder / "new")) < BACKLOG:
                self.add()

    def add(self) -> str:
        name = f"{self.fed:05}"
        fresh = self.folder / f"fresh-{name}"
        fresh.touch()
        fresh.rename(self.folder / "new" / name)
        self.fed += 1
        return name

    def done(self) -> Counter[str]:
        file = self.folder / "done"
        lines = file.read_text().splitlines() if file.exists() else []
        return Counter(line.split()[0] for line in lines)

    def claimed(self) -> int:
        return len(os.listdir(self.folder / "claimed"))

    def more_are_done(self, count: int = 8) -> None:
        before = self.done().total()
        wait_for(lambda: self.done().total() >= before + count, f"{count} more jobs ({self.log()[-2000:]})")

    def all_done(self) -> None:
        """Everything that was fed, exactly once."""
        self._over.set()
        self._feeder.join(DEADLINE)
        every = {f"{number:05}" for number in range(self.fed)}
        try:
            wait_for(lambda: not every - self.done().keys(), "the last jobs")
        except AssertionError:
            raise AssertionError(f"not done: {sorted(every - self.done().keys())}; {self.log()[-4000:]}") from None
        assert self.done() == Counter(every)

    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text() if file.exists() else ""

    def owner(self) -> int:
        """The pid of who serves at the path; 0 where nobody does."""
        try:
            facts = ask(self.path, "status", timeout=DEADLINE)
        except (HandoffError, OSError):
            return 0
        return int(facts["pid"]) if facts["state"] == "serving" else 0

    def next_owner(self, old: int) -> int:
        return int(
            wait_for(lambda: (pid := self.owner()) not in (0, old) and pid, f"a successor ({self.log()[-2000:]})")
        )

    def end(self) -> None:
        self._over.set()
        with contextlib.suppress(HandoffError, OSError):
            os.kill(self.owner() or 2**22 + 1, signal.SIGKILL)
        for process in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    found = Spool(tmp_path)
    yield found
    found.end()


#: What happens to the one that works, in turn. Each signal goes to its whole group.
WAYS = ("HUP", "stranger", "TERM", "INT", "QUIT")


def replace(spool: Spool, old: int, way: str, *options: str) -> int:
    """The pid of who works then."""
    group = os.getpgid(old)
    if way == "HUP":  # it starts its successor, in the same group
        os.killpg(group, signal.SIGHUP)
        return spool.next_owner(old)
    if way == "stranger":
        spool.worker(*options)
        new = spool.next_owner(old)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)  # while it finishes what it has
        return new
    os.killpg(group, getattr(signal, f"SIG{way}"))
    spool.worker(*options)
    return spool.next_owner(old)


@pytest.mark.parametrize("style", [(), ("--asyncio",)], ids=["threads", "asyncio"])
@pytest.mark.parametrize("upgrades", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_every_job_is_done_exactly_once(spool: Spool, upgrades: int, style: tuple[str, ...]) -> None:
    options = ("--at-most", "6", "--seconds", "0.1", *style)
    spool.worker(*options)
    pid = spool.next_owner(0)
    spool.feed()
    for turn in range(upgrades):
        spool.more_are_done()
        pid = replace(spool, pid, WAYS[turn % len(WAYS)], *options)
    spool.more_are_done()
    spool.all_done()
    most = max(map(int, (spool.folder / "most").read_text().split()))
    assert 1 < most <= 6  # also while two generations were alive
    os.killpg(os.getpgid(pid), signal.SIGTERM)
    wait_for(lambda: not spool.owner(), "the end")
    for process in spool.workers:
        # One that has finished its jobs, and given its signals back, may meet its group's TERM on the way out.
        assert process.wait(DEADLINE) in (0, -signal.SIGTERM), spool.log()[-2000:]
    assert "Traceback" not in spool.log()
    assert "failed" not in spool.log()


def test_under_run_every_job_is_done_exactly_once(spool: Spool, tmp_path: Path) -> None:
    options = ("--ready", "notify", "--settle", "0", "--probation", "200ms", "--grace", "60s")
    with Service(tmp_path, *options, command=spool.command("--at-most", "6", "--seconds", "0.1"), bind="") as service:
        spool.feed()
        for number, name in ((1, "TERM"), (2, "INT"), (3, "QUIT")):
            spool.more_are_done()
            (old,) = service.generations()[number]["pids"]
            upgrade = threading.Thread(target=service.upgrade)
            upgrade.start()
            service.running.says(f"generation {number + 1} serves")
            upgrade.join(DEADLINE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(old, getattr(signal, f"SIG{name}"))
        spool.more_are_done()
        spool.all_done()
        assert max(map(int, (tmp_path / "most").read_text().split())) <= 6
        assert service.stop() == 0
        assert "' failed: " not in service.running.text()
        assert os.path.exists(f"{service.path}.jobs")


def test_without_a_path_a_worker_finishes_and_ends(spool: Spool) -> None:
    names = [spool.add() for _ in range(4)]
    process = spool.worker("--seconds", "1", path="")
    wait_for(lambda: spool.claimed() == len(names), "the jobs to be accepted")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    assert spool.done() == Counter(names)
