"""Sanic's adapter by its command line; and that Sanic's manager, which would shut the listener down for all, is kept out."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping, wait_for
from ..master import request
from . import Client
from .slow import until

pytest.importorskip("sanic", reason="needs sanic: pip install 'fdhandoff[test]'")

APP = "tests.integration.servers.on_sanic:app"


class Sanic(Running):
    def __init__(
        self, *words: str, inherit: socket.socket | None = None, path: Path, env: dict[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", f"{PACKAGE}.servers.sanic", *words, "--handoff-path", str(path), APP]
        if inherit is None:
            self._start(command, env=environment(**(env or {})))
            return
        fd = inherit.fileno()
        prefix = ["sh", "-c", 'LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$ exec "$@"', "sh"]
        self._start([*prefix, *command], env=environment(), preexec_fn=lambda: os.dup2(fd, 3), close_fds=False)


def test_the_command_line_serves_with_its_own_options(tmp_path: Path) -> None:
    port = free_port()
    first = Sanic("--host", "127.0.0.1", "--port", str(port), path=tmp_path / "h.sock")
    with stopping(first):
        first.says("generation 1 serves")
        assert request(("127.0.0.1", port)) == ("app", 1, 0)
        second = Sanic("--host", "127.0.0.1", "--port", str(port), path=tmp_path / "h.sock")
        with stopping(second):
            second.says("generation 2 serves")
            assert request(("127.0.0.1", port)) == ("app", 2, 0)
            assert first.ends() == 0, first.text()


def test_connections_of_an_application_without_websockets_move_and_are_told_the_end(tmp_path: Path) -> None:
    port, path, plain = free_port(), tmp_path / "h.sock", {"NO_WEBSOCKETS": "1"}
    words = ("--host", "127.0.0.1", "--port", str(port))
    first = Sanic(*words, path=path, env=plain)
    with stopping(first), contextlib.ExitStack() as stack:
        first.says("generation 1 serves")
        idle, slow = (stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(2))
        assert idle.ask() == 1
        slow.send(until(tmp_path / "over"))
        second = Sanic(*words, path=path, env=plain)
        with stopping(second):
            second.says("generation 2 serves")
            wait_for(lambda: idle.ask() == 2, "it to move")
            (tmp_path / "over").touch()
            assert slow.receive() == 1
            wait_for(lambda: slow.ask() == 2, "it to follow")
            assert first.ends() == 0, first.text()
            second.signal(signal.SIGTERM)
            wait_for(lambda: idle.ask() == 2 and idle.ended, "the end to be announced")
            assert slow.ask() == 2
            assert slow.ended
            assert second.ends() == 0, second.text()


@pytest.mark.parametrize(("chosen", "module"), [({}, "uvloop"), ({"SANIC_USE_UVLOOP": "false"}, "asyncio")])
def test_the_event_loop_is_the_one_that_sanic_would_have(chosen: dict[str, str], module: str, tmp_path: Path) -> None:
    pytest.importorskip("uvloop", reason="needs uvloop: pip install 'fdhandoff[test]'")
    port = free_port()
    server = Sanic("--host", "127.0.0.1", "--port", str(port), path=tmp_path / "h.sock", env=chosen)
    with stopping(server):
        server.says("generation 1 serves")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/loop", timeout=20) as answer:
            assert answer.read().decode().split(".")[0] == module
            assert "alt-svc" not in answer.headers, "Sanic itself says none where it serves HTTP/1 alone"
    assert "uvloop" not in server.text()


@pytest.mark.parametrize(
    "option", [("--workers", "2"), ("--fast",), ("--auto-reload",), ("--dev",)], ids=lambda one: one[0]
)
def test_what_needs_the_manager_is_refused_in_a_sentence(option: tuple[str, ...], tmp_path: Path) -> None:
    refused = Sanic(*option, path=tmp_path / "h.sock")
    with stopping(refused):
        assert refused.ends() == 2, refused.text()
    assert "for Sanic's manager, which shuts the listener down" in refused.text()
    assert "Traceback" not in refused.text()


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("--auto-tls", "give --cert and --key"),
        ("--http 3", "use Sanic itself for HTTP/3"),
        ("-1 -3", "use Sanic itself for HTTP/3"),
        ("--daemon", "use fdhandoff-cli run --daemon"),
        ("--daemon --pidfile x", "use fdhandoff-cli run --daemon"),
        ("--user nobody", "use fdhandoff-cli run --user USER"),
        ("--group nogroup", "use fdhandoff-cli run --user USER"),
        ("--repl", "use Sanic itself"),
    ],
)
def test_what_would_be_another_server_is_refused_in_a_sentence(words: str, instead: str, tmp_path: Path) -> None:
    refused = Sanic("--host", "127.0.0.1", "--port", str(free_port()), *words.split(), path=tmp_path / "h.sock")
    with stopping(refused):
        assert refused.ends() == 2, refused.text()
    assert instead in refused.text()
    assert "Traceback" not in refused.text()


def test_others_who_have_the_listener_can_accept_when_it_has_ended(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Sanic(inherit=listener, path=tmp_path / "h.sock")
        with stopping(server):
            server.says("generation 1 serves")
            assert request(listener.getsockname()) == ("app", 1, 0)
        assert server.ends() == 0, server.text()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        with socket.create_connection(listener.getsockname(), timeout=20):
            listener.settimeout(20)
            listener.accept()[0].close()
