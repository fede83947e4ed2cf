"""``run`` with a worker that has no listener: what it is busy with can't be seen from outside, and is waited for."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from ..cli import wait_for
from ..master import Service

if TYPE_CHECKING:
    from pathlib import Path

#: It works on one job until a file says that it may end, and half a second more; TERM only says that no other shall be begun.
WORKER = """
import os, signal, sys, time
folder, stop = sys.argv[1], []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
generation = os.environ["FDHANDOFF_GENERATION"]
def say(what):
    with open(os.path.join(folder, "said"), "a") as file:
        file.write(f"{generation} {what}\\n")
say("began")
while not stop:
    time.sleep(0.01)
say("was told")
while not os.path.exists(os.path.join(folder, f"finish{generation}")):
    time.sleep(0.01)
time.sleep(0.5)
say("finished")
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", WORKER, str(tmp_path)]


def said(folder: Path, line: str) -> bool:
    file = folder / "said"
    return file.exists() and line in file.read_text().splitlines()


# A job that takes longer than a server without connections would be given, and less than the grace period.
PATIENT = ("--ready", "delay:100ms", "--settle", "0", "--probation", "100ms", "--grace", "60s", "--kill-after", "100ms")


def test_an_upgrade_waits_for_the_job_of_the_old_worker(tmp_path: Path, command: list[str]) -> None:
    with Service(tmp_path, *PATIENT, command=command, bind="") as service:
        wait_for(lambda: said(tmp_path, "1 began"))
        assert service.upgrade()["result"] == "done"
        wait_for(lambda: said(tmp_path, "1 was told"))
        assert service.upgrade()["result"] == "done"
        assert sorted(service.generations()) == [1, 2, 3]
        (tmp_path / "finish1").touch()
        (tmp_path / "finish2").touch()
        service.settled(3)
        assert said(tmp_path, "1 finished")
        assert said(tmp_path, "2 finished")
        (tmp_path / "finish3").touch()
        assert service.stop() == 0


def test_the_end_of_the_service_waits_for_the_last_job(tmp_path: Path, command: list[str]) -> None:
    with Service(tmp_path, *PATIENT, command=command, bind="") as service:
        wait_for(lambda: said(tmp_path, "1 began"))
        os.kill(service.pid, signal.SIGTERM)
        wait_for(lambda: said(tmp_path, "1 was told"))
        service.running.says("stopping: drained")
        (tmp_path / "finish1").touch()
        assert service.running.ends() == 0
        assert said(tmp_path, "1 finished")
        assert "is killed" not in service.running.text()


def test_a_job_that_outlasts_the_grace_period_is_killed(tmp_path: Path, command: list[str]) -> None:
    short = ("--grace", "300ms", "--kill-after", "100ms")
    with Service(tmp_path, *PATIENT[:-4], *short, command=command, bind="") as service:
        wait_for(lambda: said(tmp_path, "1 began"))
        assert service.upgrade()["result"] == "done"
        service.running.says("of being told to; it is killed")
        service.settled(2)
        assert not said(tmp_path, "1 finished")


def test_a_worker_that_is_replaced_finishes_its_job(tmp_path: Path, command: list[str]) -> None:
    with Service(tmp_path, *PATIENT, "--worker-lifetime", "1s", command=command, bind="") as service:
        wait_for(lambda: said(tmp_path, "1 was told"))
        (tmp_path / "finish1").touch()
        service.running.says("has replaced")
        assert "is killed" not in service.running.text()


def test_a_worker_without_a_listener_is_assumed_to_be_ready_when_it_lives_on(
    tmp_path: Path, command: list[str]
) -> None:
    options = ("--settle", "0", "--probation", "0", "--grace", "60s")
    (tmp_path / "finish1").touch()
    (tmp_path / "finish2").touch()
    with Service(tmp_path, *options, command=command, bind="") as service:
        service.running.says("is assumed to be, after 1 s: it has no listener")
        assert service.upgrade()["result"] == "done"
        service.settled(2)
