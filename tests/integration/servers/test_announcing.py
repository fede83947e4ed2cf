"""What holds with the adapters whose connections stay where they are: no request fails, however often the server is replaced,
and an answer announces that its connection ends."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from ...conftest import needs_that
from ..cli import PACKAGE, Running, environment, free_port, status, stopping, wait_for
from ..master import Load, Service, quick
from . import Client, KeepAlive, replaces_itself, survives_who_hangs_up, the_first_serves, two_threads_sleep
from .slow import until

HERE = Path(__file__).parent
UPGRADES = 2

WSGI = "tests.integration.servers.wsgi:app"
_GUNICORN = ["gunicorn", WSGI, "--bind", "127.0.0.1:{port}", "--worker-class"]
ASGI = "tests.integration.servers.app:app"
_UWSGI = ["uwsgi", "--module", WSGI, "--processes", "2", "--threads", "12", "--disable-logging"]

#: What is asked for to be there, and the program: a script that takes a port and a handoff path, or a module of the package's
#: servers with its options, where ``{port}`` stands for the port.
PROGRAMS = {
    "gunicorn sync": ("gunicorn", [*_GUNICORN, "sync", "--workers", "2"]),
    "gunicorn gthread": ("gunicorn", [*_GUNICORN, "gthread", "--threads", "8"]),
    "gunicorn asgi": ("gunicorn", [word.replace("wsgi", "app") for word in _GUNICORN] + ["asgi"]),
    "flask": ("flask", ["flask", "--app", "tests.integration.servers.on_flask", "run", "--port", "{port}"]),
    "werkzeug": ("werkzeug", ["on_werkzeug.py"]),
    "wsgiref": ("wsgiref", ["on_wsgiref.py"]),
    "twisted": ("twisted", ["on_twisted.py"]),
    "granian": ("granian", ["granian", "--interface", "asgi", "--workers", "2", "--port", "{port}", ASGI]),
    "uwsgi --http11-socket": ("uwsgi", [*_UWSGI, "--http11-socket", "127.0.0.1:{port}"]),
    "uwsgi --http-socket": ("uwsgi", [*_UWSGI, "--http-socket", "127.0.0.1:{port}"]),
    "daphne": ("daphne", ["daphne", "-v", "0", "-b", "127.0.0.1", "-p", "{port}", ASGI]),
}


BY_ITSELF = {"granian", "uwsgi --http11-socket", "uwsgi --http-socket"}


def command(name: str, port: int, path: Path | str, *options: str) -> list[str]:
    needed, (program, *words) = PROGRAMS[name]
    if needed == "uwsgi":  # a program with a module in it
        there = (Path(sys.executable).parent / "uwsgi").exists() or shutil.which("uwsgi") is not None
        needs_that(there, "uWSGI: pip install 'fdhandoff[test]'")
    else:
        pytest.importorskip(needed, reason=f"needs {needed}: pip install 'fdhandoff[test]'")
    if program.endswith(".py"):
        return [sys.executable, str(HERE / program), str(port), str(path)]
    words = [word.format(port=port) for word in words]
    ours = ["--handoff-path", str(path), "--handoff-probation", "500ms"]
    return [sys.executable, "-m", f"{PACKAGE}.servers.{program}", *words, *ours, *options]


@pytest.fixture(params=PROGRAMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Server(Running):
    def __init__(self, name: str, folder: Path, port: int, *options: str) -> None:
        self._start(command(name, port, folder / "h.sock", *options), env=environment())

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def test_strangers_take_over_and_no_request_fails(name: str, tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = Server(name, tmp_path, port)
        stack.callback(old.stop)
        old.serves(1)
        with Load(address, clients=2) as load, KeepAlive(address) as busy:
            for number in range(2, UPGRADES + 2):
                new = Server(name, tmp_path, port)
                stack.callback(new.stop)
                new.serves(number)
                assert old.ends() == 0, old.text()
                busy.heard(number)
                load.heard(number)
                old = new
        assert not load.failures
        assert not busy.failures
        old.signal(signal.SIGTERM)
        assert old.ends() == 0, old.text()
    assert os.listdir(tmp_path) == [], "nothing is left of it"


@pytest.mark.parametrize("name", ["twisted", "daphne"])
def test_beside_a_server_that_has_no_threads_two_sleep(name: str, tmp_path: Path) -> None:
    port = free_port()
    server = Server(name, tmp_path, port)
    with stopping(server):
        server.serves(1)
        two_threads_sleep(server, port)


def test_a_signal_is_an_upgrade_of_the_same_command(name: str, tmp_path: Path) -> None:
    port = free_port()
    server = Server(name, tmp_path, port)
    with stopping(server):
        server.serves(1)
        asked_by = signal.SIGUSR2 if name.startswith("gunicorn") else signal.SIGHUP  # HUP is for the workers there
        replaces_itself(server, port, tmp_path / "h.sock", asked_by)


def test_clients_that_hang_up_at_once_end_nothing(name: str, tmp_path: Path) -> None:
    port = free_port()
    server = Server(name, tmp_path, port)
    with stopping(server):
        server.serves(1)
        survives_who_hangs_up(server, port)


def test_under_the_master_no_request_fails(name: str, tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "http:/", "--grace", "60"), command=command(name, 0, "")) as service:
        address = service.address()
        with Load(address, clients=2) as load, KeepAlive(address) as busy:
            for number in range(2, UPGRADES + 2):
                service.upgrade()
                busy.heard(number)
                service.settled(number)
        assert not load.failures
        assert not busy.failures
        assert service.stop() == 0


def test_what_is_under_way_is_finished_where_it_is(name: str, tmp_path: Path) -> None:
    port = free_port()
    workers = ["--workers", "4"] if "sync" in name else []  # each serves one at a time
    old = Server(name, tmp_path, port, *workers)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(4)]
        slow, big, posting, halved = clients
        over = tmp_path / "over"
        slow.send(until(over))
        posting.send("/", method="POST", body=b"x" * 16_000, part=slice(0, 8000))
        halved.send("/", part=slice(0, 7))
        counted(tmp_path, "active", 4)
        big.send("/big")
        assert big.sock.recv(1, socket.MSG_PEEK)
        new = Server(name, tmp_path, port)
        with stopping(new):
            new.serves(2)
            old.says("handed over")
            posting.send("/", method="POST", body=b"x" * 16_000, part=slice(8000, None))
            halved.send("/", part=slice(7, None))
            assert [client.receive() for client in (posting, halved, big)] == [1] * 3
            over.touch()
            assert slow.receive() == 1
            for client in clients:
                client.close()
            assert old.ends() == 0, old.text()
            assert "cut at the deadline" not in old.text()


def test_the_last_one_announces_the_end_and_finishes(name: str, tmp_path: Path) -> None:
    port = free_port()
    only = Server(name, tmp_path, port)
    with stopping(only), contextlib.ExitStack() as stack:
        only.serves(1)
        slow = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        slow.send("/slow/1")
        # On a busy machine it is answered before that is seen. Of a server that accepts by itself it is not known.
        counted(tmp_path, "active" if name in BY_ITSELF else "accepted", 1)
        only.signal(signal.SIGTERM)
        assert slow.receive() == 1
        # However late the signal gets to whoever answers: no connection ends unannounced.
        wait_for(lambda: slow.ended or (slow.ask() == 1 and slow.ended), "the end to be announced")
        assert only.ends() == 0, only.text()


@pytest.mark.parametrize("name", ["twisted", "daphne"], indirect=True)
def test_the_answer_to_a_body_announces_the_end_as_well(name: str, tmp_path: Path) -> None:
    """Otherwise its connection stays until the grace period is over, and is cut."""
    port = free_port()
    only = Server(name, tmp_path, port)
    with stopping(only), contextlib.ExitStack() as stack:
        only.serves(1)
        client = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        assert client.ask("/", method="POST", body=b"x" * 16_000) == 1
        assert not client.ended
        only.signal(signal.SIGTERM)
        only.says("stopping: SIGTERM")
        # The answers of the last moment before the reactor hears of it do not say it yet.
        wait_for(
            lambda: client.ended or (client.ask("/", method="POST", body=b"x" * 16_000) == 1 and client.ended),
            "the end to be announced",
        )
        assert only.ends() == 0, only.text()
        assert "cut at the deadline" not in only.text()


@pytest.mark.parametrize("name", sorted(BY_ITSELF), indirect=True)
def test_one_whose_successor_dies_accepts_again_and_announces_nothing(name: str, tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    old = Server(name, tmp_path, port, "--handoff-probation", "60s")
    with stopping(old):
        old.serves(1)
        new = Server(name, tmp_path, port)
        with stopping(new):
            new.serves(2)
            with KeepAlive(address, once=True) as load:
                load.heard(2)
            new.signal(signal.SIGKILL)
            old.says("took the service back")
            assert the_first_serves(address) == 0 or name == "uwsgi --http-socket"


@pytest.mark.parametrize("name", sorted(BY_ITSELF), indirect=True)
def test_one_that_is_killed_leaves_nobody_who_serves(name: str, tmp_path: Path) -> None:
    """What accepts is in other processes, which hear of it."""
    port = free_port()

    def refused() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED

    only = Server(name, tmp_path, port)
    with stopping(only):
        only.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask() == 1
        only.signal(signal.SIGKILL)
        wait_for(refused, "the listener to be closed")


def counted(folder: Path, what: str, count: int) -> None:
    def seen() -> Any:
        return status(folder / "h.sock")["generations"][0][what] == count

    wait_for(seen, f"{count} to be {what}")


@pytest.mark.parametrize("name", ["daphne", "granian", "gunicorn asgi"], indirect=True)
def test_a_websocket_is_told_to_come_again(name: str, tmp_path: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client as websockets

    port = free_port()
    old = Server(name, tmp_path, port)
    with stopping(old):
        old.serves(1)
        with websockets.connect(f"ws://127.0.0.1:{port}/") as chat:
            chat.send("hello")
            assert chat.recv() == "1 hello"
            new = Server(name, tmp_path, port)
            with stopping(new):
                new.serves(2)
                with pytest.raises(ConnectionClosed) as closed:
                    chat.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
                assert old.ends() == 0, old.text()
                assert "cut at the deadline" not in old.text()
