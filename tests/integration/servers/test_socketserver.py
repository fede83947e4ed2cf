"""Threaded servers with their adapter: alone, handing over to strangers, and under the master."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping
from ..master import Load, request
from . import Client

PROGRAM = str(Path(__file__).with_name("threaded.py"))
UPGRADES = 3


class Threaded(Running):
    def __init__(self, folder: Path, port: int, kind: str = "http") -> None:
        self._start([sys.executable, PROGRAM, kind, str(port), str(folder / "h.sock")], env=environment())

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


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
