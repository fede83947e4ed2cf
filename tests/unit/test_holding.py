"""``send`` as a holder uses it: the path stays, the offer can be withdrawn, and status tells what is offered."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import fdhandoff
from fdhandoff import registry
from fdhandoff.system.wake import Wake

from .system import finish, python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAKE = """
import sys, {package}
takeover = {package}.receive(sys.argv[1], timeout=10)
takeover.ready()
print(takeover.generation.number, *takeover.listeners.names, takeover.listeners[0].getsockname()[1])
"""
ABORT = """
import sys, {package}
{package}.receive(sys.argv[1], timeout=10).abort("no mood")
"""


class Sender(threading.Thread):
    """``send`` in a thread of its own, until it returns or raises."""

    def __init__(self, path: str, listener: socket.socket, **options: Any) -> None:
        super().__init__(daemon=True)
        self.wake = Wake()
        self.call = lambda: fdhandoff.send(path, {"http": listener}, wake_fd=self.wake.fileno(), **options)
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except fdhandoff.HandoffError as error:
            self.result = error

    def end(self, timeout: float = 20) -> Any:
        self.join(timeout)
        assert not self.is_alive()
        self.wake.close()
        return self.result


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=7) as sock:
        yield sock


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "h.sock")
    registry.remove(str(tmp_path / "h.sock"))


def _status(path: str) -> dict[str, Any]:
    """Empty before the sender's thread has bound the path."""
    try:
        return fdhandoff.ask(path, "status")
    except fdhandoff.PathError:
        return {}


def test_a_kept_path_gives_again_and_again_under_new_numbers(path: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for number in (2, 3, 4):
        sender = Sender(path, listener, keep_path=True)
        assert finish(python(TAKE, path)).split() == [str(number), "http", str(port)]
        assert sender.end().generation.number == number
        assert os.path.exists(path), "the taker, which ended, must not have removed it"
        assert fdhandoff.ask(path, "status")["state"] == "starting"


def test_a_path_that_is_not_kept_goes_to_the_taker(path: str, listener: socket.socket) -> None:
    sender = Sender(path, listener)
    finish(python(TAKE, path))
    assert sender.end().generation.number == 2
    assert registry.find(path) is None
    assert not os.path.exists(path), "the taker was the last owner"


def test_an_offer_can_be_withdrawn_and_made_again(path: str, listener: socket.socket) -> None:
    sender = Sender(path, listener)
    sender.wake.set()
    error = sender.end()
    assert isinstance(error, fdhandoff.Aborted)
    assert error.serving == "old"
    sender = Sender(path, listener, keep_path=True)
    finish(python(TAKE, path))
    sender.end()


def test_withdrawing_ends_probation_not_the_handoff(path: str, listener: socket.socket) -> None:
    sender = Sender(path, listener, keep_path=True, probation=600)
    with python(TAKE.replace("print(", "print(1, flush=True); sys.stdin.readline(); print("), path) as taker:
        assert taker.stdout is not None
        taker.stdout.readline()  # it serves
        sender.wake.set()
        assert sender.end().generation.number == 2
        taker.communicate("\n", timeout=20)
        assert taker.returncode == 0


def test_status_tells_what_is_offered_and_how_the_last_upgrade_ended(path: str, listener: socket.socket) -> None:
    sender = Sender(path, listener, timeout=20)
    while (status := _status(path)).get("state") != "offering":
        pass
    port = listener.getsockname()[1]
    assert status["schema"] == 1
    assert (status["pid"], status["uid"], status["generation"]) == (os.getpid(), os.geteuid(), 1)
    assert status["listeners"] == [{"name": "http", "address": f"127.0.0.1:{port}", "queue": 0, "backlog": 7}]
    assert status["last_upgrade"] is None
    finish(python(ABORT, path))
    assert isinstance(sender.end(), fdhandoff.PeerAborted)
    status = fdhandoff.ask(path, "status")
    assert status["last_upgrade"]["result"] == "failed"
    assert "no mood" in status["last_upgrade"]["reason"]
    assert status["listeners"] == [], "nothing is offered now"
