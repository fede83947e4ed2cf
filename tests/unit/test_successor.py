"""How the next generation is started."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from fdhandoff import successor
from fdhandoff.deadline import after
from fdhandoff.errors import SystemCallError

if TYPE_CHECKING:
    from pathlib import Path

REPORT = """
import os, signal, sys
blocked = sorted(signal.Signals(n).name for n in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
wanted = ("FDHANDOFF_PATH", "FDHANDOFF_GENERATION", "PWD", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "SEEN")
with open(sys.argv[1], "w") as file:
    print(os.getcwd(), *(f"{name}={os.environ.get(name)}" for name in wanted), *blocked, sep="\\n", file=file)
    print(len([fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and int(fd) != file.fileno()]) - 1, file=file)
"""


def test_the_successor_finds_what_is_meant_for_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", "yes")
    monkeypatch.setenv("LISTEN_FDS", "3")
    monkeypatch.setenv("LISTEN_PID", "1")
    here = tmp_path / "here"
    (tmp_path / "there").mkdir()
    here.symlink_to("there")
    process = successor.start(
        [sys.executable, "-c", REPORT, str(tmp_path / "report")],
        path="/run/app/handoff.sock",
        generation=7,
        directory=str(here),
        extra={"NOTIFY_SOCKET": "@manager"},
    )
    with process:
        ended = process.wait(after(20))
    assert ended is not None
    assert ended.status == 0
    lines = (tmp_path / "report").read_text().splitlines()
    assert lines[0] == str(tmp_path / "there")
    assert lines[1:8] == [
        "FDHANDOFF_PATH=/run/app/handoff.sock", "FDHANDOFF_GENERATION=7", f"PWD={here}", "NOTIFY_SOCKET=@manager",
        "LISTEN_FDS=None", "LISTEN_PID=None", "SEEN=yes",
    ]  # fmt: skip
    assert lines[8:-1] == sorted(signal.Signals(number).name for number in successor.BLOCKED)
    assert lines[-1] == "0", "a descriptor of ours was inherited"


def test_a_program_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SystemCallError, match="/no/such/server"):
        successor.start(["/no/such/server"], path="/x", generation=2, directory=str(tmp_path), extra={})


def test_the_directory_is_the_one_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert successor.logical_directory() == str(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path))  # elsewhere
    assert successor.logical_directory() == str(tmp_path / "release")
    monkeypatch.setenv("PWD", "current")
    assert successor.logical_directory() == str(tmp_path / "release")
    monkeypatch.setenv("PWD", str(tmp_path / "gone"))
    assert successor.logical_directory() == str(tmp_path / "release")


def test_the_command_is_the_one_that_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-X", "dev", "-m", "server", "--port", "1"])
    assert successor.own_command() == [sys.executable, "-X", "dev", "-m", "server", "--port", "1"]
    monkeypatch.setattr(sys, "orig_argv", ["no-such-python-anywhere", "server.py"])
    assert successor.own_command() == [sys.executable, "server.py"]


def test_signals_that_would_kill_it_are_blocked_and_those_that_must_work_are_not() -> None:
    blocked = set(successor.BLOCKED)
    assert {signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2} <= blocked
    assert not blocked & {signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGCHLD, signal.SIGPIPE}
    assert os.getpid()
