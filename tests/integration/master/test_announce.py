"""What the master tells its own supervisor, word by word, through its life; and that no generation does it in its place."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ...support.manager import Manager
from ..cli import wait_for
from . import Service, quick

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UPGRADE = ["RELOADING+MONOTONIC_USEC", "READY"]
#: Said in between, as often as something is under way.
ASIDE = ("", "EXTEND_TIMEOUT_USEC", "WATCHDOG", "FDSTORE+FDNAME+FDPOLL", "FDSTOREREMOVE+FDNAME")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def start(folder: Path, manager: Manager, *options: str, env: dict[str, str] | None = None, **more: Any) -> Service:
    variables = {"NOTIFY_SOCKET": manager.listener.address, **(env or {})}
    return Service(folder, *quick(*options), env=variables, **more)


def story(manager: Manager, pid: int) -> list[str]:
    return [words for words in manager.said(pid) if words not in ASIDE]


def heard(manager: Manager, pid: int, *expected: str) -> None:
    wait_for(lambda: story(manager, pid) == list(expected), f"{expected}, not {story(manager, pid)}")


def test_a_start_an_upgrade_and_a_stop(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        heard(manager, service.pid, "READY")
        before = time.monotonic_ns() // 1000
        service.upgrade()
        heard(manager, service.pid, "READY", *UPGRADE)
        moment = next(int(fields["MONOTONIC_USEC"]) for _, fields in manager.heard if "MONOTONIC_USEC" in fields)
        assert before <= moment <= time.monotonic_ns() // 1000
        assert service.stop() == 0
        # Once when it begins to drain, once when the generations are told: nothing comes after it.
        heard(manager, service.pid, "READY", *UPGRADE, "STOPPING", "STOPPING")
        assert {pid for pid, _ in manager.heard} == {service.pid}


def test_the_status_is_a_line_that_tells_how_the_service_is(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        wait_for(lambda: "Generation 1 serves" in manager.statuses(service.pid), "the first generation")
        service.upgrade()
        service.settled(2)
        wait_for(lambda: manager.statuses(service.pid)[-1] == "Generation 2 serves", "the second")
        said = manager.statuses(service.pid)
        for step in ("begins", "start", "ready", "switch", "settle", "probation"):
            assert any(line.endswith(f"; upgrade from 1 to 2: {step}") for line in said), (step, said)
        assert "Generation 2 serves; generation 1 drains" in said
        service.stop()
        assert any(line.startswith("Draining: generation 2") for line in manager.statuses(service.pid))
        assert manager.statuses(service.pid)[-1].startswith("Stopping: generation 2")


@pytest.mark.parametrize("fault", ["exit3", "die0.2"])
def test_a_failed_upgrade_ends_the_reload_and_says_why(tmp_path: Path, manager: Manager, fault: str) -> None:
    with start(tmp_path, manager, "--ready", "notify", "--probation", "20s") as service:
        service.release(FAULT=fault)
        with pytest.raises(HandoffError):
            service.upgrade()
        heard(manager, service.pid, "READY", *UPGRADE)
        how = "failed" if fault == "exit3" else "was rolled back"
        said = manager.statuses(service.pid)[-1]
        assert said.startswith(f"Generation 1 serves; the upgrade to 2 {how}: "), said
        # The next success takes its place.
        service.release()
        service.command("--wait", "served")
        wait_for(lambda: "failed" not in manager.statuses(service.pid)[-1], "a status without the failure")


def test_an_upgrade_that_is_refused_is_no_reload(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        service.env_file.write_text("this is no assignment\n", encoding="utf-8")
        with pytest.raises(HandoffError):
            service.upgrade()
        heard(manager, service.pid, "READY")


def test_a_first_generation_that_fails_is_told_in_the_status(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, command=[sys.executable, "-c", "exit(9)"], wait=False) as service:
        assert service.running.ends() == 9
        heard(manager, service.pid)
        assert manager.statuses(service.pid)[-1].startswith("generation 1 could not be started: ")


def test_a_stop_during_an_upgrade_is_the_last_word(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, "--probation", "60s") as service:
        ask(service.path, "upgrade", {"wait": False})
        wait_for(lambda: service.status()["generation"] == 2, "the switch")
        service.stop()
        said = story(manager, service.pid)
        assert said[:2] == ["READY", "RELOADING+MONOTONIC_USEC"]
        assert set(said[2:]) == {"STOPPING"}


def test_the_manager_is_asked_for_time_while_something_takes_it(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        extensions = [words for words in manager.said(service.pid) if words == "EXTEND_TIMEOUT_USEC"]
        assert extensions, "none while it started"
        before = len(manager.heard)
        service.upgrade()
        assert any("EXTEND_TIMEOUT_USEC" in fields for _, fields in manager.heard[before:])
        before = len(manager.heard)
        service.stop()
        assert any("EXTEND_TIMEOUT_USEC" in fields for _, fields in manager.heard[before:])


def test_an_upgrade_of_the_master_is_a_reload_of_the_same_process(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        code, _, errors = service.command("--master")
        assert code == 0, errors
        heard(manager, service.pid, "READY", *UPGRADE)
        service.upgrade()
        heard(manager, service.pid, "READY", *UPGRADE, *UPGRADE)


def test_a_sign_of_life_is_given_twice_in_the_watchdogs_time(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, env={"WATCHDOG_USEC": "200000"}) as service:
        wait_for(lambda: manager.said(service.pid).count("WATCHDOG") >= 5, "five signs")


def test_a_watchdog_for_another_process_is_not_served(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, env={"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}) as service:
        service.upgrade()
        assert "WATCHDOG" not in manager.said(service.pid)


@pytest.mark.parametrize("ready", ["accept", "http:/healthz"])
def test_the_sign_of_life_can_depend_on_the_serving_generation(tmp_path: Path, manager: Manager, ready: str) -> None:
    with start(
        tmp_path, manager, "--watchdog", "serving", "--ready", ready, env={"WATCHDOG_USEC": "200000"}
    ) as service:
        wait_for(lambda: manager.said(service.pid).count("WATCHDOG") >= 5, "five signs")
        (pid,) = service.generations()[1]["pids"]
        if ready == "accept":
            service.release(FAULT="exit1")  # it is started again, in vain
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: manager.silent_since("WATCHDOG") > 1.0, "silence")
        if ready != "accept":
            os.kill(pid, signal.SIGCONT)


def test_a_generation_that_was_restarted_can_give_a_sign_of_life_again(tmp_path: Path, manager: Manager) -> None:
    """By a command that takes a moment, which a death long ago does not cut short."""
    options = ("--watchdog", "serving", "--ready", "command:sleep 0.05")
    with start(tmp_path, manager, *options, env={"WATCHDOG_USEC": "200000"}) as service:
        (pid,) = service.generations()[1]["pids"]
        os.kill(pid, signal.SIGKILL)
        service.running.says("generation 1 was restarted")
        before = manager.said(service.pid).count("WATCHDOG")
        wait_for(lambda: manager.said(service.pid).count("WATCHDOG") >= before + 5, "five more signs")


def test_a_manager_that_is_gone_is_mentioned_once_and_the_service_serves(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), env={"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as service:
        service.upgrade()
        assert service.running.text().count("notifying the service manager at ") == 1
        assert service.stop() == 0


def test_no_generation_hears_of_the_supervisor(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, env={"WATCHDOG_USEC": "60000000"}) as service:
        (pid,) = service.generations()[1]["pids"]
        with open(f"/proc/{pid}/environ", "rb") as file:
            assert b"NOTIFY_SOCKET" not in (text := file.read())
            assert b"WATCHDOG" not in text


def test_a_wrapper_that_systemd_started_instead_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "systemd"
    folder.mkdir()
    manager = Manager(folder / "notify")
    try:
        with start(tmp_path, manager, env={"SYSTEMD_EXEC_PID": "1"}) as service:
            assert "systemd started process 1 and listens to it alone" in service.running.text()
    finally:
        manager.close()


# --- a readiness descriptor ------------------------------------------------------------------------------------


def test_a_newline_comes_at_the_readiness_descriptor_and_nobody_else_holds_it(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    try:
        with Service(tmp_path, *quick("--ready-fd", str(theirs)), pass_fds=[theirs]) as service:
            os.close(theirs)
            assert os.read(ours, 10) == b"\n"
            assert os.read(ours, 10) == b""  # closed, also in the generation
            service.upgrade()
            assert service.command("--master")[0] == 0
    finally:
        os.close(ours)


def test_a_readiness_descriptor_that_is_not_open_is_an_error(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready-fd", "77"), wait=False) as service:
        assert service.running.ends() == 125
        assert "--ready-fd 77: whoever starts us has not opened that descriptor" in service.running.text()


def test_nothing_is_written_when_the_start_fails(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    try:
        options = quick("--ready-fd", str(theirs))
        with Service(
            tmp_path, *options, command=[sys.executable, "-c", "exit(9)"], wait=False, pass_fds=[theirs]
        ) as service:
            os.close(theirs)
            assert service.running.ends() == 9
            assert os.read(ours, 10) == b""
    finally:
        os.close(ours)
