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
TALKING = str(Path(__file__).with_name("talking.py"))
UPGRADES = 3


class Threaded(Running):
    def __init__(self, folder: Path, port: int, kind: str = "http", program: str = PROGRAM) -> None:
        self._start([sys.executable, program, kind, str(port), str(folder / "h.sock")], env=environment())

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


class Talker:
    """A client of ``talking.py`` that can stop anywhere."""

    def __init__(self, port: int, kind: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._lines = self.sock.makefile("r")
        if kind == "http":
            self.send("GET /talk HTTP/1.1\r\nHost: test\r\nUpgrade: lines\r\n\r\n")
            assert " 101 " in self.hears()
            while self.hears():
                pass

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def send(self, text: str) -> None:
        self.sock.sendall(text.encode())

    def hears(self) -> str:
        return self._lines.readline().rstrip("\r\n")

    def ask(self, text: str) -> str:
        self.send(text)
        return self.hears()


@pytest.mark.parametrize(("kind", "upgrades"), [("stream", 10), ("bare", 3), ("http", 3)])
def test_a_handler_that_gives_its_state_keeps_its_sessions_also_in_the_middle_of_a_read(
    tmp_path: Path, kind: str, upgrades: int
) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        old = Threaded(tmp_path, port, kind, TALKING)
        stack.callback(old.stop)
        old.serves(1)
        anna, ben, carl = (stack.enter_context(contextlib.closing(Talker(port, kind))) for _ in range(3))
        for talker, name in ((anna, "anna"), (ben, "ben"), (carl, "carl")):
            assert talker.ask(f"name {name}\n") == f"1 {name} #1: name {name}"
        for number in range(2, upgrades + 2):
            assert anna.ask("hello\n") == f"{number - 1} anna #{2 * number - 2}: hello"
            ben.send("half of ")
            carl.send("take 10\n01234")
            new = Threaded(tmp_path, port, kind, TALKING)
            stack.callback(new.stop)
            new.serves(number)
            assert old.ends() == 0, old.text()
            assert "3 connections moved on, 0 ended here" in old.text()
            assert ben.ask("a line\n") == f"{number} ben #{number}: half of a line"
            assert carl.ask("56789") == f"{number} carl #{number}: 0123456789"
            assert anna.ask("hello\n") == f"{number} anna #{2 * number - 1}: hello"
            old = new


def test_a_release_whose_handler_resumes_nothing_closes_what_comes_and_says_so(tmp_path: Path) -> None:
    port = free_port()
    old = Threaded(tmp_path, port, "http", TALKING)
    with stopping(old):
        old.serves(1)
        with contextlib.closing(Talker(port, "http")) as anna:
            assert anna.ask("hello\n") == "1 nobody #1: hello"
            new = Threaded(tmp_path, port)
            with stopping(new):
                new.serves(2)
                assert old.ends() == 0, old.text()
                assert anna.hears() == "", "the end"
                new.says("a connection came with a state, which this release's handler does not resume: it is closed")


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
