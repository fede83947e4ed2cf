"""``send``: what is refused before it begins, and what an offer that nobody takes leaves behind."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdhandoff
from fdhandoff import registry
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Offer, Refused
from tests.support.stranger import HELLO, Stranger


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    found = str(tmp_path / "h.sock")
    yield found
    registry.remove(found)
    assert os.listdir(tmp_path) == []


def test_nobody_comes_and_the_caller_serves_on(path: str, listener: socket.socket) -> None:
    for _ in range(3):
        with pytest.raises(fdhandoff.DeadlineExceeded) as caught:
            fdhandoff.send(path, [listener], timeout=0.01)
        assert caught.value.serving == "old"
    assert fdhandoff.ask(path, "status")["state"] == "starting"
    listener.getsockname()


def test_the_path_is_the_owners_alone(path: str, listener: socket.socket) -> None:
    with pytest.raises(fdhandoff.DeadlineExceeded):
        fdhandoff.send(path, [listener], timeout=0)
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_one_process_offers_once_at_a_path(path: str, listener: socket.socket) -> None:
    offering = threading.Event()
    failed: list[BaseException] = []

    def first() -> None:
        try:
            offering.set()
            fdhandoff.send(path, [listener], timeout=5, wake_fd=wake)
        except fdhandoff.HandoffError as error:
            failed.append(error)

    wake, ring = os.pipe()
    thread = threading.Thread(target=first)
    thread.start()
    while registry.find(path) is None or registry.find(path).greeter is None:
        offering.wait(0.001)
    with pytest.raises(fdhandoff.InProgress, match="another thread"):
        fdhandoff.send(path, [listener], timeout=5)
    os.write(ring, b"x")
    thread.join()
    assert isinstance(failed[0], fdhandoff.Aborted)
    os.close(wake)
    os.close(ring)


def test_a_taker_that_comes_as_the_offer_ends_is_told_to_try_again(path: str, listener: socket.socket) -> None:
    """However the two meet: it gets the offer, or "starting"; never silence, and nothing stays open."""
    for attempt in range(12):
        with pytest.raises(fdhandoff.HandoffError):  # noqa: PT012
            thread = threading.Thread(target=_come, args=(path, attempt))
            thread.start()
            try:
                fdhandoff.send(path, [listener], timeout=0.002 * (attempt % 5), ready_timeout=5)
            finally:
                thread.join()


def _come(path: str, attempt: int) -> None:
    try:
        guest = Stranger.connected(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return
    with guest:
        guest.raw(frames.encode(HELLO))
        answer = guest.hear()
        assert isinstance(answer, (Offer, Refused)), answer


@pytest.mark.parametrize(
    ("item", "error", "sentence"),
    [
        ("text", TypeError, "neither a socket, a descriptor nor a Listener but str"),
        (True, TypeError, "but bool"),
        (None, TypeError, "but NoneType"),
        (-1, fdhandoff.ListenerError, "is closed"),
        (10**6, fdhandoff.ListenerError, "can't be handed over"),
    ],
)
def test_what_can_not_be_handed_over_is_refused_before_anything_begins(
    path: str, item: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        fdhandoff.send(path, {"thing": item})
    assert not os.path.exists(path)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
def test_a_socket_without_an_address_is_no_listener(path: str, family: int) -> None:
    with socket.socket(family) as unbound, pytest.raises(fdhandoff.ListenerError, match="without an address"):
        fdhandoff.send(path, {"thing": fdhandoff.Listener("thing", unbound)}, timeout=0)


@pytest.mark.parametrize("name", ["", "a:b", "é", "x" * 256, "a\n"])
def test_a_name_must_fit_into_the_environment(path: str, listener: socket.socket, name: str) -> None:
    with pytest.raises(ValueError, match="a listener's name"):
        fdhandoff.send(path, {name: listener}, timeout=0)
