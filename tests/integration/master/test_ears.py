"""Servers that shut down or change the listener that they were given, while they serve."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from ..cli import wait_for
from . import Load, Service, quick, request, rude

if TYPE_CHECKING:
    from pathlib import Path


def deafening(when: str = "") -> list[str]:
    """A server that shuts its listener down when it gets USR1, and lives on. ``when`` is done before it accepts."""
    command = rude()
    command[2] = command[2].replace(
        "while True:\n    connection, _ = listener.accept()",
        "def shut(*_):\n"
        "    try: listener.shutdown(socket.SHUT_RDWR)\n"
        "    except OSError: pass\n"
        "signal.signal(signal.SIGUSR1, shut)\n"
        f"{when}\n"
        "while True:\n"
        "    try: connection, _ = listener.accept()\n"
        "    except OSError:\n"
        "        print('deaf', flush=True)\n"
        "        while True: time.sleep(1000)",
    )
    assert "def shut" in command[2]
    return command


def shut(service: Service, number: int) -> None:
    os.kill(service.generations()[number]["pids"][0], signal.SIGUSR1)


def refused(load: Load) -> dict[str, int]:
    return {kind: count for kind, count in load.failures.items() if "refused" in kind}


@pytest.mark.parametrize("kind", ["tcp", "unix", "shared tcp", "shared unix"])
def test_a_serving_generation_that_is_deaf_is_replaced(tmp_path: Path, kind: str) -> None:
    """Nobody asks: the kernel tells. What waited in the queue that was shut down is reset by the kernel, nothing else."""
    path = tmp_path / "app.sock"
    bind = f"http=unix:{path}" if "unix" in kind else "http=127.0.0.1:0"
    if kind == "shared tcp":  # the kernel takes the port away that it chose itself
        with socket.create_server(("127.0.0.1", 0)) as free:
            bind = f"http=127.0.0.1:{free.getsockname()[1]}"
    options = quick("--switch", "shared", "--ready", "delay:0.2s") if "shared" in kind else quick()
    with Service(tmp_path, *options, bind=bind, command=deafening(), env={"SLOW": "0"}) as service:
        address = str(path) if "unix" in kind else service.address()
        with Load(address, 2) as load:
            shut(service, 1)
            service.running.says("generation 1 shut its listener http")
            service.running.says("upgraded from generation 1 to generation 2")
            load.heard(2)
            load.end()
            if kind == "tcp":  # the others have no queue in which a connection could wait from the first moment
                assert not refused(load), load.failures
                assert sum(load.failures.values()) <= 2, load.failures
        service.settled(2)
        assert service.running.text().count("new connections wait for the next generation") == 1
        assert request(address)[1] == 2
        assert service.upgrade()["result"] == "done"


def test_one_that_is_deaf_before_it_serves_never_does(tmp_path: Path) -> None:
    with (
        Service(tmp_path, *quick("--ready", "delay:0.5s"), command=deafening("if fault == 'shut': shut()")) as service,
        Load(service.address(), 2) as load,
    ):
        service.release(FAULT="shut")
        code, _, errors = service.command()
        assert (code, "shut its listener http" in errors, "before it served" in errors) == (1, True, True), errors
        service.settled(1)
        service.release()
        assert service.command()[0] == 0
        load.heard(3)
        load.end()
        assert not load.failures


@pytest.mark.parametrize("step", ["canary", "probation"])
def test_one_that_is_deaf_while_it_is_tried_is_taken_back(tmp_path: Path, step: str) -> None:
    options = ("--settle", "0.1", "--probation", "600s", *(("--canary", "50%:600s") if step == "canary" else ()))
    with Service(tmp_path, *options, command=deafening(), env={"SLOW": "0"}) as service:
        with Load(service.address(), 2) as load:
            service.command("--no-wait")
            load.heard(2)
            wait_for(lambda: service.status()["last_upgrade"]["step"].startswith(step))
            shut(service, 2)
            service.running.says("upgrade to generation 2 failed")
            last = service.status()["last_upgrade"]
            how = "as a canary" if step == "canary" else "in probation"
            assert f"down {how}; generation 1 serves again" in last["reason"]
            assert last["lost"] is None  # it lives, and finishes what it had accepted
            load.heard(1, 100)
            load.end()
            assert not refused(load), load.failures
            assert sum(load.failures.values()) <= 2, load.failures
        service.settled(1)


def test_a_generation_that_stays_deaf_because_its_successor_fails_is_replaced_later(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--pre-start", "sh -c 'exit ${VETO:-0}'"), command=deafening()) as service:
        address = service.address()
        service.release(VETO="1")
        shut(service, 1)
        service.running.says("upgrade to generation 2 failed")
        waiting = Load(address, 1)
        waiting._threads[0].start()
        waiting._over.set()
        wait_for(lambda: service.status()["listeners"][0]["queue"] == 1, "a connection that waits")
        service.release()
        waiting.end()
        assert list(waiting.generations()) == [3]
        assert not waiting.failures


@pytest.mark.parametrize("switch", ["kernel", "shared"])
def test_a_backlog_that_a_server_lowers_is_raised_again(tmp_path: Path, switch: str) -> None:
    command = rude()
    command[2] = command[2].replace("listener.setblocking(True)", "listener.setblocking(True); listener.listen(5)")
    with Service(tmp_path, *quick("--switch", switch), command=command) as service:
        service.running.says("http: its backlog had been lowered by generation 1; repaired")
        assert service.status()["listeners"][0]["backlog"] > 100
