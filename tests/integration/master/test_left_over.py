"""What a dead master left is ended by ``stop --left-over``, or left to the next start where systemd says there will be one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from ..cli import DEADLINE, verb
from ..services import alive
from . import Service, kill, quick

if TYPE_CHECKING:
    from pathlib import Path

STUBBORN = """
import signal, socket, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], close_fds=False)
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    listener.accept()[0].close()
"""


def family(service: Service) -> list[int]:
    return [pid for one in service.generations().values() for pid in one["pids"]]


def kill_master(service: Service) -> None:
    kill(service.pid)
    service.running.process.wait(DEADLINE)


def test_generations_of_a_dead_master_are_ended_and_the_next_start_is_a_fresh_one(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        service.upgrade()
        service.settled(2)
        pids = family(service)
        kill_master(service)
        done = verb("stop", "--left-over", "--json", str(service.path))
        assert (done.returncode, json.loads(done.stdout)) == (0, {"schema": 1, "ended": [2]})
        assert "generation 2 of a master that died is ended" in done.stderr
        assert not any(map(alive, pids))
        assert not (tmp_path / "master.sock.journal").exists()
        assert verb("stop", "--left-over", str(service.path)).returncode == 0  # nothing is left
        with Service(tmp_path, *quick()) as again:
            assert list(again.generations()) == [1]


def test_one_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), command=[sys.executable, "-c", STUBBORN]) as service:
        (pid,) = family(service)
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            (child,) = map(int, file.read().split())
        kill_master(service)
        done = verb("stop", "--left-over", "--timeout", "300ms", str(service.path))
        assert done.returncode == 0
        assert not alive(pid)
        assert not alive(child)


@pytest.mark.parametrize("result", ["signal", "watchdog", "core-dump", "oom-kill"])
def test_after_a_crash_that_systemd_mends_they_are_left_to_the_next_start(tmp_path: Path, result: str) -> None:
    with Service(tmp_path, *quick()) as service:
        pids = family(service)
        kill_master(service)
        done = verb("stop", "--left-over", str(service.path), env={"SERVICE_RESULT": result})
        assert done.returncode == 0
        assert "for the next start" in done.stderr
        assert all(map(alive, pids))
        with Service(tmp_path, *quick()) as again:
            assert family(again) == pids
            again.stop()


def test_a_live_master_is_not_what_is_left_over(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        done = verb("stop", "--left-over", str(service.path))
        assert done.returncode == 1
        assert f"a live process answers at {service.path}" in done.stderr
        assert verb("stop", "--left-over", "--pid", str(service.pid)).returncode == 2
        assert list(service.generations()) == [1]


def test_a_journal_that_makes_no_sense_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "master.sock"
    (tmp_path / "master.sock.journal").write_text('{"schema": 1, "runs": [7]}')
    done = verb("stop", "--left-over", str(path))
    assert done.returncode != 0
    assert "makes no sense" in done.stderr
    assert "Traceback" not in done.stderr
