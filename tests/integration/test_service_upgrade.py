"""A service starts its own successor: what happens when that goes well, and in every way in which it can go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from .services import HERE, PATIENCE, App, alive, ask_on, children_of, eventually, fds_of

if TYPE_CHECKING:
    from pathlib import Path


def test_an_upgrade_brings_the_new_release(tmp_path: Path) -> None:
    with App(tmp_path, release="one") as app:
        first = app.start()
        address = app.address()
        assert app.ask() == f"1 {first.pid} one"
        app.deploy(release="two")
        answer = app.ask("upgrade").split()
        assert answer[:2] == ["handed", "2"]
        assert app.address() == address
        assert app.ask() == f"2 {answer[2]} two"
        assert first.wait(20) == 0
        app.stop()
        assert app.find("^" + answer[2] + " closed")
        assert not (tmp_path / "handoff.sock").exists()


def test_an_upgrade_before_ready_is_refused(tmp_path: Path) -> None:
    with App(tmp_path, misbehave="boot:hang") as app:
        process = app.start(wait=False)
        app.wait_for("misbehaves")
        process.send_signal(signal.SIGHUP)
        app.wait_for("log .*SIGHUP: this process is not ready yet")
        process.kill()


def test_a_hook_runs_in_the_old_one_before_each_successor_starts(tmp_path: Path) -> None:
    """Two rounds: each time the hook of whoever serves has run when the next process begins."""
    with App(tmp_path, hooks=True) as app:
        pids = [app.start().pid]
        for _ in range(2):
            pids.append(int(app.ask("upgrade").split()[2]))
        for old, new in pairwise(pids):
            hook, start = f"{old} hook before upgrade", f"{new} started "
            assert app.lines.count(hook) == 1
            assert app.lines.index(hook) < app.lines.index(start)
        assert app.pid() == pids[2]
        assert f"{pids[2]} hook before upgrade" not in app.lines
        app.stop()


FAILURES = {
    "start:exit0": "SuccessorDied old .*exited with status 0",
    "start:exit1": "SuccessorDied old .*exited with status 1",
    "start:kill": "SuccessorDied old .*killed by signal 9",
    "start:hang": "NotReady old .*did not come for the service within 1",
    "boot:exit1": "SuccessorDied old ",
    "boot:raise": "PeerAborted old |PeerGone old |SuccessorDied old ",
    "boot:kill": "SuccessorDied old ",
    "boot:hang": "NotReady old .*did not finish becoming ready within 1",
    "ready:exit1": "RolledBack old .*died",
    "ready:kill": "RolledBack old .*died",
}


@pytest.mark.parametrize("misbehave", FAILURES)
def test_a_bad_release_leaves_the_old_one_serving(tmp_path: Path, misbehave: str) -> None:
    patience = 1.5 if "hang" in misbehave else 15
    with App(tmp_path, ready_timeout=patience, probation=5 if "ready" in misbehave else 0.3) as app:
        first = app.start()
        environment = app.ask("environment")
        # The path's listener and the service's: nobody is connected.
        fds = eventually(lambda: (found := fds_of(first.pid)).count("socket:[N]") == 2 and found)
        for _ in range(2):
            app.deploy(misbehave=misbehave)
            answer = app.ask("upgrade")
            assert re.search(FAILURES[misbehave], answer), answer
            assert app.ask().startswith(f"1 {first.pid} ")
            assert children_of(first.pid) == [], "a successor, or its zombie, is left"
            assert app.ask("environment") == environment
            eventually(lambda: fds_of(first.pid) == fds, f"descriptors: {fds_of(first.pid)}, before: {fds}")
            status = json.loads(app.ask("status"))
            assert status["state"] == "serving"
            assert status["last_upgrade"]["result"] == ("rolled back" if "ready" in misbehave else "failed")
        app.deploy(misbehave="", probation=0.3)
        assert app.ask("upgrade").startswith("handed 2")
        assert app.generation() == 2
        app.stop()


def test_a_command_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with App(tmp_path, command=["/nonexistent/server"]) as app:
        app.start()
        answer = app.ask("upgrade")
        assert answer.startswith("SystemCallError old ")
        assert "/nonexistent/server" in answer
        assert app.generation() == 1
        app.stop()


def test_of_two_upgrades_at_once_one_proceeds_and_one_is_told(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        app.start()
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(app.ask("upgrade"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.split()[0] for answer in answers) == ["InProgress"] * 3 + ["handed"]
        assert app.generation() == 2
        app.stop()


def test_a_stop_during_an_upgrade_aborts_it_and_ends_the_successor(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        first = app.start()
        app.deploy(misbehave="boot:hang")
        first.send_signal(signal.SIGHUP)
        successor = int(app.wait_for(r"^\d+ misbehaves").split()[0])
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        assert not alive(successor)
        assert app.find("Aborted|was stopped while")
        app.gone()
        assert not (tmp_path / "handoff.sock").exists()


def test_a_stop_before_the_successor_came_ends_it_too(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        first = app.start()
        app.deploy(misbehave="start:hang")
        first.send_signal(signal.SIGHUP)
        successor = int(app.wait_for(r"^\d+ misbehaves").split()[0])
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        assert not alive(successor)
        app.gone()


def test_a_stop_in_probation_ends_the_old_one_only(tmp_path: Path) -> None:
    with App(tmp_path, probation=60) as app:
        first = app.start()
        first.send_signal(signal.SIGHUP)
        app.wait_for("ready 2")
        app.wait_for("this process stays for")
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        assert app.generation() == 2
        app.stop()


def test_the_successor_learns_exactly_when_the_old_one_is_dead(tmp_path: Path) -> None:
    with App(tmp_path, watch_old=True) as app:
        first = app.start()
        assert app.wait_for("old ended True").startswith(str(first.pid))  # there was none
        with app.connect() as slow:
            slow.sendall(b"slow 2\n")
            app.ask("upgrade")
            second = app.pid()
            assert alive(first.pid)
            assert not app.find(f"^{second} old ended")
            assert slow.recv(100) == b"slept\n"
        app.wait_for(f"^{second} old ended True")
        assert not alive(first.pid)
        app.stop()


def test_many_upgrades_leave_descriptors_threads_and_environment_as_they_were(tmp_path: Path) -> None:
    with App(tmp_path, probation=0.05, files=["log"]) as app:
        first = app.start()
        # The first has taken from nobody; from the second on all are alike.
        app.ask("upgrade")
        first.wait(PATIENCE)

        def look() -> list[str]:
            app.ask("status")  # what those that have ended had counted is read a last time
            return [app.ask(word) for word in ("fds", "threads", "environment")]

        before = look()
        for number in range(2, 14):
            assert app.ask("upgrade").startswith(f"handed {number + 1} ")
            app.wait_for(" closed", count=number)
        eventually(lambda: look() == before, "something grew")
        assert "FDHANDOFF_GENERATION" not in before[2]
        app.stop()


def test_a_storm_of_signals_from_exec_to_ready_kills_nobody(tmp_path: Path) -> None:
    storm = (signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP)
    with App(tmp_path) as app:
        first = app.start()
        first.send_signal(signal.SIGHUP)
        successor = eventually(lambda: children_of(first.pid), "no successor")[0]
        while not app.find(rf"^{successor} ready"):
            for number in storm:
                os.kill(successor, number)
            assert alive(successor), app.lines
            threading.Event().wait(0.001)
        # The storm was for it to upgrade: it may have done so already.
        assert first.wait(20) == 0
        eventually(lambda: app.generation() >= 2)
        assert not app.find("Traceback|KeyboardInterrupt")
        app.stop()


def test_a_successor_that_is_stopped_in_its_probation_gives_the_service_back(tmp_path: Path) -> None:
    with App(tmp_path, probation=30, listeners={"main": f"unix:{tmp_path}/s"}) as app:
        first = app.start()
        first.send_signal(signal.SIGHUP)
        successor = eventually(lambda: children_of(first.pid), "no successor")[0]
        os.kill(successor, signal.SIGTERM)  # heard once it is ready
        app.wait_for(rf"^{successor} drained")
        app.wait_for(rf"log puppet.{first.pid}.*gave the service back")
        assert app.generation() == 1
        app.stop()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_the_new_release_comes_from_where_the_link_points_now(tmp_path: Path) -> None:
    """Deployed as releases/N with a link ``current``; the old release's directory is deleted."""
    source = (HERE / "puppet.py").read_text()
    state = tmp_path / "state"
    state.mkdir()
    for release in ("1", "2"):
        directory = tmp_path / "releases" / release
        directory.mkdir(parents=True)
        (directory / "server.py").write_text(source.replace('CONFIG.get("release", "")', f"'release-{release}'"))
    current = tmp_path / "current"
    current.symlink_to("releases/1")
    with App(state) as app:
        environment = {"PWD": str(current)}
        first = app.start(command=[sys.executable, "server.py", str(state)], cwd=current, env=environment)
        assert app.ask().endswith("release-1")
        fresh = tmp_path / "fresh"
        fresh.symlink_to("releases/2")
        fresh.rename(current)
        shutil.rmtree(tmp_path / "releases/1")
        assert app.ask("upgrade").startswith("handed 2")
        assert first.wait(20) == 0
        assert app.ask().endswith("release-2")
        assert app.ask("cwd") == f"{tmp_path}/releases/2 {current}"
        app.stop()


def test_accepted_and_silent_then_it_speaks_while_the_old_one_drains(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        first = app.start()
        with app.connect() as silent, app.connect() as kept:
            assert ask_on(kept).startswith("1 ")
            eventually(lambda: json.loads(app.ask("status"))["counters"]["active"] == 3)
            app.ask("upgrade")
            app.wait_for(f"^{first.pid} ends handed over")
            assert app.generation() == 2
            assert ask_on(silent) == f"1 {first.pid} "
            assert ask_on(kept) == f"1 {first.pid} "
        assert first.wait(20) == 0
        assert app.find(rf"^{first.pid} drained \d+ 0$")
        app.stop()


def test_after_a_rollback_the_queue_is_served_and_the_accept_loop_goes_on(tmp_path: Path) -> None:
    with App(tmp_path, probation=10, misbehave="") as app:
        first = app.start()
        app.deploy(misbehave="ready:hang")  # it owns the service, accepts nothing, and is then killed
        first.send_signal(signal.SIGHUP)
        successor = int(app.wait_for(r"^\d+ misbehaves hang").split()[0])
        with app.connect() as queued:
            queued.sendall(b"who\n")
            os.kill(successor, signal.SIGKILL)
            assert queued.recv(100).startswith(b"1 ")
        for _ in range(5):
            assert app.generation() == 1
        app.stop()


def test_a_successor_that_owns_the_service_and_never_says_so_is_ended(tmp_path: Path) -> None:
    """Stopped when it has read the commit: the old one may not accept, for the other could go on at any moment. But it is a
    child, so it can be killed, and its death is the proof that gives the service back."""
    with App(tmp_path, ready_timeout=2) as app:
        first = app.start()
        app.deploy(misbehave="commit:stop")
        with app.connect() as queued:
            answer = app.ask("upgrade")
            assert answer.startswith("RolledBack old "), answer
            assert ask_on(queued).startswith(f"1 {first.pid} ")
        assert children_of(first.pid) == []
        app.deploy(misbehave="")
        assert app.ask("upgrade").startswith("handed 2")
        app.stop()


def test_stops_and_upgrades_at_any_moment_end_in_one_owner_or_none(tmp_path: Path) -> None:
    """The two requests race; whichever wins, nobody is left over and nothing hangs."""
    with App(tmp_path, probation=0.05) as app:
        for number in range(8):
            process = app.start()
            process.send_signal(signal.SIGHUP)
            threading.Event().wait(number * 0.04)
            process.send_signal(signal.SIGTERM)
            # Once its service is closed, TERM means again what it means to any program.
            assert process.wait(20) == 0 or (
                process.returncode == -signal.SIGTERM and app.find(f"^{process.pid} closed")
            )
            app.stop()  # the successor, where there is one
            assert not (tmp_path / "handoff.sock").exists()
