"""What is known of a websocket's bytes: where frames and messages end, however they come."""

from __future__ import annotations

import asyncio
import sys

import pytest
from hypothesis import given, settings, strategies as st

from fdhandoff.listener import Connection
from fdhandoff.websocket import Incoming, Outgoing, Packed, Talk


def frame(opcode: int, data: bytes, *, last: bool = True) -> bytes:
    size = len(data)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([(0x80 if last else 0) | opcode]) + length + b"mask" + data


SIZES = st.sampled_from([0, 1, 125, 126, 300, 65535, 65536])
#: A message's fragments, and whether a ping comes in front of each.
MESSAGES = st.lists(st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=3), max_size=4)


@settings(deadline=None)  # the machine may stand still meanwhile
@given(MESSAGES, st.data())
def test_however_the_bytes_come_what_is_kept_is_the_unfinished_message(messages: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    stream, message_at = b"", []
    for fragments in messages:
        for place, (size, pinged) in enumerate(fragments):
            if pinged:
                stream += frame(9, b"ping")
            stream += frame(1 if place == 0 else 0, b"x" * size, last=place == len(fragments) - 1)
        message_at.append(len(stream))
    cut = data.draw(st.integers(0, len(stream)))
    incoming = Incoming()
    position = 0
    while position < cut:
        size = data.draw(st.integers(1, max(1, cut - position)))
        incoming.feed(stream[position : min(cut, position + size)])
        position += size
    assert incoming.messages == sum(1 for end in message_at if end <= cut)
    # Whoever goes on with what is kept and with the rest of the stream hears the same messages.
    successor = Incoming()
    successor.feed(bytes(incoming.rest))
    assert successor.messages == 0
    successor.feed(stream[cut:])
    assert incoming.messages + successor.messages == len(messages)
    assert not successor.rest
    assert not successor.closing


def test_a_close_is_noticed_between_two_fragments() -> None:
    incoming = Incoming()
    incoming.feed(frame(1, b"a", last=False) + frame(8, b"\x03\xe8"))
    assert incoming.closing
    assert bytes(incoming.rest) == frame(1, b"a", last=False)


def test_what_is_packed_is_unpacked_and_nonsense_is_not() -> None:
    data = Packed(b"GET", b"half", b"state").encode()
    assert data is not None
    read = Packed.decode(data)
    assert (read.head, read.rest, read.state) == (b"GET", b"half", b"state")
    for wrong in (b"", data[:8], data[:11], b"\x02" + data[1:]):
        with pytest.raises(ValueError, match="websocket's state"):
            Packed.decode(wrong)
    assert Packed(b"GET", b"", b"x" * Connection.STATE_MAX).encode() is None


class Wire:
    """A transport that only remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = self.closed = self.aborted = self.ended = False

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def resume_reading(self) -> None:
        self.reading = True


class Owner:
    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> object:
        return lambda: self.told.append(name)


ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def test_the_answer_that_the_client_has_had_is_swallowed_and_what_follows_is_not() -> None:
    wire, owner = Wire(), Owner()
    outgoing = Outgoing(wire, owner, resumed=True)
    outgoing.write(ACCEPTED[:20])
    outgoing.write(ACCEPTED[20:] + b"frame")
    outgoing.write(b"another")
    assert wire.written == b"frameanother"
    assert owner.told == ["resume"]


@pytest.mark.parametrize("kept", ["text, and not bytes", None, b"x" * (Connection.STATE_MAX + 1)])
def test_one_whose_application_can_not_say_its_state_is_told_to_come_again_like_any_that_can_not_move(
    kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: said.append(kind))

    def save() -> object:
        if kept is None:
            raise KeyError("nick")
        return kept

    talk = Talk(None, lambda _: None)
    talk.over(Wire()).write(ACCEPTED)
    talk.session.keep(save)  # type: ignore[arg-type]
    talk.waits = True
    assert talk.may_move
    assert talk.packed(b"GET") is None
    assert not talk.may_move
    assert talk.failed
    assert said == [KeyError if kept is None else TypeError if isinstance(kept, str) else ValueError]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 403 Forbidden\r\n\r\n", ACCEPTED[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"],
)
def test_one_that_is_refused_over_there_is_told_to_come_again(answer: bytes) -> None:
    wire = Wire()
    Outgoing(wire, Owner(), resumed=True).write(answer)
    assert wire.written == b"\x88\x02\x03\xf4"
    assert wire.closed


@pytest.mark.parametrize("taken", [True, False])
def test_nothing_is_written_while_it_is_under_way(taken: bool) -> None:
    wire, owner = Wire(), Owner()
    outgoing = Outgoing(wire, owner, resumed=False)
    outgoing.write(ACCEPTED)
    outgoing.hold()
    outgoing.writelines([b"pi", b"ng"])
    outgoing.write_eof()
    assert wire.written == ACCEPTED
    assert not wire.ended
    if taken:
        outgoing.abort()
    else:
        outgoing.resume_reading()
    assert owner.told == ["leaves" if taken else "stays"]
    assert wire.written == (ACCEPTED if taken else ACCEPTED + b"ping")
    assert wire.ended is not taken


def test_nobody_waits_for_what_becomes_of_one_that_has_ended() -> None:
    async def main() -> None:
        talk = Talk(None, lambda _: None)
        talk.over(Wire()).write(ACCEPTED)
        talk.session.keep(lambda: b"state")
        talk.waits = True
        assert talk.packed(b"GET") is not None
        sending = asyncio.create_task(talk.decided())
        await asyncio.sleep(0)
        talk.ended()
        await asyncio.wait_for(sending, 20)

    asyncio.run(main())
