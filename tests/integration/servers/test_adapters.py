"""What holds with every adapter: strangers take over, the master upgrades, and no client has to connect again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
import termios
from array import array
from pathlib import Path

import pytest

from ...conftest import needs_that
from ..cli import Running, environment, free_port, status, stopping, verb, wait_for
from ..master import Load, Service, quick
from ..master.test_health import asked
from . import Client, KeepAlive, replaces_itself, survives_who_hangs_up, the_first_serves, two_threads_sleep
from .slow import until

HERE = Path(__file__).parent
UPGRADES = 3
SOME = 20  # answers of 500 kB, which are more than the kernel buffers

#: Programs that take a port and a handoff path.
PROGRAMS = {
    "socketserver": [sys.executable, str(HERE / "threaded.py"), "http"],
    "aiohttp": [sys.executable, str(HERE / "on_aiohttp.py")],
    "sanic": [sys.executable, str(HERE / "on_sanic.py")],
    "tornado": [sys.executable, str(HERE / "on_tornado.py")],
    "cheroot": [sys.executable, str(HERE / "on_cheroot.py")],
    "cherrypy": [sys.executable, str(HERE / "on_cherrypy.py")],
    "django": [sys.executable, str(HERE / "on_django.py")],
    "waitress": [sys.executable, str(HERE / "on_waitress.py")],
    "asyncio": [sys.executable, str(HERE / "on_asyncio.py"), "protocol"],
    "hypercorn": [sys.executable, str(HERE / "on_hypercorn.py")],
}


# CherryPy is served by cheroot, with which all of it is tested.
@pytest.fixture(params=[name for name in PROGRAMS if name != "cherrypy"])
def program(request: pytest.FixtureRequest) -> list[str]:
    if request.param != "socketserver":
        pytest.importorskip(request.param, reason=f"needs {request.param}: pip install 'fdhandoff[test]'")
    return PROGRAMS[request.param]


class Server(Running):
    def __init__(self, program: list[str], folder: Path, port: int, **env: str) -> None:
        self._start([*program, str(port), str(folder / "h.sock")], env=environment(**env))

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_strangers_take_over_and_every_connection_stays(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = Server(program, tmp_path, port)
        stack.callback(old.stop)
        old.serves(1)
        idle = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(20)]
        assert {client.ask() for client in idle} == {1}
        with Load(address, clients=2) as load, KeepAlive(address) as busy:
            for number in range(2, UPGRADES + 2):
                new = Server(program, tmp_path, port)
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


@pytest.mark.parametrize("program", ["aiohttp", "sanic", "tornado", "asyncio", "hypercorn"], indirect=True)
def test_beside_a_server_that_has_no_threads_two_sleep(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    server = Server(program, tmp_path, port)
    with stopping(server):
        server.serves(1)
        two_threads_sleep(server, port)


def test_waitress_serves_with_descriptors_that_select_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("waitress", reason="needs waitress: pip install 'fdhandoff[test]'")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needs_that(hard >= 2048, "2,048 descriptors: ulimit -Hn")
    crowded = (
        "import os, resource, runpy, sys;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (2048, {hard}));"
        "[os.open('/dev/null', os.O_RDONLY) for _ in range(1024)];"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    port = free_port()
    server = Server([sys.executable, "-c", crowded, str(HERE / "on_waitress.py")], tmp_path, port)
    with stopping(server):
        server.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert [client.ask(), client.ask()] == [1, 1]


def test_one_whose_successor_dies_serves_again(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    old = Server(program, tmp_path, port, PROBATION_SECONDS="60")
    with stopping(old):
        old.serves(1)
        with KeepAlive(address, once=True) as load:
            load.heard(1)
            new = Server(program, tmp_path, port)
            with stopping(new):
                new.serves(2)
                load.heard(2)
                new.signal(signal.SIGKILL)
                old.says("took the service back")
        assert the_first_serves(address) == 0
        old.signal(signal.SIGTERM)
        assert old.ends() == 0, old.text()


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_hup_is_an_upgrade_of_the_same_command(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    server = Server(program, tmp_path, port)
    with stopping(server):
        server.serves(1)
        replaces_itself(server, port, tmp_path / "h.sock")


def test_clients_that_hang_up_at_once_end_nothing(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    server = Server(program, tmp_path, port)
    with stopping(server):
        server.serves(1)
        survives_who_hangs_up(server, port)


def test_under_the_master_connections_move_with_each_upgrade(program: list[str], tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "http:/"), command=[*program, "0", ""]) as service:
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


def test_what_can_not_move_is_finished_where_it_is(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    old = Server(program, tmp_path, port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(5)]
        slow, big, posting, halved, twice = clients
        over = tmp_path / "over"
        slow.send(until(over))
        big.send("/big")
        posting.send("/", method="POST", body=b"x" * 16_000, part=slice(0, 8000))
        halved.send("/", part=slice(0, 7))
        twice.send(until(over))
        twice.send("/")
        new = Server(program, tmp_path, port)
        with stopping(new):
            new.serves(2)
            old.says("handed over")
            posting.send("/", method="POST", body=b"x" * 16_000, part=slice(8000, None))
            halved.send("/", part=slice(7, None))
            assert [client.receive() for client in (posting, halved, big)] == [1] * 3
            over.touch()
            assert [client.receive() for client in (slow, twice)] == [1] * 2
            assert twice.receive() == 1, "it was read with the first one"
            assert old.ends() == 0, old.text()
            staying = [client for client in clients if not client.ended]
            assert {client.ask() for client in staying} == {2}
            assert len(staying) >= 4, "hardly any of them had to connect again"
            for client in clients:
                client.close()


def test_who_reads_slowly_moves_when_all_is_written(program: list[str], tmp_path: Path) -> None:
    """While the old process leaves, the answer waits for its client."""
    port = free_port()
    old = Server(program, tmp_path, port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        client = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        for _ in range(SOME):
            client.send("/big")
        wait_for(lambda: _unread(client) > 0, "the beginning of an answer")
        new = Server(program, tmp_path, port)
        with stopping(new):
            new.serves(2)
            old.says("handed over")
            answers = [client.receive() for _ in range(SOME)]
            assert answers[0] == 1
            assert answers == sorted(answers)
            assert old.ends() == 0, old.text()
            assert client.ask() == 2
            client.close()


def _unread(client: Client) -> int:
    waiting = array("i", [0])
    fcntl.ioctl(client.sock, termios.FIONREAD, waiting)
    return waiting[0]


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_the_last_one_announces_the_end_and_finishes(program: list[str], tmp_path: Path) -> None:
    """Whoever asks for its health was told by then, and is told so as long as it finishes."""
    port, health = free_port(), free_port()
    only = Server(program, tmp_path, port, FDHANDOFF_HEALTH=f"127.0.0.1:{health}")
    with stopping(only), contextlib.ExitStack() as stack:
        only.serves(1)
        slow, idle = (stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(2))
        assert idle.ask() == 1
        over = tmp_path / "over"
        slow.send(until(over))
        wait_for(lambda: status(tmp_path / "h.sock")["generations"][0]["active"] == 2, "both to be inside")
        assert asked(health)[0] == 200
        only.signal(signal.SIGTERM)
        wait_for(lambda: idle.ask() == 1 and idle.ended, "the end to be announced")
        assert asked(health)[0] == 503
        over.touch()
        assert slow.receive() == 1
        assert slow.ended
        assert only.ends() == 0


def test_a_stop_with_nothing_under_way_ends_at_once(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    only = Server(program, tmp_path, port)
    with stopping(only):
        only.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask() == 1  # and no other comes
        wait_for(lambda: status(tmp_path / "h.sock")["generations"][0]["active"] == 0, "its connection to be over")
        only.signal(signal.SIGTERM)
        assert only.ends() == 0
        assert "cut" not in only.text()
    assert os.listdir(tmp_path) == []


def test_a_stop_that_is_hurried_cuts_what_is_under_way_and_says_so(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    only = Server(program, tmp_path, port)
    with stopping(only):
        only.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            client.send("/slow/60")
            wait_for(lambda: status(tmp_path / "h.sock")["generations"][0]["active"] == 1, "it to be inside")
            only.signal(signal.SIGTERM)
            wait_for(lambda: status(tmp_path / "h.sock")["state"] == "draining", "the drain")
            assert verb("hurry", "--path", str(tmp_path / "h.sock")).returncode == 0
            assert only.ends() == 0
            assert "1 cut at the deadline" in only.text()
            with pytest.raises(ConnectionError):
                client.receive()
    assert os.listdir(tmp_path) == []


def test_many_idle_connections_move_at_once_also_those_that_posted(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    old = Server(program, tmp_path, port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(200)]
        assert {client.ask() for client in clients} == {1}
        assert clients[0].ask(method="POST", body=b"x\r\n\r\ny" * 30) == 1
        clients[1].send(method="POST", body=b"x" * 300_000)
        for part in (slice(0, 50), slice(50, None)):
            clients[2].send(method="POST", body=b"\r\n\r\n" * 100, part=part)
        assert [clients[1].receive(), clients[2].receive()] == [1, 1]
        new = Server(program, tmp_path, port)
        with stopping(new):
            new.serves(2)
            assert old.ends() == 0, old.text()
            assert "200 connections moved on, 0 ended here" in old.text()
            assert {client.ask() for client in clients} == {2}
            assert clients[0].ask(method="POST", body=b"more") == 2
            for client in clients:
                client.close()


def test_a_successor_that_stands_still_for_a_while_gets_them_later(program: list[str], tmp_path: Path) -> None:
    port = free_port()
    old = Server(program, tmp_path, port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(20)]
        assert {client.ask() for client in clients} == {1}
        new = Server(program, tmp_path, port)
        with stopping(new):
            new.serves(2)
            new.signal(signal.SIGSTOP)
            try:
                old.says("handed over")
                assert [clients[0].ask() for _ in range(2)] == [1, 1], "it was given, and came back"
                assert not clients[0].ended
            finally:
                new.signal(signal.SIGCONT)
            assert old.ends() == 0, old.text()
            assert "20 connections moved on, 0 ended here" in old.text()
            assert {client.ask() for client in clients} == {2}
            for client in clients:
                client.close()


@pytest.mark.parametrize("name", ["aiohttp", "sanic", "tornado"])
def test_a_websocket_is_told_to_come_again(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client as websockets

    port = free_port()
    old = Server(PROGRAMS[name], tmp_path, port)
    with stopping(old):
        old.serves(1)
        with websockets.connect(f"ws://127.0.0.1:{port}/ws") as chat:
            chat.send("hello")
            assert chat.recv() == "1 hello"
            new = Server(PROGRAMS[name], tmp_path, port)
            with stopping(new):
                new.serves(2)
                with pytest.raises(ConnectionClosed) as closed:
                    chat.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
                assert old.ends() == 0, old.text()
