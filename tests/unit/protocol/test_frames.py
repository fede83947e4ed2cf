"""Bytes: what a frame looks like, and what is said about each way in which one can be wrong."""

from __future__ import annotations

import pytest

from fdhandoff.errors import ProtocolError
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import ALL, Ack, Hello, Items, Offer, Ready, State
from tests.support.pair import entry

HELLO = Hello(min_version=1, max_version=1)


def decode(data: bytes, fds: tuple[int, ...] = ()) -> list:
    decoder = frames.Decoder()
    decoder.feed(data, fds)
    return list(decoder.messages())


def header(magic: bytes = b"FDHO", kind: int = 7, flags: int = 0, n_fds: int = 0, length: int = 0) -> bytes:
    return frames.HEADER.pack(magic, kind, flags, n_fds, length)


def test_a_frame_is_a_header_of_twelve_bytes_and_its_payload() -> None:
    assert frames.encode(Ready()) == b"FDHO\x07\x00\x00\x00\x00\x00\x00\x00"
    ack = frames.encode(Ack(items=5))
    assert ack == b"FDHO\x04\x00\x00\x00\x00\x00\x00\x0e" + b"\x00\x01\x00\x00\x00\x08" + (5).to_bytes(8, "big")


def test_a_message_waits_for_its_last_byte() -> None:
    data = frames.encode(HELLO, 1)
    decoder = frames.Decoder()
    decoder.feed(data[:-1], [9])
    assert list(decoder.messages()) == []
    assert decoder.mid_frame
    decoder.feed(data[-1:])
    assert list(decoder.messages()) == [(HELLO, [9])]
    assert not decoder.mid_frame
    assert decoder.pending_fds == []


def test_messages_in_one_piece_each_get_their_descriptors() -> None:
    a, b = Items(first=0, entries=[entry("a")]), Items(first=1, entries=[entry("b"), entry("c")])
    got = decode(frames.encode(a, 1) + frames.encode(Ready()) + frames.encode(b, 2), (3, 4, 5))
    assert [fds for _, fds in got] == [[3], [], [4, 5]]


@pytest.mark.parametrize(
    ("data", "fds", "sentence"),
    [
        (header(magic=b"HTTP"), (), "does not speak this protocol.*HTTP"),
        (header(kind=0), (), "unknown type 0"),
        (header(kind=17), (), "unknown type 17"),
        (header(flags=1), (), "unknown flags 0x1"),
        (header(length=frames.PAYLOAD_MAX + 1), (), "1048577 bytes; at most 1048576"),
        (header(n_fds=1), (), "1 descriptors with Ready; at most 0"),
        (header(kind=3, n_fds=253), (), "253 descriptors with Items; at most 252"),
        (header(kind=1, n_fds=2), (), "2 descriptors with Hello; at most 1"),
        (header(kind=1, n_fds=1, length=4), (), "1 descriptors were sent with Hello, 0 arrived.*open-files limit"),
        (header(), (5,), "1 descriptors came that belong to no message"),
    ],
)
def test_each_wrong_frame_has_its_sentence(data: bytes, fds: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        decode(data, fds)


def test_an_oversized_payload_is_refused_before_it_comes() -> None:
    with pytest.raises(ProtocolError):
        decode(header(kind=5, length=2**32 - 1))


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"\x00\x01\x00", "ends inside a field's head"),
        (b"\x00\x01\x00\x00\x00\x09" + bytes(8), "ends inside field 1: 9 bytes said, 8 there"),
        (b"\x00\x01\x00\x00\x00\x07" + bytes(7), "has 7 bytes; a number has 8"),
        (b"", "lacks items"),
        ((b"\x00\x01\x00\x00\x00\x08" + bytes(8)) * 2, "says items twice"),
    ],
)
def test_each_wrong_payload_has_its_sentence(payload: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        decode(header(kind=4, length=len(payload)) + payload)


def test_fields_of_later_versions_are_ignored() -> None:
    payload = b"\x00\x63\x00\x00\x00\x03new" + b"\x00\x01\x00\x00\x00\x08" + (3).to_bytes(8, "big")
    assert decode(header(kind=4, length=len(payload)) + payload) == [(Ack(items=3), [])]


def test_more_than_a_frame_holds_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="at most 0 descriptors"):
        frames.encode(Ready(), 1)
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        frames.encode(State(data=bytes(frames.PAYLOAD_MAX)))


def test_every_message_type_has_its_own_number_and_tags() -> None:
    assert [cls.TYPE for cls in ALL] == list(range(1, 17))
    for cls in ALL:
        assert [tag for tag, *_ in cls.FIELDS] == list(range(1, len(cls.FIELDS) + 1))


def test_a_message_must_have_its_fields_and_no_other() -> None:
    with pytest.raises(TypeError, match="Offer needs version"):
        Offer(generation=1, items=0, state_size=0)
    with pytest.raises(TypeError, match="Ready has no colour"):
        Ready(colour="red")
