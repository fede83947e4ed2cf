"""The golden vectors are what this code writes and reads, and the reference shows the tables as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import ALL
from fdhandoff.protocol.session import Session
from fdhandoff.protocol.states import GIVER, OWNER, RECEIVER, TAKER
from tests.golden.generate import CONVERSATIONS, FOLDER, REFERENCE, SAMPLES, as_text, plain, vectors, with_sections

FILES = sorted(FOLDER.glob("*.json"))
MESSAGES = [path for path in FILES if not path.name.startswith("conversation-")]
HANDOFFS = [
    path
    for path in FILES
    if path.stem.startswith("conversation-") and path.stem not in ("conversation-verb", "conversation-moving")
]


def _decoded(vector: dict[str, Any]) -> None:
    decoder = frames.Decoder()
    fds = list(range(100, 100 + vector["descriptors"]))
    decoder.feed(bytes.fromhex(vector["hex"]), fds)
    ((message, own),) = decoder.messages()
    assert own == fds
    assert (type(message).__name__.upper(), message.TYPE) == (vector["message"], vector["type"])
    assert {name: plain(getattr(message, name)) for _, name, _, _ in message.FIELDS} == vector["fields"]
    assert frames.encode(message, len(fds)).hex() == vector["hex"]


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_golden_message_is_read_and_written_again_byte_for_byte(path: Path) -> None:
    _decoded(json.loads(path.read_text()))


@pytest.mark.parametrize("path", HANDOFFS, ids=lambda path: path.stem)
def test_a_golden_conversation_is_one_that_both_sides_understand(path: Path) -> None:
    sessions = {"owner": Session(OWNER), "taker": Session(TAKER)}
    for step in json.loads(path.read_text()):
        _decoded(step)
        data, fds = bytes.fromhex(step["hex"]), list(range(step["descriptors"]))
        speaker, hearer = sessions[step["from"]], sessions["taker" if step["from"] == "owner" else "owner"]
        decoder = frames.Decoder()
        decoder.feed(data, fds)
        ((message, _),) = decoder.messages()
        if step["message"] == "DRAINED":
            speaker.happen("over")
        assert speaker.say(message, len(fds)) == data
        assert [type(heard) for heard, _ in hearer.feed(data, fds)] == [type(message)]
        if step["message"] == "TAKEN":
            assert speaker.take_state() == b"hello"
        assert not (sessions["owner"].owns and sessions["taker"].owns)
    assert sessions["owner"].owns != sessions["taker"].owns


def test_the_golden_moving_of_connections_is_one_that_both_sides_understand() -> None:
    sessions = {GIVER: Session(GIVER), RECEIVER: Session(RECEIVER)}
    for step in json.loads((FOLDER / "conversation-moving.json").read_text()):
        _decoded(step)
        data, fds = bytes.fromhex(step["hex"]), list(range(step["descriptors"]))
        decoder = frames.Decoder()
        decoder.feed(data, fds)
        ((message, _),) = decoder.messages()
        speaker, hearer = sessions[step["from"]], sessions[RECEIVER if step["from"] == GIVER else GIVER]
        assert speaker.say(message, len(fds)) == data
        assert [type(heard) for heard, _ in hearer.feed(data, fds)] == [type(message)]
    assert (sessions[GIVER].state, sessions[RECEIVER].state) == ("ENDED", "CLOSED")
    assert (sessions[GIVER].items_acked, sessions[GIVER].items_sent) == (2, 3)


def test_the_files_are_what_the_generator_writes() -> None:
    expected = {name: as_text(content) for name, content in vectors().items()}
    assert {path.name: path.read_text() for path in FILES} == expected, "run: python -m tests.golden.generate"


def test_every_message_has_a_vector_with_all_its_fields() -> None:
    for cls in ALL:
        assert any(
            type(message) is cls
            and all(getattr(message, name) != default for _, name, _, default in cls.FIELDS if default)
            for message, _ in SAMPLES.values()
        ), cls.__name__
    assert set(CONVERSATIONS) >= {"whole", "final-state", "not-ready", "given-back", "in-progress", "verb"}


@pytest.mark.skipif(not REFERENCE.exists(), reason="the documentation is not part of this copy")
def test_the_reference_shows_the_tables_as_they_are() -> None:
    text = REFERENCE.read_text()
    assert with_sections(text) == text, "run: python -m tests.golden.generate"
