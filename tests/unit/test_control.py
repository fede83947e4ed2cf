"""Whoever answers at the handoff path: guests, refusals and verbs, over real sockets."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff import registry
from fdhandoff.client import ask
from fdhandoff.control import GUESTS_MAX
from fdhandoff.errors import PathError, PeerRefused
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Hello, Refused, Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdhandoff.control import Endpoint, Reply


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    made = registry.obtain(str(tmp_path / "h.sock"))
    yield made
    registry.remove(made.path)


def connect(endpoint: Endpoint) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(endpoint.path)
    return sock


def answer_to(endpoint: Endpoint, data: bytes) -> Any:
    """The first message that comes back for these bytes."""
    with connect(endpoint) as sock:
        sock.sendall(data)
        decoder = frames.Decoder()
        while True:
            got = sock.recv(65536)
            assert got, "hung up without a word"
            decoder.feed(got)
            for message, _ in decoder.messages():
                return message


def request(verb: str, body: bytes = b"{}", version: int = 1) -> bytes:
    return frames.encode(Request(min_version=version, max_version=version, verb=verb, body=body))


def test_status_says_who_answers(endpoint: Endpoint) -> None:
    facts = ask(endpoint.path, "status")
    assert (facts["pid"], facts["state"], facts["path"]) == (os.getpid(), "starting", endpoint.path)


def test_a_taker_is_told_to_wait_while_nobody_offers(endpoint: Endpoint) -> None:
    refused = answer_to(endpoint, frames.encode(Hello(min_version=1, max_version=1)))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.pid) == ("starting", os.getpid())


def test_an_unknown_verb_names_the_known_ones(endpoint: Endpoint) -> None:
    with pytest.raises(PeerRefused, match="it knows status") as caught:
        ask(endpoint.path, "dance")
    assert caught.value.code == "unknown-verb"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_answered(endpoint: Endpoint, body: bytes) -> None:
    response = answer_to(endpoint, request("status", body))
    assert isinstance(response, Response)
    assert response.code == ("ok" if body == b"" else "malformed")


def test_a_version_of_the_future_is_answered_with_ours(endpoint: Endpoint) -> None:
    response = answer_to(endpoint, request("status", version=99))
    assert response.code == "version"
    assert "1 to 1" in json.loads(response.body)["error"]


def test_a_verb_s_fault_does_not_make_the_path_deaf(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(body: dict[str, Any], reply: Reply) -> None:
        raise RuntimeError("a fault of the application")

    endpoint.verbs["broken"] = broken
    with pytest.raises(PeerRefused, match="its error output says why"):
        ask(endpoint.path, "broken")
    assert "a fault of the application" in capsys.readouterr().err
    assert ask(endpoint.path, "status")["pid"] == os.getpid()


def test_events_come_before_the_answer_and_may_come_from_another_thread(endpoint: Endpoint) -> None:
    def slow(body: dict[str, Any], reply: Reply) -> None:
        def work() -> None:
            for number in range(3):
                reply.event({"number": number})
            reply.done({"asked": body})

        threading.Thread(target=work).start()

    endpoint.verbs["slow"] = slow
    events: list[dict[str, Any]] = []
    answer = ask(endpoint.path, "slow", {"a": 1}, on_event=events.append)
    assert [event["number"] for event in events] == [0, 1, 2]
    assert answer["asked"] == {"a": 1}


def test_an_asker_that_hung_up_is_noticed_by_who_answers(endpoint: Endpoint) -> None:
    gone = threading.Event()
    outcome: list[bool] = []

    def slow(body: dict[str, Any], reply: Reply) -> None:
        def work() -> None:
            gone.wait(10)
            outcome.append(reply.event({}))
            outcome.append(reply.event({}))
            reply.done()
            done.set()

        threading.Thread(target=work).start()

    done = threading.Event()
    endpoint.verbs["slow"] = slow
    with connect(endpoint) as sock:
        sock.sendall(request("slow"))
    gone.set()
    assert done.wait(10)
    assert outcome[-1] is False


def test_the_hall_has_room_for_so_many_and_who_speaks_is_heard_all_the_same(endpoint: Endpoint) -> None:
    silent = [connect(endpoint) for _ in range(GUESTS_MAX)]
    try:
        with connect(endpoint) as late:
            decoder = frames.Decoder()
            decoder.feed(late.recv(65536))
            ((refused, _),) = decoder.messages()
            assert isinstance(refused, Refused)
            assert refused.code == "busy"
        silent.pop().close()
        silent[0].sendall(request("status"))
        assert silent[0].recv(65536)
    finally:
        for sock in silent:
            sock.close()


def test_a_silent_path_lets_nobody_in_until_it_speaks_again(endpoint: Endpoint) -> None:
    registry.release(endpoint)
    with connect(endpoint) as sock:
        sock.sendall(request("status"))
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        registry.resume(endpoint)
        sock.settimeout(10)
        assert sock.recv(65536)


def test_nobody_answers_once_the_path_is_removed(tmp_path: Path) -> None:
    endpoint = registry.obtain(str(tmp_path / "h.sock"))
    registry.remove(endpoint.path)
    with pytest.raises(PathError, match="no such socket"):
        ask(endpoint.path, "status")
