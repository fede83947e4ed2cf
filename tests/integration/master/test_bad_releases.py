"""Bad releases of every kind: the upgrade says why, the old one serves on, nothing is left, the next good one goes through."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ..cli import DEADLINE, Running, wait_for
from . import Load, Service, kill, quick, request, rude

if TYPE_CHECKING:
    from pathlib import Path

HTTP = ("--ready", "http:/", "--ready-timeout", "1.5")

#: What the new release does, the options, and what the operator is told.
BEFORE_THE_SWITCH = {
    "exits 0": ({"FAULT": "exit0"}, (), "exited with status 0"),
    "exits 1": ({"FAULT": "exit1"}, (), "exited with status 1"),
    "hangs before it listens": (
        {"FAULT": "hang"},
        ("--ready-timeout", "1"),
        "did not become ready (accept) within 1 s",
    ),
    "never answers": ({"FAULT": "silent"}, HTTP, "was not answered within"),
    "answers 500": ({"FAULT": "500"}, HTTP, "answered 500"),
    "never says READY": (
        {"FAULT": "mute"},
        ("--ready", "notify", "--ready-timeout", "1"),
        "did not become ready (notify)",
    ),
    "fails its check": ({"CHECK": "1"}, ("--check", "sh -c 'exit ${CHECK:-0}'"), "the check of the new release failed"),
    "is never ready as a command says": (
        {"CHECK": "1"},
        ("--ready", "command:sh -c 'exit ${CHECK:-0}'", "--ready-timeout", "1"),
        "the command exited with status 1",
    ),
}


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(("release", "options", "reason"), BEFORE_THE_SWITCH.values(), ids=BEFORE_THE_SWITCH)
def test_users_see_nothing_of_what_fails_before_the_switch(
    tmp_path: Path, release: dict[str, str], options: tuple[str, ...], reason: str
) -> None:
    with Service(tmp_path, *quick(*options)) as service, Load(service.address(), 2) as load:
        assert service.upgrade()["result"] == "done"  # and so all that is opened once is open
        service.settled(2)
        before = descriptors(service.pid)
        service.release(**release)
        code, out, errors = service.command()
        assert (code, reason in errors, out) == (1, True, ""), errors
        assert "generation 2 serves" in service.running.says("upgrade to generation 3 failed")
        service.settled(2)
        last = service.status()["last_upgrade"]
        assert (last["result"], reason in last["reason"], last["from"], last["to"]) == ("failed", True, 2, 3)
        load.heard(2)
        assert set(load.generations()) <= {1, 2}
        wait_for(lambda: descriptors(service.pid) <= before, f"{before} descriptors, not {descriptors(service.pid)}")
        service.release()
        assert service.command()[0] == 0
        load.heard(4)
        load.end()
        assert not load.failures


def test_a_syntax_error_is_told_and_nobody_notices(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(rude()[2])
    with (
        Service(tmp_path, *quick(), command=[sys.executable, str(script)]) as service,
        Load(service.address(), 2) as load,
    ):
        script.write_text("def broken(:\n" + rude()[2])
        code, _, errors = service.command()
        assert (code, "exited with status 1" in errors) == (1, True), errors
        script.unlink()
        code, _, errors = service.command()
        assert (code, "exited with status 2" in errors) == (1, True), errors
        script.write_text(rude()[2])
        assert service.command()[0] == 0
        service.settled()
        load.end()
        assert not load.failures


@pytest.mark.parametrize("moment", ["at once", "in probation"])
def test_a_probe_does_not_wait_for_one_that_is_dead(tmp_path: Path, moment: str) -> None:
    """It accepts nothing, so that the probe waits in its queue, and dies: nobody waits for the answer any longer. And the probe
    is no client: it is not given to the old one."""
    options = ("--settle", "0", "--probation", "600s", "--ready", "http:/", "--ready-timeout", "600s")
    with Service(tmp_path, *options) as service:
        service.release(FAULT="exit1" if moment == "at once" else "")
        begun = Running("upgrade", str(service.path))
        if moment == "in probation":
            wait_for(lambda: (service.status()["last_upgrade"] or {"step": ""})["step"] == "probation")
            (pid,) = service.generations()[2]["pids"]
            os.kill(pid, signal.SIGSTOP)
            wait_for(lambda: service.status()["listeners"][0]["queue"] == 1, "a probe that waits")
            kill(pid)
        began = time.monotonic()
        assert begun.ends() == 1
        assert time.monotonic() - began < 4  # a probe waits for five seconds
        service.settled(1)
        assert "through the master" not in service.running.text()


def test_one_that_dies_in_probation_is_taken_back(tmp_path: Path) -> None:
    """What it had accepted fails; all that waits in its queue, and all later ones, are served by the old one."""
    options = ("--settle", "0.1", "--probation", "5")
    with Service(tmp_path, *options, env={"SLOW": "0"}) as service, Load(service.address(), 2) as load:
        service.release(FAULT="die1.5", SLOW="0")
        code, _, errors = service.command()
        after = time.monotonic()
        assert (code, "died in probation" in errors, "exited with status 7" in errors) == (1, True, True), errors
        load.heard(1, 100)
        load.end()
        assert load.generations()[2] > 0
        assert set(load.generations(after)) == {1}
        assert sum(load.failures.values()) <= 2, load.failures  # at most one for each client: what was accepted
        assert service.status()["last_upgrade"]["result"] == "rolled back"
        service.release()
        assert service.upgrade(wait="served")["result"] == "served"


@pytest.mark.parametrize("step", ["canary", "probation"])
def test_connections_that_die_with_a_release_are_counted(tmp_path: Path, step: str) -> None:
    options = ("--settle", "0.1", "--probation", "20", *(("--canary", "100%:20s") if step == "canary" else ()))
    with Service(tmp_path, *options, env={"SLOW": "0"}) as service:
        address = service.address()
        upgrade = Running("upgrade", str(service.path))
        wait_for(lambda: (service.status()["last_upgrade"] or {"step": ""})["step"].startswith(step), step)
        slow = [socket.create_connection(address) for _ in range(20)]
        for one in slow:
            one.sendall(b"GET /sleep60 HTTP/1.1\r\n\r\n")
        wait_for(lambda: service.generations()[2]["active"] == 20)
        kill(service.generations()[2]["pids"][0])
        assert upgrade.ends() == 1
        assert "and 20 connections with it, as seen" in upgrade.text().splitlines()[-1]
        lost = service.status()["last_upgrade"]["lost"]
        assert (lost["connections"], 0 <= lost["seen"] < DEADLINE, lost["rescued"]) == (20, True, 0)
        for one in slow:
            one.close()
        service.release()
        assert service.upgrade(wait="served", canary="")["lost"] is None


def test_what_waits_for_a_generation_that_died_is_served(tmp_path: Path) -> None:
    """The new one stops accepting as soon as it serves: its queue fills, then it dies."""
    good = rude()[2]
    stalls = good.replace(
        "while True:\n    connection",
        "accepted = 0\nwhile True:\n    accepted += 1\n    while accepted > 2: time.sleep(1)\n    connection",
    )
    assert stalls != good
    script = tmp_path / "server.py"
    script.write_text(good)
    with Service(
        tmp_path, "--settle", "0.1", "--probation", "10", env={"SLOW": "0"}, command=[sys.executable, str(script)]
    ) as service:
        script.write_text(stalls)
        address = service.address()
        assert service.upgrade(wait="served")["result"] == "served"
        waiting = Load(address, 5)
        for thread in waiting._threads:
            thread.start()
        waiting._over.set()
        wait_for(lambda: service.status()["listeners"][0]["queue"] >= 4)
        kill(service.generations()[2]["pids"][0])
        waiting.end()
        assert "generation 1 serves " in service.running.says("connections that waited for generation 2")
        assert waiting.generations()[1] >= 4
        wait_for(lambda: service.status()["last_upgrade"]["lost"]["rescued"] >= 4)
        assert sum(waiting.failures.values()) <= 1  # the one that it had accepted


def test_a_probe_that_fails_in_probation_takes_it_back(tmp_path: Path) -> None:
    """It answers as long as a file is there; --ready http: goes on asking."""
    script = tmp_path / "server.py"
    script.write_text(
        rude()[2].replace(
            "            connection.sendall(answer)",
            "            bad = os.path.exists(os.environ.get('BAD', ''))\n"
            "            connection.sendall(b'HTTP/1.1 503 Sick\\r\\nContent-Length: 1\\r\\n\\r\\n-' if bad else answer)",
        )
    )
    with Service(
        tmp_path, "--settle", "0.1", "--probation", "20", "--ready", "http:/", command=[sys.executable, str(script)]
    ) as service:
        service.release(BAD=str(tmp_path / "bad"))
        begun = service.upgrade(wait="served")
        assert begun["result"] == "served"
        (tmp_path / "bad").touch()
        service.running.says("upgrade to generation 2 failed")
        assert "failed its probe of / 3 times" in service.status()["last_upgrade"]["reason"]
        assert request(service.address())[1] == 1
        service.settled(1)


def test_an_old_generation_that_dies_in_the_others_probation_is_replaced(tmp_path: Path) -> None:
    with Service(tmp_path, "--settle", "0.1", "--probation", "20") as service:
        service.upgrade(wait="served")
        kill(service.generations()[1]["pids"][0])
        service.running.says("generation 1 was restarted")
        kill(service.generations()[2]["pids"][0])
        service.running.says("generation 1 serves")
        assert request(service.address())[1] == 1


def test_stop_during_an_upgrade_ends_both(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready-timeout", "60")) as service:
        service.release(FAULT="hang")
        assert service.command("--no-wait")[0] == 0
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 5


def test_an_upgrade_can_be_aborted_at_every_step(tmp_path: Path) -> None:
    options = quick("--check", "sh -c 'sleep ${CHECK:-0}'", "--settle", "0.1", "--probation", "20")
    with Service(tmp_path, *options) as service, Load(service.address(), 2) as load:
        for variables, step in (({"CHECK": "30"}, "check"), ({"FAULT": "hang"}, "ready"), ({}, "probation")):
            service.release(**variables)
            service.command("--no-wait")
            wait_for(lambda step=step: service.status()["last_upgrade"]["step"] == step, step)
            assert service.command("--abort")[0] == 0
            wait_for(lambda: service.status()["state"] == "serving")
            assert "aborted" in service.status()["last_upgrade"]["reason"]
            service.settled(1)
        load.end()
        assert not load.failures
