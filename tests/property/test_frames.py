"""However the stream is cut, the same messages come out; whatever comes in, nothing but ``ProtocolError`` happens."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings, strategies as st

from fdhandoff.errors import ProtocolError
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Message, decode_entry, decode_payload, encode_entry, encode_payload
from fdhandoff.protocol.session import Session
from fdhandoff.protocol.states import OWNER, TAKER
from tests.support.strategies import cuts, entries, messages

BOUNDED = settings(max_examples=150, deadline=None)


def stream_of(said: list[tuple[Message, int]]) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes, and which descriptor travels with which byte: the first of its frame."""
    data = b""
    fds: list[tuple[int, int]] = []
    for message, n_fds in said:
        fds += [(len(data), 1000 + len(fds) + i) for i in range(n_fds)]
        data += frames.encode(message, n_fds)
    return data, fds


@given(said=st.lists(messages(), max_size=6), data=st.data())
@BOUNDED
def test_any_chunking_decodes_the_same(said: list[tuple[Message, int]], data: st.DataObject) -> None:
    stream, fds = stream_of(said)
    decoder = frames.Decoder()
    got: list[tuple[Message, list[int]]] = []
    edges = [0, *data.draw(cuts(len(stream))), len(stream)] if stream else [0]
    for start, end in pairwise(edges):
        # The kernel gives a frame's descriptors with its first byte, never later.
        decoder.feed(stream[start:end], [fd for at, fd in fds if start <= at < end])
        got += decoder.messages()
    assert [message for message, _ in got] == [message for message, _ in said]
    assert [len(own) for _, own in got] == [n for _, n in said]
    assert [fd for _, own in got for fd in own] == [fd for _, fd in fds]
    assert decoder.pending_fds == []
    assert not decoder.mid_frame


@given(message=messages())
@BOUNDED
def test_every_message_comes_back_as_it_went(message: tuple[Message, int]) -> None:
    assert decode_payload(type(message[0]), encode_payload(message[0])) == message[0]


@given(entry=entries())
@BOUNDED
def test_every_entry_comes_back_as_it_went(entry: object) -> None:
    assert decode_entry(encode_entry(entry)) == entry


def _survives(chunks: list[bytes], fds: list[int]) -> None:
    """Fed to a bare decoder and to both sides of a conversation: messages or ``ProtocolError``, and no descriptor lost."""
    for session in (None, Session(OWNER), Session(TAKER)):
        decoder = frames.Decoder()
        came: list[int] = []
        given_fds = list(fds)
        for chunk in chunks:
            now, given_fds = given_fds[:1], given_fds[1:]
            came += now
            try:
                if session is None:
                    decoder.feed(chunk, now)
                    for _, own in decoder.messages():
                        came = [fd for fd in came if fd not in own]
                else:
                    for _, own in session.feed(chunk, now):
                        came = [fd for fd in came if fd not in own]
            except ProtocolError:
                break
        pending = decoder.pending_fds if session is None else session.pending_fds
        assert sorted(pending) == sorted(came)


@given(chunks=st.lists(st.binary(max_size=100), max_size=5), n_fds=st.integers(0, 5))
@example(chunks=[b"FDHO"], n_fds=0)
@BOUNDED
def test_random_bytes_never_crash(chunks: list[bytes], n_fds: int) -> None:
    _survives(chunks, list(range(100, 100 + n_fds)))


@given(said=st.lists(messages(), min_size=1, max_size=3), data=st.data())
@BOUNDED
def test_mutated_frames_never_crash(said: list[tuple[Message, int]], data: st.DataObject) -> None:
    stream = bytearray(stream_of(said)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        change = data.draw(st.sampled_from(["set", "drop", "double"]))
        if change == "set":
            stream[at] = data.draw(st.integers(0, 255))
        elif change == "drop" and len(stream) > 1:
            del stream[at]
        else:
            stream[at:at] = stream[at : at + data.draw(st.integers(1, 20))]
    n_fds = data.draw(st.integers(0, 6))
    _survives([bytes(stream)], [100])
    edges = [0, *data.draw(cuts(len(stream))), len(stream)]
    _survives([bytes(stream[a:b]) for a, b in pairwise(edges)], list(range(100, 100 + n_fds)))


@given(n_fds=st.integers(0, 8), said=st.integers(0, 8))
@BOUNDED
def test_lost_or_surplus_descriptors_are_noticed(n_fds: int, said: int) -> None:
    from fdhandoff.protocol.messages import Items
    from tests.support.pair import entry

    data = frames.encode(Items(first=0, entries=[entry()] * said), said)
    decoder = frames.Decoder()
    decoder.feed(data, list(range(n_fds)))
    try:
        got = list(decoder.messages())
    except ProtocolError:
        assert n_fds != said
        assert len(decoder.pending_fds) == n_fds or n_fds > said
    else:
        assert n_fds == said
        assert got[0][1] == list(range(n_fds))
