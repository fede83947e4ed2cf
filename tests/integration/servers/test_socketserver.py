"""Threaded servers with their adapter: alone, handing over to strangers, and under the master."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, status, stopping, wait_for
from ..master import Load, Service, quick, request
from . import Client, KeepAlive

PROGRAM = str(Path(__file__).with_name("threaded.py"))
UPGRADES = 5


class Threaded(Running):
    def __init__(self, folder: Path, port: int, kind: str = "http") -> None:
        self._start([sys.executable, PROGRAM, kind, str(port), str(folder / "h.sock")], env=environment())

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def test_strangers_take_over_and_every_connection_stays(tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = Threaded(tmp_path, port)
        stack.callback(old.stop)
        old.serves(1)
        idle = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(20)]
        assert {client.ask() for client in idle} == {1}
        with Load(address, clients=2) as load, KeepAlive(address) as busy:
            for number in range(2, UPGRADES + 2):
                new = Threaded(tmp_path, port)
                stack.callback(new.stop)
                new.serves(number)
                assert old.ends() == 0, old.text()
                assert "connections moved on" in old.text()
                busy.heard(number)
                load.heard(number)
                old = new
        assert {client.ask() for client in idle} == {number}, "through all of them"
        assert not load.failures
        assert not busy.failures
        assert busy.reconnects == 0
        for client in idle:
            client.close()
    assert os.listdir(tmp_path) == [], "nothing is left of it"


def test_under_the_master_connections_move_with_each_upgrade(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "http:/"), command=[sys.executable, PROGRAM, "http", "0", ""]) as service:
        address = service.address()
        with contextlib.closing(Client(address)) as idle:
            assert idle.ask() == 1
            with Load(address, clients=2) as load, KeepAlive(address) as busy:
                for number in range(2, UPGRADES + 2):
                    service.upgrade()
                    busy.heard(number)
                    service.settled(number)
            assert idle.ask() == UPGRADES + 1
            assert not load.failures
            assert not busy.failures
            assert busy.reconnects == 0
        assert service.stop() == 0


def test_what_can_not_move_is_finished_where_it_is(tmp_path: Path) -> None:
    port = free_port()
    old = Threaded(tmp_path, port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(5)]
        slow, big, posting, halved, twice = clients
        slow.send("/slow/3")
        big.send("/big")
        posting.send("/", method="POST", body=b"x" * 16_000, part=slice(0, 8000))
        halved.send("/", part=slice(0, 7))
        twice.send("/slow/3")
        twice.send("/")
        new = Threaded(tmp_path, port)
        with stopping(new):
            new.serves(2)
            old.says("handed over")
            posting.send("/", method="POST", body=b"x" * 16_000, part=slice(8000, None))
            halved.send("/", part=slice(7, None))
            assert [client.receive() for client in (posting, halved, big, slow, twice)] == [1] * 5
            assert twice.receive() == 1, "it was read with the first one"
            assert old.ends() == 0, old.text()
            assert [client.ask() for client in clients] == [2] * 5, "none of them had to connect again"
            for client in clients:
                client.close()


def test_the_last_one_announces_the_end_and_finishes(tmp_path: Path) -> None:
    port = free_port()
    only = Threaded(tmp_path, port)
    with stopping(only), contextlib.ExitStack() as stack:
        only.serves(1)
        slow, idle = (stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(2))
        assert idle.ask() == 1
        slow.send("/slow/1")
        wait_for(lambda: status(tmp_path / "h.sock")["generations"][0]["active"] == 2, "both to be inside")
        only.signal(signal.SIGTERM)
        wait_for(lambda: idle.ask() == 1 and idle.ended, "the end to be announced")
        assert slow.receive() == 1
        assert slow.ended
        assert only.ends() == 0


def test_a_server_without_threads_drains(tmp_path: Path) -> None:
    port = free_port()
    old = Threaded(tmp_path, port, "single")
    with stopping(old):
        old.serves(1)
        new = Threaded(tmp_path, port, "single")
        with stopping(new):
            with Load(("127.0.0.1", port), clients=2) as load:
                new.serves(2)
                assert old.ends() == 0
                load.heard(2)
            assert not load.failures


def test_a_handler_of_another_protocol_finishes_its_connections(tmp_path: Path) -> None:
    port = free_port()
    old = Threaded(tmp_path, port, "tcp")
    with stopping(old):
        old.serves(1)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"1 hello"
            new = Threaded(tmp_path, port, "tcp")
            with stopping(new):
                new.serves(2)
                old.says("handed over")
                sock.sendall(b"again")
                assert sock.recv(100) == b"1 again"
                sock.close()
                assert old.ends() == 0


def test_python_m_http_server_with_one_changed_word(tmp_path: Path) -> None:
    """Its files, its options, and an upgrade."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "x").write_text("site 7 0")
    port = free_port()

    def start() -> Running:
        running = Running.__new__(Running)
        words = [str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path / "site"), "--protocol", "HTTP/1.1"]
        words += ["--handoff-probation", "500ms", "--handoff-path", str(tmp_path / "h.sock")]
        running._start([sys.executable, "-m", f"{PACKAGE}.servers.http_server", *words], env=environment())
        return running

    old = start()
    with stopping(old):
        old.says("generation 1 serves")
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask("/x") == 7
            new = start()
            with stopping(new):
                new.says("generation 2 serves")
                assert old.ends() == 0
                assert client.ask("/x") == 7
                assert request(("127.0.0.1", port), "/x")[1] == 7
                client.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--handoff-what", "x"], "there is no option --handoff-what"), (["--handoff-probation", "soon"], "'soon'")],
)
def test_options_that_make_no_sense_are_told_in_a_sentence(words: list[str], why: str) -> None:
    running = Running.__new__(Running)
    running._start([sys.executable, "-m", f"{PACKAGE}.servers.http_server", *words], env=environment())
    assert running.ends() == 2
    assert why in running.text()
    assert "Traceback" not in running.text()


def test_many_idle_connections_move_at_once(tmp_path: Path) -> None:
    port = free_port()
    old = Threaded(tmp_path, port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(200)]
        assert {client.ask() for client in clients} == {1}
        new = Threaded(tmp_path, port)
        with stopping(new):
            new.serves(2)
            assert old.ends() == 0, old.text()
            assert "200 connections moved on, 0 ended here" in old.text()
            assert {client.ask() for client in clients} == {2}
            for client in clients:
                client.close()
