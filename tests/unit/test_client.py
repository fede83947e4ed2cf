"""Asking an owner, and the ways in which no answer comes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fdhandoff
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Event, Ready, Refused, Request, Response
from tests.support.stranger import FakeOwner, Stranger


def asking(tmp_path: Path, play: Callable[[Stranger], object], **options: Any) -> dict[str, Any]:
    with FakeOwner(str(tmp_path / "h.sock"), play):
        return fdhandoff.ask(tmp_path / "h.sock", "status", **options)


def answering(*said: Any) -> Callable[[Stranger], object]:
    def play(stranger: Stranger) -> None:
        stranger.hear()
        for one in said:
            stranger.raw(one) if isinstance(one, bytes) else stranger.say(one)

    return play


def test_events_come_before_the_answer(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    said = [Event(body=b'{"n": 1}'), Event(body=b'{"n": 2}'), Response(code="ok", body=b'{"done": true}')]
    assert asking(tmp_path, answering(*said), on_event=events.append) == {"done": True}
    assert events == [{"n": 1}, {"n": 2}]


def test_the_question_is_a_verb_with_an_object(tmp_path: Path) -> None:
    heard: list[Any] = []

    def play(stranger: Stranger) -> None:
        heard.append(stranger.hear())
        stranger.say(Response(code="ok"))

    with FakeOwner(str(tmp_path / "h.sock"), play):
        assert fdhandoff.ask(tmp_path / "h.sock", "upgrade", {"wait": "served"}) == {}
    assert isinstance(heard[0], Request)
    assert (heard[0].verb, json.loads(heard[0].body)) == ("upgrade", {"wait": "served"})


@pytest.mark.parametrize(
    ("said", "error", "sentence"),
    [
        (Refused(code="untrusted", reason="not you"), fdhandoff.PeerRefused, "not you"),
        (Response(code="vetoed", body=b'{"error": "no", "serving": "old"}'), fdhandoff.PeerRefused, "no"),
        (Response(code="ok", body=b"nonsense"), fdhandoff.ProtocolError, "not JSON"),
        (Response(code="ok", body=b"[]"), fdhandoff.ProtocolError, "not a JSON object"),
        (Ready(), fdhandoff.ProtocolError, "answered 'status' with Ready"),
        (b"HTTP/1.1 200 OK\r\n", fdhandoff.ProtocolError, "does not speak this protocol"),
        (frames.encode(Response(code="ok"))[:-1], fdhandoff.PeerGone, "hung up before it answered"),
    ],
)
def test_each_wrong_answer_has_its_error(tmp_path: Path, said: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        asking(tmp_path, answering(said))


def test_a_refusal_before_the_question_is_read(tmp_path: Path) -> None:
    def play(stranger: Stranger) -> None:
        stranger.say(Refused(code="busy", reason="too many"))

    with pytest.raises(fdhandoff.PeerRefused) as caught:
        asking(tmp_path, play)
    assert caught.value.code == "busy"


def test_an_owner_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(fdhandoff.DeadlineExceeded, match="did not answer 'status' in time"):
        asking(tmp_path, lambda stranger: stranger.at_end(), timeout=0.1)


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(fdhandoff.PathError, match="no such socket") as caught:
        fdhandoff.ask(tmp_path / "h.sock", "status")
    assert caught.value.serving == "nobody"


def test_descriptors_with_an_answer_are_not_kept(tmp_path: Path) -> None:
    with socket.socket() as sock:

        def play(stranger: Stranger) -> None:
            stranger.hear()
            stranger.say(Response(code="ok"), [sock.fileno()])

        with pytest.raises(fdhandoff.ProtocolError):
            asking(tmp_path, play)
    assert os.listdir(tmp_path) == []
