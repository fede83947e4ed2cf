"""The PID mode in which the original process ends up with the new code: a child serves while it executes itself anew."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ..support.manager import Manager
from .services import App, alive, ask_on, children_of, eventually, fds_of

if TYPE_CHECKING:
    from pathlib import Path


def upgraded(app: App, pid: int, generation: int) -> None:
    """Until ``pid`` serves as ``generation``, and has nobody beside it."""
    app.wait_for(rf"^{pid} ready {generation}\b")
    eventually(lambda: app.pids() == {pid} and not children_of(pid), f"more than one process: {app.pids()}")
    assert app.ask("who").split()[:2] == [str(generation), str(pid)]


def test_after_each_of_two_upgrades_exactly_one_process_with_the_same_pid_has_the_new_code(tmp_path: Path) -> None:
    with App(tmp_path, same_pid=True, release="a", pidfile=str(tmp_path / "pid")) as app:
        pid = app.start().pid
        environment = app.ask("environment")
        for generation, release in ((3, "b"), (5, "c")):
            app.deploy(release=release)
            with app.connect() as kept:
                assert ask_on(kept).split()[1] == str(pid)
                os.kill(pid, signal.SIGHUP)
                app.wait_for(rf"ready {generation - 1}\b")
                # The old code finishes what it has, the new one serves meanwhile.
                assert app.ask("who").split()[::2] == [str(generation - 1), release]
                assert ask_on(kept, "slow 0.1") == "slept"
            upgraded(app, pid, generation)
            assert app.ask("who").split()[2] == release
            assert (tmp_path / "pid").read_text() == f"{pid}\n"
            assert app.ask("environment") == environment
            if generation == 3:
                # One knows the side from which it took over; the one that knew the child is closed when that has ended.
                eventually(lambda: fds_of(pid).count("anon_inode:[pidfd]") == 1, f"{fds_of(pid)}")
                descriptors = Counter(fds_of(pid))
        # None more. (The connections by which we asked are closed a moment later: some may have been counted.)
        eventually(lambda: Counter(fds_of(pid)) <= descriptors, f"{descriptors}, not {fds_of(pid)}")
        app.stop()


def test_a_child_that_fails_leaves_the_original_serving(tmp_path: Path) -> None:
    with App(tmp_path, same_pid=True, probation=1) as app:
        pid = app.start().pid
        for misbehave in ("start:exit1", "ready:kill"):
            app.deploy(misbehave=misbehave)
            assert app.ask("upgrade").startswith(("SuccessorDied", "RolledBack"))
            assert app.ask("who").split()[:2] == ["1", str(pid)]
        app.deploy(misbehave="")
        os.kill(pid, signal.SIGHUP)
        upgraded(app, pid, 3)
        app.stop()


def test_an_original_that_can_not_be_executed_anew_leaves_the_child_serving(tmp_path: Path) -> None:
    with App(tmp_path, same_pid=True) as app:
        process = app.start()
        with app.connect() as kept:
            ask_on(kept)
            process.send_signal(signal.SIGHUP)
            app.wait_for("ready 2")
            app.wait_for("handed over to")
            # Gone between the child's start and the moment of the exec.
            app.deploy(release="gone")
            (tmp_path / "config.json").rename(tmp_path / "config.away")
        app.wait_for("Traceback|FileNotFoundError")
        (tmp_path / "config.away").rename(tmp_path / "config.json")
        assert process.wait(20) != 0
        assert app.generation() == 2
        app.stop()


@pytest.mark.parametrize("misbehave", ["boot:exit1", "ready:kill"])
def test_new_code_that_fails_only_in_the_original_leaves_the_child_serving(tmp_path: Path, misbehave: str) -> None:
    with App(tmp_path, same_pid=True) as app:
        process = app.start()
        with app.connect() as kept:
            ask_on(kept)
            process.send_signal(signal.SIGHUP)
            app.wait_for("handed over to")
            app.deploy(misbehave=misbehave, probation=10)
        process.wait(20)
        eventually(lambda: app.generation() == 2, "the child does not serve")
        # Whoever starts the service again takes over from it.
        app.deploy(misbehave="", probation=0.3)
        again = app.start()
        eventually(lambda: app.pids() == {again.pid}, "the child does not end")
        app.stop()


def test_a_stop_while_the_child_serves_ends_both(tmp_path: Path) -> None:
    with App(tmp_path, same_pid=True) as app:
        process = app.start()
        with app.connect() as kept:
            ask_on(kept)
            process.send_signal(signal.SIGHUP)
            app.wait_for("handed over to")
            process.send_signal(signal.SIGTERM)
            app.wait_for(rf"^(?!{process.pid})\d+ ends stop")
        assert process.wait(20) == 0
        app.gone()
        assert not app.path.exists()


def test_a_signal_between_the_exec_and_ready_waits(tmp_path: Path) -> None:
    with App(tmp_path, same_pid=True) as app:
        pid = app.start().pid
        app.deploy(release="slow")
        os.kill(pid, signal.SIGHUP)
        app.wait_for(rf"^{pid} log .*this process becomes generation 3")
        os.kill(pid, signal.SIGTERM)  # it is being executed, or waits for its handlers
        app.gone()
        assert not [line for line in app.lines if "Terminated" in line]
        assert not alive(pid)


def test_the_manager_hears_of_one_process_only(tmp_path: Path) -> None:
    folder = tmp_path / "manager"
    folder.mkdir()
    manager = Manager(folder / "notify")
    try:
        with App(tmp_path, same_pid=True) as app:
            pid = app.start(env={"NOTIFY_SOCKET": manager.listener.address}).pid
            os.kill(pid, signal.SIGHUP)
            upgraded(app, pid, 3)
            assert manager.said(pid) == ["READY", "RELOADING+MONOTONIC_USEC", "READY"]
            app.stop()
            assert manager.said(pid) == ["READY", "RELOADING+MONOTONIC_USEC", "READY", "STOPPING"]
            assert {sender for sender, _ in manager.heard} == {pid}
    finally:
        manager.close()
