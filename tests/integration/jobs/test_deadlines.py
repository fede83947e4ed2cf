"""What does not finish is cut at the deadline and named, and no process outlives its worker, whatever that dies of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.jobs.shielding import Shield
from fdhandoff.system.process import lives
from fdhandoff.system.slots import Slots

from ..cli import DEADLINE, environment, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(__file__).with_name("deadlines.py")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*kinds: str) -> subprocess.Popen[str]:
        """Returns when all of them have begun."""
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tmp_path), *kinds], env=environment(), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        wait_for(lambda: process.poll() is not None or all((tmp_path / kind).exists() for kind in kinds), "the jobs")
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=DEADLINE)


def family(folder: Path, *kinds: str) -> list[int]:
    """The processes that the jobs have, with all that they started."""
    leaders = [int((folder / f"{kind}.pid").read_text()) for kind in kinds]
    found = set(leaders)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent in leaders:
            found.add(int(entry))
    return sorted(found)


def all_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(map(lives, pids)), f"the end of {pids}")


def test_what_is_left_at_the_deadline_is_ended_and_named(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    worker = start("thread", "executor", "process", "pool-spawn", "polite", "cancellable")
    pids = wait_for(
        lambda: len(found := family(tmp_path, "process", "pool-spawn")) >= 4 and found, "the shell's children"
    )
    os.killpg(worker.pid, signal.SIGTERM)
    said, _ = worker.communicate(timeout=DEADLINE)
    assert (
        "finished=1, cancelled=['cancellable'], cut=['thread', 'executor', 'process', 'pool-spawn', 'polite']" in said
    )
    assert "given up 500ms after that: 'thread', 'executor'\n" in said
    # The executor's thread would have kept Python from ending.
    assert worker.returncode == 1
    assert (tmp_path / "cancellable.put-back").exists()
    assert (tmp_path / "polite.put-back").exists()
    all_gone(pids)


def test_without_threads_that_are_given_up_the_status_is_the_programs_own(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    worker = start("process", "pool-spawn")
    os.killpg(worker.pid, signal.SIGTERM)
    said, _ = worker.communicate(timeout=DEADLINE)
    assert "cut=['process', 'pool-spawn']" in said
    assert worker.returncode == 0


def test_a_task_is_cancelled_at_the_deadline(start: Callable[..., subprocess.Popen[str]]) -> None:
    worker = start("task")
    worker.terminate()
    said, _ = worker.communicate(timeout=DEADLINE)
    assert "cut=['task']" in said
    assert worker.returncode == 0


@pytest.mark.parametrize("pool", ["pool-spawn", "pool-forkserver"])
def test_no_process_outlives_a_worker_that_is_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, pool: str
) -> None:
    worker = start("process", pool, "thread")
    pids = wait_for(lambda: len(found := family(tmp_path, "process", pool)) >= 4 and found, "the shell's children")
    slots = Slots(tmp_path / "slots", 8)
    assert [slots.acquire() for _ in range(6)] == [3, 4, 5, 6, 7, -1]
    worker.kill()
    worker.wait(DEADLINE)
    # The kernel has given the dead one's places back.
    assert sorted(wait_for(lambda: (slot := slots.acquire()) + 1 and [slot, slots.acquire(), slots.acquire()])) == [
        0,
        1,
        2,
    ]
    slots.close()
    all_gone(pids)
    wait_for(lambda: not guards(worker.pid), "the guard to have done its work")


def guards(pid: int) -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"shield.py") for word in words) and any(word.startswith(b"%d." % pid) for word in words):
            found.append(entry)
    return found


def test_a_guard_that_was_killed_is_replaced_by_the_next_subprocess(tmp_path: Path) -> None:
    shield = Shield()
    shield.keywords()
    (first,) = wait_for(lambda: guards(os.getpid()), "a guard")
    os.kill(int(first), signal.SIGKILL)
    wait_for(lambda: not lives(int(first)), "its end")
    process = subprocess.Popen(["sleep", "600"], **shield.keywords())
    (second,) = wait_for(lambda: guards(os.getpid()), "another guard")
    assert second != first
    shield.close()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    assert not guards(os.getpid())


def test_what_a_signal_ends_before_it_is_a_program_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    real = subprocess.Popen

    def popen(*words: object, **options: object) -> object:
        """The first one dies as by a signal to our group: forked, and not executed."""
        if options.get("start_new_session") and "pass_fds" not in options and not started:
            options["preexec_fn"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        process = real(*words, **options)  # type: ignore[call-overload]
        if "pass_fds" not in options:
            started.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    shield = Shield()
    process = shield.popen(["sh", "-c", "echo done"], {"stdout": subprocess.PIPE})
    assert process.communicate(timeout=DEADLINE)[0] == b"done\n"
    assert len(started) == 2
    shield.close()
