"""uvicorn as gunicorn's worker: replaced by gunicorn itself, and under the master. No client has a request fail."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping, wait_for
from ..master import Load, Service, quick
from . import Client, KeepAlive

pytest.importorskip("gunicorn", reason="needs gunicorn: pip install 'fdhandoff[test]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'fdhandoff[test]'")

#: Not ``python -m gunicorn``: at USR2 that starts itself again as a file, next to which its own ``http`` hides Python's.
COMMAND = [
    sys.executable, str(Path(sysconfig.get_path("scripts"), "gunicorn")),
    "-k", f"{PACKAGE}.servers.gunicorn_uvicorn.Worker", "--keep-alive", "60",
    "--graceful-timeout", "20", "--no-control-socket", "tests.integration.servers.app:app",
]  # fmt: skip
WORKERS = 2
RELOADS = 3


class Gunicorn(Running):
    def __init__(self, port: int, pidfile: Path, *options: str, **env: str) -> None:
        self._start(
            [*COMMAND, "-b", f"127.0.0.1:{port}", "-w", str(WORKERS), "--pid", str(pidfile), *options],
            env=environment(**env),
        )

    def workers(self) -> set[int]:
        return set(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))

    def booted(self, count: int = WORKERS) -> None:
        wait_for(lambda: self.text().count("Application startup complete") >= count, f"workers: {self.text()}")


def test_hup_replaces_the_workers_and_no_request_fails(tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    server = Gunicorn(port, tmp_path / "pid")
    with stopping(server):
        server.booted()
        with Load(address, clients=2) as load, KeepAlive(address) as busy, KeepAlive(address, pause=0.3) as lazy:
            for round_ in range(1, RELOADS + 1):
                old = server.workers()
                server.signal(signal.SIGHUP)
                wait_for(lambda gone=old: not gone & server.workers(), "the old workers' end")
                server.booted(WORKERS * (round_ + 1))
                load.heard(1)
                busy.heard(1)
        assert not load.failures
        assert not busy.failures
        assert not lazy.failures
        assert "cut at the deadline" not in server.text()


def test_a_websocket_is_told_to_come_again(tmp_path: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client as websockets

    port = free_port()
    server = Gunicorn(port, tmp_path / "pid")
    with stopping(server):
        server.booted()
        with websockets.connect(f"ws://127.0.0.1:{port}/") as chat:
            chat.send("hello")
            assert chat.recv() == "1 hello"
            server.signal(signal.SIGHUP)
            with pytest.raises(ConnectionClosed) as closed:
                chat.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert "cut at the deadline" not in server.text()


def test_usr2_replaces_gunicorn_and_no_request_fails(tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    server = Gunicorn(port, tmp_path / "pid")
    with stopping(server), contextlib.ExitStack() as stack:
        server.booted()
        with Load(address, clients=2) as load, KeepAlive(address) as busy:
            server.signal(signal.SIGUSR2)
            wait_for((tmp_path / "pid.2").exists, "the new gunicorn")
            stack.callback(_end, int((tmp_path / "pid.2").read_text()))
            server.booted(2 * WORKERS)
            server.signal(signal.SIGTERM)
            wait_for(lambda: server.process.poll() is not None, "the old gunicorn's end")
            load.heard(1)
            busy.heard(1)
        assert not load.failures
        assert not busy.failures


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: _state(pid) in "ZX", f"the end of {pid}")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_under_the_master_connections_move_to_the_new_workers(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "http:/"), command=[*COMMAND, "-w", str(WORKERS)]) as service:
        address = service.address()
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(10)]
            assert {client.ask() for client in idle} == {1}
            with Load(address, clients=2) as load, KeepAlive(address) as busy:
                for number in range(2, RELOADS + 2):
                    service.upgrade()
                    busy.heard(number)
                    service.settled(number)
            assert {client.ask() for client in idle} == {RELOADS + 1}
            assert not load.failures
            assert not busy.failures
            assert busy.reconnects == 0
        assert service.stop() == 0


def _established(port: int) -> int:
    """Connections that somebody has accepted: they have an inode."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] != "0" for row in rows)


def test_graceful_timeout_cuts_what_does_not_end(tmp_path: Path) -> None:
    port = free_port()
    server = Gunicorn(port, tmp_path / "pid", "--graceful-timeout", "1")
    with stopping(server), contextlib.ExitStack() as stack:
        server.booted()
        client = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        client.send("/slow/300")
        old = server.workers()
        wait_for(lambda: _established(port) >= 1, "the request to be inside")
        server.signal(signal.SIGHUP)
        wait_for(lambda: not old & server.workers(), "the old workers' end")
        server.says("1 connections cut at the deadline (127.0.0.1:")
        with pytest.raises(OSError, match=r"closed|reset"):
            client.receive()


def test_an_application_that_does_not_start_ends_gunicorn(tmp_path: Path) -> None:
    # One worker: where two fail at once, gunicorn may end with 1 and a traceback.
    server = Gunicorn(free_port(), tmp_path / "pid", "-w", "1", BOOT="fail")
    assert server.ends() == 3, server.text()
    assert "the database is not there" in server.text()
