"""Threaded servers with their adapter: alone, handing over to strangers, and under the master."""

from __future__ import annotations

import array
import contextlib
import signal
import socket
import socketserver
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fdhandoff.servers import socketserver as adapter

from ..cli import PACKAGE, Running, environment, free_port, status, stopping, wait_for
from ..master import Load, request
from . import Client
from .slow import until

PROGRAM = str(Path(__file__).with_name("threaded.py"))
TALKING = str(Path(__file__).with_name("talking.py"))
UPGRADES = 3


class Threaded(Running):
    def __init__(self, folder: Path, port: int, kind: str = "http", program: str = PROGRAM, grace: str = "20") -> None:
        words = [kind, str(port), str(folder / "h.sock"), *([grace] if program == PROGRAM else [])]
        self._start([sys.executable, program, *words], env=environment())

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


@pytest.mark.parametrize(
    ("case", "cut"), [("the deadline is met", 0), ("the deadline is missed", 1), ("a second stop hurries", 1)]
)
def test_a_stop_waits_for_what_is_under_way_until_the_deadline_or_a_second_stop(
    tmp_path: Path, case: str, cut: int
) -> None:
    """A36: with one request under way, one that is finished, and one that comes after the stop on a connection that was
    kept."""
    port, over = free_port(), tmp_path / "over"
    only = Threaded(tmp_path, port, grace="0.5" if case == "the deadline is missed" else "60")
    with stopping(only), contextlib.ExitStack() as stack:
        only.serves(1)
        active, kept = (stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(2))
        assert kept.ask() == 1
        active.send(until(over))
        wait_for(lambda: status(tmp_path / "h.sock")["generations"][0]["active"] == 2, "both to be inside")
        if case == "the deadline is missed":
            kept.close()
            wait_for(lambda: status(tmp_path / "h.sock")["generations"][0]["active"] == 1, "one to be inside")
        only.signal(signal.SIGTERM)
        began = time.monotonic()
        if case != "the deadline is missed":
            wait_for(lambda: kept.ask() == 1 and kept.ended, "the end to be announced")
            kept.close()
        if case == "the deadline is met":
            over.touch()
            assert active.receive() == 1
            assert active.ended
        elif case == "a second stop hurries":
            # Within a second it is the same stop, delivered to the process and to its group.
            wait_for(lambda: time.monotonic() - began > 1.2, "a second")
            assert only.process.poll() is None
            only.signal(signal.SIGTERM)
        assert only.ends() == 0
        if cut:
            assert "1 cut at the deadline" in only.text()
            with pytest.raises(ConnectionError):
                active.receive()
        assert ("cut" in only.text()) == bool(cut)


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
        for talker in (anna, ben, carl):
            talker.close()  # the last one would wait for them


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


@pytest.mark.parametrize("written", [b"hello", b"", bytearray(b"hello"), array.array("i", [1, 2, 3])])
def test_an_unbuffered_writer_says_how_many_bytes_it_has_written(written: Any) -> None:
    counts = []
    for writer in (socketserver._SocketWriter, adapter._Sending):  # type: ignore[attr-defined]
        one, other = socket.socketpair()
        with one, other:
            counts.append(writer(one).write(written))
            one.shutdown(socket.SHUT_WR)
            assert other.recv(100) == bytes(memoryview(written).cast("B"))
    assert counts == [memoryview(written).nbytes] * 2


NO_THREADS = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from fdhandoff.servers.socketserver import serve
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"app {self.server.service.generation.number} 0".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Own(Handler):
    def handle(self):
        print("own loop", flush=True)
        super().handle()
handler = Own if sys.argv[3:] else Handler
serve(HTTPServer, ("127.0.0.1", int(sys.argv[1])), handler, grace=1.0, handoff_path=sys.argv[2], handoff_probation=0.2)
"""


class Program(Running):
    def __init__(self, *words: object) -> None:
        self._start([sys.executable, "-c", NO_THREADS, *map(str, words)], env=environment())


def test_a_server_without_threads_is_kept_by_no_client_that_says_nothing(tmp_path: Path) -> None:
    """And leaves in the queue whom it can't serve yet: the next generation answers them at once."""
    address = ("127.0.0.1", port := free_port())
    old = Program(port, tmp_path / "h.sock")
    with stopping(old), contextlib.ExitStack() as stack:
        old.says("generation 1 serves")
        stack.enter_context(contextlib.closing(Client(address)))
        waiting = stack.enter_context(contextlib.closing(Client(address)))
        waiting.send("/")
        new = Program(port, tmp_path / "h.sock")
        with stopping(new):
            new.says("generation 2 serves")
            assert waiting.receive() == 2
            assert old.ends() == 0, old.text()
        assert "1 cut at the deadline" in old.text()
        assert "Traceback" not in old.text()


def test_a_handler_that_has_a_loop_of_its_own_keeps_it(tmp_path: Path) -> None:
    port = free_port()
    only = Program(port, tmp_path / "h.sock", "own")
    with stopping(only):
        only.says("generation 1 serves")
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask() == 1
        only.says("own loop")
