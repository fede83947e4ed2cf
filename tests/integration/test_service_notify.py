"""What the service manager is told, word by word, by a service that begins, is replaced, fails to be, and ends."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from ..support.manager import Manager
from .services import App

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def start(app: App, manager: Manager) -> int:
    return app.start(env={"NOTIFY_SOCKET": manager.listener.address}).pid


def test_a_start_and_a_stop(tmp_path: Path, manager: Manager) -> None:
    with App(tmp_path) as app:
        pid = start(app, manager)
        assert "NOTIFY_SOCKET" not in app.ask("environment")
        app.stop()
        assert manager.said(pid) == ["READY", "STOPPING"]


def test_an_upgrade_names_the_new_main_process_after_probation(tmp_path: Path, manager: Manager) -> None:
    with App(tmp_path, probation=0.5) as app:
        pid = start(app, manager)
        before = time.monotonic_ns() // 1000
        app.ask("upgrade")
        second = app.pid()
        assert manager.said(pid) == ["READY", "RELOADING+MONOTONIC_USEC", "MAINPID+MAINPIDFDID+READY", "BARRIER"]
        fields = {key: value for sender, message in manager.heard if sender == pid for key, value in message.items()}
        assert before <= int(fields["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert int(fields["MAINPID"]) == second
        assert int(fields["MAINPIDFDID"]) == manager.ids[second]
        # The new one spoke before it was named, and says no STOPPING for the old one, which says none either.
        senders = [sender for sender, message in manager.heard if "READY" in message]
        assert senders == [pid, second, pid]
        app.wait_for(" closed")
        app.ask("upgrade")
        third = app.pid()
        assert manager.said(second) == ["READY", "RELOADING+MONOTONIC_USEC", "MAINPID+MAINPIDFDID+READY", "BARRIER"]
        app.wait_for(" closed", count=2)
        app.stop()
        assert manager.said(third) == ["READY", "STOPPING"]
        assert "STOPPING" not in manager.said(pid) + manager.said(second)


@pytest.mark.parametrize("misbehave", ["start:exit1", "boot:exit1", "ready:kill"])
def test_an_upgrade_that_fails_ends_the_reload(tmp_path: Path, manager: Manager, misbehave: str) -> None:
    with App(tmp_path, probation=10) as app:
        pid = start(app, manager)
        app.deploy(misbehave=misbehave)
        app.ask("upgrade")
        app.stop()
        assert manager.said(pid) == ["READY", "RELOADING+MONOTONIC_USEC", "READY", "STOPPING"]


def test_an_upgrade_that_a_hook_vetoes_is_no_reload(tmp_path: Path, manager: Manager) -> None:
    with App(tmp_path, hooks=True, veto=["before upgrade"]) as app:
        pid = start(app, manager)
        assert app.ask("upgrade").startswith("Vetoed")
        app.stop()
        assert manager.said(pid) == ["READY", "STOPPING"]


def test_a_stranger_takes_the_service_out_of_the_unit(tmp_path: Path, manager: Manager) -> None:
    with App(tmp_path) as app:
        first = app.start(env={"NOTIFY_SOCKET": manager.listener.address})
        second = app.start()
        assert first.wait(20) == 0
        assert manager.said(first.pid) == ["READY", "STOPPING"]
        app.stop()
        assert manager.said(second.pid) == []


def test_a_stranger_that_fails_is_not_mentioned(tmp_path: Path, manager: Manager) -> None:
    with App(tmp_path, probation=10) as app:
        pid = start(app, manager)
        app.deploy(misbehave="ready:kill")
        app.start(wait=False)
        app.wait_for("took the service back")
        app.stop()
        assert manager.said(pid) == ["READY", "STOPPING"]


def test_a_stop_in_probation_is_not_the_end_of_the_service(tmp_path: Path, manager: Manager) -> None:
    with App(tmp_path, probation=60) as app:
        first = app.start(env={"NOTIFY_SOCKET": manager.listener.address})
        first.send_signal(signal.SIGHUP)
        app.wait_for("ready 2")
        app.wait_for("this process stays for")
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        assert manager.said(first.pid) == ["READY", "RELOADING+MONOTONIC_USEC", "MAINPID+MAINPIDFDID+READY", "BARRIER"]
        app.stop()


def test_a_manager_that_is_gone_does_not_stop_the_service(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        app.start(env={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
        assert app.find("notifying the service manager at .*nobody")
        app.ask("upgrade")
        assert app.generation() == 2
        app.stop()
        app.gone()
