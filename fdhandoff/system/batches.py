"""Many connections in one call: their entries as the protocol writes them, and what came verified against them. It does for the
common case (sockets with a cookie) what ``describe`` and an ``Entry`` do for any, at a twentieth of the cost; whatever
is not that case is left to them.
"""

from __future__ import annotations

import _socket
import socket
from array import array
from itertools import accumulate

from ..listener import Connection
from .native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

# Read by the C type's own descriptors: ``socket.socket`` makes an enumeration of each.
_family = _socket.socket.family.__get__
_type = _socket.socket.type.__get__
_protocol = _socket.socket.proto.__get__
_fileno = _socket.socket.fileno

_WIDTH = 7  # numbers in a struct fdh_connection, of which these are some:
_NAME_OFFSET, _NAME_SIZE, _STATE_OFFSET, _STATE_SIZE = range(3, _WIDTH)
_HEAD = 64  # bytes of an entry beside its name and its state, at most

_make = ffi.new_allocator(should_clear_after_alloc=False)


def pack(connections: Sequence[Connection], states: Sequence[bytes]) -> tuple[bytes, array[int]] | None:
    """The bytes of the entries of ``connections``, whose states are ``states``, and the descriptors in their order; ``None``
    where one of them needs more to be said."""
    sockets = [connection.target for connection in connections]
    try:
        fds = array("i", list(map(_fileno, sockets)))
    except TypeError:  # not a socket
        return None
    count = len(sockets)
    columns: dict[int, Iterable[int]] = {}
    usual = [0] * _WIDTH
    # What is the same of all, as a rule, is written once.
    for place, read in enumerate((_family, _type, _protocol)):
        values = set(map(read, sockets))
        if len(values) == 1:
            usual[place] = values.pop()
        else:
            columns[place] = map(read, sockets)
    names = {connection.name for connection in connections}
    if len(names) == 1:
        text = names.pop().encode()
        usual[_NAME_SIZE] = len(text)
        names_size = count * len(text)
    else:
        each = [connection.name.encode() for connection in connections]
        text, name_sizes = b"".join(each), list(map(len, each))
        columns[_NAME_OFFSET], columns[_NAME_SIZE] = accumulate(name_sizes[:-1], initial=0), name_sizes
        names_size = len(text)
    body = b"".join(states)
    if body:
        sizes = list(map(len, states))
        if len(set(sizes)) == 1:
            usual[_STATE_SIZE] = sizes[0]
            columns[_STATE_OFFSET] = range(len(text), len(text) + len(body), sizes[0])
        else:
            columns[_STATE_OFFSET], columns[_STATE_SIZE] = accumulate(sizes[:-1], initial=len(text)), sizes
    shapes = array("i", usual) * count
    for place, column in columns.items():
        shapes[place::_WIDTH] = array("i", column)
    text += body
    capacity = len(body) + names_size + _HEAD * count
    buffer, size = _make("unsigned char[]", capacity), ffi.new("size_t *")
    result = lib.fdh_connections_pack(
        ffi.cast("struct fdh_connection *", ffi.from_buffer(shapes)),
        ffi.from_buffer("int[]", fds),
        count,
        ffi.from_buffer(text),
        len(text),
        buffer,
        capacity,
        size,
    )
    if result != 0:
        return None
    return ffi.buffer(buffer, size[0])[:], fds


class Arrived:
    """Verified connections of one message, each of which becomes an object when it is iterated over, which can be done once;
    ``first`` is the number of the first of them. What nobody has looked at is closed with it.
    """

    __slots__ = ("_count", "_fds", "_payload", "_shapes", "first")

    def __init__(self, first: int, count: int, payload: bytes, shapes: Any) -> None:
        self.first = first
        self._count = count
        self._payload = payload
        self._shapes = shapes
        self._fds: list[int] = []

    def own(self, fds: list[int]) -> None:
        """From here on the descriptors (those that it was made with) are its own."""
        self._fds, fds[:] = fds[::-1], []

    def __len__(self) -> int:
        return self._count

    def bare(self) -> Iterator[tuple[_socket.socket, bytes]]:
        """What iterating gives, but for the names: sockets as the C type makes them, and states."""
        payload, fds = self._payload, self._fds
        for family, kind, protocol, _, _, state_at, state_size in self._rows():
            sock = _socket.socket(family, kind, protocol, fds[-1])
            fds.pop()
            yield sock, payload[state_at : state_at + state_size]

    def _rows(self) -> Iterator[tuple[int, ...]]:
        numbers = iter(ffi.unpack(self._shapes, _WIDTH * self._count))
        return zip(*[numbers] * _WIDTH, strict=True)

    def __iter__(self) -> Iterator[Connection]:
        payload, fds = self._payload, self._fds
        for family, kind, protocol, name_at, name_size, state_at, state_size in self._rows():
            sock = socket.socket(family, kind, protocol, fds[-1])
            fds.pop()
            yield Connection(
                payload[name_at : name_at + name_size].decode("ascii"), sock, payload[state_at : state_at + state_size]
            )

    def close(self) -> None:
        while self._fds:
            lib.fdh_close(self._fds.pop())

    def __del__(self) -> None:
        self.close()


def unpack(payload: bytes, fds: Sequence[int]) -> Arrived | None:
    """An ITEMS message's connections, each verified; ``None`` where something about it has to be looked at one by one. The
    descriptors stay the caller's until the result shall ``own`` them."""
    count = len(fds)
    shapes, first = _make("int32_t[]", _WIDTH * count), ffi.new("uint64_t *")
    result = lib.fdh_connections_unpack(
        ffi.from_buffer(payload),
        len(payload),
        ffi.new("int[]", list(fds)),
        count,
        first,
        ffi.cast("struct fdh_connection *", shapes),
    )
    return Arrived(first[0], count, payload, shapes) if result == 0 else None
