"""granian's adapter, by its command line: a listener that goes on, workers that have loaded before they are relied on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping, wait_for
from . import Client, KeepAlive
from .slow import until

pytest.importorskip("granian", reason="needs granian: pip install 'fdhandoff[test]'")

HERE = Path(__file__).parent


class Granian(Running):
    def __init__(self, folder: Path, *words: str, app: str = "app:app", **env: str) -> None:
        command = [sys.executable, "-m", f"{PACKAGE}.servers.granian", "--interface", "asgi", "--workers", "2", *words]
        command += ["--handoff-path", str(folder / "h.sock"), "--handoff-probation", "200ms", app]
        paths = os.pathsep.join([str(HERE), str(HERE.parents[2])])
        self._start(command, env=environment(PYTHONPATH=paths, **env))


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_each_generation_takes_over_and_what_is_being_answered_is_finished(unix: bool, tmp_path: Path) -> None:
    port = free_port()
    address: tuple[str, int] | str = str(tmp_path / "s") if unix else ("127.0.0.1", port)
    words = ("--uds", str(address)) if unix else ("--port", str(port))
    told = tmp_path / "told"
    servers = [Granian(tmp_path, *words)]
    with stopping(servers[0]):
        servers[0].says("generation 1 serves")
        with KeepAlive(address, count=3, once=True) as crowd, contextlib.ExitStack() as stack:
            slow = stack.enter_context(contextlib.closing(Client(address)))
            slow.send(until(told))
            servers.append(Granian(tmp_path, *words))
            with stopping(servers[1]):
                servers[1].says("generation 2 serves")
                wait_for(lambda: crowd.answers[2] >= 10, "generation 2")
                servers[0].says("serves; this process")
                told.touch()
                assert slow.receive() == 1, "what was being answered is finished"
                slow.close()
                assert servers[0].ends() == 0, servers[0].text()
                servers[1].signal(signal.SIGHUP)
                wait_for(lambda: crowd.answers[3] >= 10, "generation 3")
                crowd.end()
                assert not crowd.failures
                assert servers[1].process.wait(20) == 0, servers[1].text()
                assert _asked(address) == 3
                _stop(tmp_path)  # it has the output of the one that started it
        assert set(crowd.answers) == {1, 2, 3}


@pytest.mark.parametrize(("interface", "app"), [("wsgi", "wsgi:app"), ("rsgi", "on_rsgi:app")])
def test_applications_of_every_kind_announce_the_end(interface: str, app: str, tmp_path: Path) -> None:
    port = free_port()
    only = Granian(tmp_path, "--port", str(port), "--interface", interface, app=app)
    with stopping(only), contextlib.ExitStack() as stack:
        only.says("generation 1 serves")
        client = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        assert client.ask("/", method="POST", body=b"body") == 1
        assert not client.ended
        only.signal(signal.SIGTERM)
        wait_for(lambda: client.ended or (client.ask() == 1 and client.ended), "the end to be announced")
        assert only.ends() == 0, only.text()
        assert "cut at the deadline" not in only.text()


def test_a_websocket_of_rsgi_is_closed(tmp_path: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client as websockets

    port = free_port()
    only = Granian(tmp_path, "--port", str(port), "--interface", "rsgi", app="on_rsgi:app")
    with stopping(only):
        only.says("generation 1 serves")
        with websockets.connect(f"ws://127.0.0.1:{port}/") as chat:
            chat.send("hello")
            assert chat.recv() == "1 hello"
            only.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                chat.recv(timeout=20)
            assert closed.value.rcvd is not None, "by a frame, not by the end of the connection"
            assert only.ends() == 0, only.text()
            assert "cut at the deadline" not in only.text()
            assert "Traceback" not in only.text()


def _asked(address: tuple[str, int] | str) -> int:
    with contextlib.closing(Client(address)) as client:
        return client.ask()


def _stop(folder: Path) -> None:
    """The one that was started by another."""
    from fdhandoff.client import ask

    pid = ask(str(folder / "h.sock"), "status")["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "its end")


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_release_whose_application_does_not_load_never_takes_over(tmp_path: Path) -> None:
    port = free_port()
    good = Granian(tmp_path, "--port", str(port))
    with stopping(good):
        good.says("generation 1 serves")
        bad = Granian(tmp_path, "--port", str(port), app="nonsense:app")
        with stopping(bad):
            assert bad.ends() == 1, bad.text()
        assert "generation 2 serves" not in bad.text()
        assert _asked(("127.0.0.1", port)) == 1


def test_one_whose_start_up_fails_gives_the_service_back(tmp_path: Path) -> None:
    port = free_port()
    good = Granian(tmp_path, "--port", str(port), "--handoff-probation", "20s")
    with stopping(good):
        good.says("generation 1 serves")
        bad = Granian(tmp_path, "--port", str(port), BOOT="fail")
        with stopping(bad):
            assert bad.ends() == 1, bad.text()
        good.says("took the service back")
        assert _asked(("127.0.0.1", port)) == 1


def test_the_reloader_is_refused_in_a_sentence(tmp_path: Path) -> None:
    refused = Granian(tmp_path, "--reload")
    with stopping(refused):
        assert refused.ends() == 2, refused.text()
    assert "the reloader is for development" in refused.text()
    assert "Traceback" not in refused.text()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", 8000)), "nothing was bound"


FAILING = """
import sys
from fdhandoff.errors import UpgradeError
from fdhandoff.servers import granian

class Service(granian.Service):
    def ready(self, timeout=60.0):
        raise UpgradeError("not today", serving="old")

class Granian(granian.Granian):
    def _spawn_workers(self, *arguments):
        super()._spawn_workers(*arguments)
        raise UpgradeError("not today", serving="old")

port, path, what = sys.argv[1:]
if what == "ready":
    granian.Service = Service
server = Granian if what == "startup" else granian.Granian
server("wsgi:app", interface="wsgi", port=int(port), workers=2, handoff_path=path).serve()
"""


class Failing(Running):
    def __init__(self, *words: str) -> None:
        env = environment(PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parents[2])]))
        self._start([sys.executable, "-c", FAILING, *words], env=env)


@pytest.mark.parametrize("what", ["ready", "startup"])
def test_one_that_fails_before_it_serves_ends_with_its_workers(what: str, tmp_path: Path) -> None:
    port = free_port()
    server = Failing(str(port), str(tmp_path / "h.sock"), what)
    with stopping(server):
        assert server.ends() == 1, server.text()  # its streams have ended, which its workers have, too
    assert "UpgradeError: not today" in server.text()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)), "nobody has the listener any more"
