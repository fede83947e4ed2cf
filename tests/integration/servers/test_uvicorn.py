"""uvicorn with its adapter: alone, handing over to strangers, and under the master. No request fails, and no client whose
connection can move is told to reconnect."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.signals import SAME_SECONDS

from ..cli import DEADLINE, PACKAGE, Running, environment, free_port, status, stopping, verb, wait_for
from ..master import Load, Service, quick
from . import Client, KeepAlive
from .slow import until

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'fdhandoff[test]'")

APP = "tests.integration.servers.app:app"
KINDS = [("h11", "asyncio"), ("httptools", "uvloop")]
UPGRADES = 3


class Uvicorn(Running):
    """One process of it."""

    def __init__(self, path: Path, port: int, *options: str, **env: str) -> None:
        words = [APP, "--port", str(port), "--no-access-log", "--handoff-path", str(path / "h.sock"), *options]
        self._start(
            [sys.executable, "-m", f"{PACKAGE}.servers.uvicorn", *words, "--handoff-probation", "500ms"],
            env=environment(**env),
        )

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def kind(http: str, loop: str) -> list[str]:
    return ["--http", http, "--loop", loop]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "r"
    place.mkdir(0o700)
    return place


@pytest.mark.parametrize(("http", "loop"), KINDS)
def test_strangers_take_over_and_every_connection_stays(folder: Path, http: str, loop: str) -> None:
    port = free_port()
    options = [*kind(http, loop), "--timeout-keep-alive", "60"]
    with contextlib.ExitStack() as stack:
        old = Uvicorn(folder, port, *options)
        stack.enter_context(stopping(old))
        old.serves(1)
        address = ("127.0.0.1", port)
        idle = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(20)]
        assert {client.ask() for client in idle} == {1}
        with Load(address, clients=2) as load, KeepAlive(address) as busy, KeepAlive(address, pause=0.2) as lazy:
            for number in range(2, UPGRADES + 2):
                new = Uvicorn(folder, port, *options)
                stack.callback(new.stop)
                new.serves(number)
                assert old.ends() == 0, old.text()
                assert "connections moved on" in old.text()
                busy.heard(number)
                lazy.heard(number, 4)
                load.heard(number)
                old = new
        assert {client.ask() for client in idle} == {number}, "through all of them"
        assert not load.failures
        assert not busy.failures
        assert not lazy.failures
        assert (busy.reconnects, lazy.reconnects) == (0, 0)
        for client in idle:
            client.close()
    assert os.listdir(folder) == [], "nothing is left of it"


@pytest.mark.parametrize(("http", "loop"), KINDS)
def test_under_the_master_connections_move_with_each_upgrade(tmp_path: Path, http: str, loop: str) -> None:
    command = [
        sys.executable, "-m", f"{PACKAGE}.servers.uvicorn", APP, "--no-access-log", "--timeout-keep-alive", "60",
        *kind(http, loop),
    ]  # fmt: skip
    with Service(tmp_path, *quick("--ready", "http:/"), command=command) as service:
        address = service.address()
        idle = [Client(address) for _ in range(20)]
        try:
            assert {client.ask() for client in idle} == {1}
            with Load(address, clients=2) as load, KeepAlive(address) as busy:
                for number in range(2, UPGRADES + 2):
                    service.upgrade()
                    busy.heard(number)
                    service.settled(number)  # the old one has gone long before its grace period: it had nobody left
            assert {client.ask() for client in idle} == {UPGRADES + 1}
            assert not load.failures
            assert not busy.failures
            assert busy.reconnects == 0
            assert service.status()["generations"][-1]["active"] >= len(idle)
        finally:
            for client in idle:
                client.close()
        assert service.stop() == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith("master.sock")]


@pytest.mark.parametrize(("http", "loop"), KINDS)
def test_what_can_not_move_is_finished_where_it_is(folder: Path, http: str, loop: str) -> None:
    """A slow request, a large answer half read, half a body, half a request line, a silent client, two requests at once."""
    port = free_port()
    options = [*kind(http, loop), "--timeout-keep-alive", "60"]
    old = Uvicorn(folder, port, *options)
    with stopping(old):
        old.serves(1)
        address = ("127.0.0.1", port)
        slow, big, posting, halved, silent, twice = (Client(address) for _ in range(6))
        clients = (slow, big, posting, halved, silent, twice)
        try:
            over = folder / "over"
            slow.send(until(over))
            big.send("/big")
            posting.send("/echo", method="POST", body=b"x" * 16_000, part=slice(0, 8000))
            halved.send("/", part=slice(0, 7))
            twice.send(until(over))
            twice.send("/")
            new = Uvicorn(folder, port, *options)
            with stopping(new):
                new.serves(2)
                old.says("handed over")
                # Only now: the old one drains.
                posting.send("/echo", method="POST", body=b"x" * 16_000, part=slice(8000, None))
                halved.send("/", part=slice(7, None))
                assert posting.receive() == 1
                assert halved.receive() == 1
                wait_for(lambda: silent.ask() == 2, "a connection that is used now and then to move")
                assert big.receive() == 1
                over.touch()
                assert slow.receive() == 1
                assert [twice.receive(), twice.receive()] == [1, 1]
                assert old.ends() == 0, old.text()
                for client in clients:
                    if not client.ended:
                        assert client.ask() == 2
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize(("http", "loop"), KINDS)
def test_the_last_one_announces_the_end_and_finishes(folder: Path, http: str, loop: str) -> None:
    port = free_port()
    only = Uvicorn(folder, port, *kind(http, loop), "--timeout-keep-alive", "1")
    with stopping(only):
        only.serves(1)
        slow, idle = Client(("127.0.0.1", port)), Client(("127.0.0.1", port))
        assert idle.ask() == 1
        slow.send("/slow/1")
        wait_for(lambda: status(folder / "h.sock")["generations"][0]["active"] == 2, "both to be inside")
        only.signal(signal.SIGTERM)
        only.says("stopping")
        # However soon it asks, its connection is not closed under its request; from some moment on the answer announces it.
        wait_for(lambda: idle.ask() == 1 and idle.ended, "the end to be announced")
        assert slow.receive() == 1
        assert only.ends() == 0
        assert "lifespan over" in only.text()
        slow.close()
        idle.close()


def test_what_is_still_inside_at_the_deadline_is_cut_and_counted(folder: Path) -> None:
    port = free_port()
    only = Uvicorn(folder, port, "--timeout-graceful-shutdown", "1")
    with stopping(only):
        only.serves(1)
        slow = Client(("127.0.0.1", port))
        slow.send("/slow/60")
        wait_for(lambda: status(folder / "h.sock")["generations"][0]["active"] == 1, "the request to be inside")
        only.signal(signal.SIGTERM)
        assert only.ends() == 0
        only.says(f"1 cut at the deadline (127.0.0.1:{slow.sock.getsockname()[1]})")
        with pytest.raises(ConnectionError):
            slow.receive()
        slow.close()


def test_a_successor_that_does_not_start_costs_nothing_and_the_next_one_takes_over(folder: Path) -> None:
    port = free_port()
    old = Uvicorn(folder, port)
    with stopping(old):
        old.serves(1)
        with KeepAlive(("127.0.0.1", port)) as clients:
            bad = Uvicorn(folder, port, BOOT="fail")
            assert bad.ends() == 3
            clients.heard(1)
            missing = Uvicorn(folder, port, "--http", "h11", "--app-dir", "/nowhere", "--factory")
            assert missing.ends() != 0
            good = Uvicorn(folder, port)
            with stopping(good):
                assert old.ends() == 0
                clients.heard(2)
                clients.end()
        assert not clients.failures
        assert clients.reconnects == 0


@pytest.mark.parametrize(("http", "loop"), KINDS)
def test_an_idle_connection_that_has_moved_ends_in_its_time(folder: Path, http: str, loop: str) -> None:
    port = free_port()
    options = [*kind(http, loop), "--timeout-keep-alive", "2"]
    old = Uvicorn(folder, port, *options)
    with stopping(old):
        old.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask() == 1
            new = Uvicorn(folder, port, *options)
            with stopping(new):
                assert old.ends() == 0, old.text()
                assert "1 connections moved on" in old.text()
                assert client.sock.recv(1) == b""


def test_what_ignores_its_end_keeps_no_process_when_somebody_hurries(folder: Path) -> None:
    only = Uvicorn(folder, port := free_port())
    with stopping(only):
        only.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            client.send("/stubborn")
            wait_for(lambda: status(folder / "h.sock")["generations"][0]["active"] == 1, "the request to be inside")
            only.signal(signal.SIGTERM)
            only.says("stopping")
            time.sleep(SAME_SECONDS + 0.1)  # sooner it would be the same request again
            only.signal(signal.SIGTERM)
            assert only.ends() == 0, only.text()
        assert "1 cut at the deadline" in only.text()


def test_what_is_not_served_here_is_refused_with_a_sentence(folder: Path) -> None:
    only = Uvicorn(folder, free_port(), "--fd", "3")
    assert only.ends() == 2
    assert "fdhandoff: --fd: listeners come by LISTEN_FDS" in only.text()
    assert "Traceback" not in only.text()


def test_another_program_of_the_same_name_at_another_port_ends_nothing(folder: Path) -> None:
    """Who gives them no name has both called by the application's, ``app:app``."""
    ports = free_port(), free_port()

    class Unnamed(Running):
        def __init__(self, port: int) -> None:
            words = ["--app-dir", os.path.dirname(__file__), "--port", str(port), "--no-access-log"]
            env = environment(FDHANDOFF_RUNTIME_DIR=str(folder))
            self._start([sys.executable, "-m", f"{PACKAGE}.servers.uvicorn", "app:app", *words], env=env)

    first = Unnamed(ports[0])
    with stopping(first):
        first.says("generation 1 serves")
        other = Unnamed(ports[1])
        assert other.ends() == 1
        assert f"'app-app', too, serves TCP listener 127.0.0.1:{ports[0]}" in other.text()
        assert "Traceback" not in other.text()
        with contextlib.closing(Client(("127.0.0.1", ports[0]))) as client:
            assert client.ask() == 1
        again = Unnamed(ports[0])
        with stopping(again):
            again.says("generation 2 serves")
            assert first.ends() == 0


def test_hup_is_an_upgrade_of_the_same_command(folder: Path) -> None:
    port = free_port()
    first = Uvicorn(folder, port)
    with stopping(first):
        first.serves(1)
        with KeepAlive(("127.0.0.1", port)) as clients:
            first.signal(signal.SIGHUP)
            assert first.process.wait(DEADLINE) == 0, first.text()  # its streams live on in the next one
            clients.heard(2)
            clients.end()
        assert not clients.failures
        assert clients.reconnects == 0
        done = verb("stop", str(folder / "h.sock"), "--wait")
        assert done.returncode == 0, done.stderr


def test_a_receiver_that_is_killed_half_way_leaves_every_connection_with_one_owner(folder: Path) -> None:
    """The new one dies while connections move: those that it had acknowledged go with it, the others are served by the old."""
    port = free_port()
    old = Uvicorn(folder, port, "--timeout-keep-alive", "60")
    with stopping(old):
        old.serves(1)
        clients = [Client(("127.0.0.1", port)) for _ in range(300)]
        try:
            assert {client.ask() for client in clients} == {1}
            new = Uvicorn(folder, port)
            with stopping(new):
                new.serves(2)
                os.kill(new.pid, signal.SIGSTOP)  # it will receive, and acknowledge nothing
                old.says("handed over")
                answers: list[Any] = []
                for client in clients:
                    client.send()
                for client in clients:
                    try:
                        answers.append(client.receive())
                    except OSError as error:
                        answers.append(error)
                assert answers == [1] * len(clients), "what nobody took was answered where it was"
                os.kill(new.pid, signal.SIGCONT)
                assert old.ends() == 0
        finally:
            for client in clients:
                client.close()


def test_a_websocket_is_told_to_come_again(folder: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client as websockets

    port = free_port()
    old = Uvicorn(folder, port)
    with stopping(old):
        old.serves(1)
        with websockets.connect(f"ws://127.0.0.1:{port}/") as socket_:
            socket_.send("hello")
            assert socket_.recv() == "1 hello"
            new = Uvicorn(folder, port)
            with stopping(new):
                new.serves(2)
                with pytest.raises(ConnectionClosed) as closed:
                    socket_.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
                with websockets.connect(f"ws://127.0.0.1:{port}/") as again:
                    again.send("back")
                    assert again.recv() == "2 back"


def test_reload_is_refused_in_a_sentence(folder: Path) -> None:
    refused = Uvicorn(folder, free_port(), "--reload")
    assert refused.ends() == 2
    assert "reload is for development" in refused.text()
    assert "Traceback" not in refused.text()


def test_a_port_that_is_taken_is_told_with_its_holder(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused = Uvicorn(folder, other.getsockname()[1])
        assert refused.ends() != 0
        assert f"is taken by pid {os.getpid()}" in refused.text()


def test_two_thousand_idle_connections_move_in_one_upgrade(folder: Path) -> None:
    port = free_port()
    options = ["--timeout-keep-alive", "100", "--backlog", "4096"]
    old = Uvicorn(folder, port, *options)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(2000)]
        assert {client.ask() for client in clients} == {1}
        new = Uvicorn(folder, port, *options)
        with stopping(new):
            new.serves(2)
            assert old.ends() == 0, old.text()
            assert "2000 connections moved on, 0 ended here" in old.text()
            assert {client.ask() for client in clients} == {2}
            for client in clients:
                client.close()
