"""Many connections in one call: their entries as the protocol writes them, and what came verified against them. It does for the
common case (sockets with a cookie) what ``describe`` and an ``Entry`` do for any, at a twentieth of the cost; whatever
is not that case is left to them.
"""

from __future__ import annotations

import _socket
import socket
from array import array

from ..listener import Connection
from .native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

# Read by the C type's own descriptors: ``socket.socket`` makes an enumeration of each.
_family = _socket.socket.family.__get__
_type = _socket.socket.type.__get__
_protocol = _socket.socket.proto.__get__
_fileno = _socket.socket.fileno

_WIDTH = 7  # numbers in a struct fdh_connection
_HEAD = 64  # bytes of an entry beside its name and its state, at most

_make = ffi.new_allocator(should_clear_after_alloc=False)


def pack(connections: Sequence[Connection]) -> tuple[bytes, list[int]] | None:
    """The entries' bytes, and the descriptors in their order; ``None`` where one of them needs more to be said."""
    sockets = [connection.target for connection in connections]
    if not all([isinstance(sock, _socket.socket) for sock in sockets]):
        return None
    count = len(sockets)
    fds = list(map(_fileno, sockets))
    names = [connection.name.encode() for connection in connections]
    states = [connection.state for connection in connections]
    if len(set(names)) == 1:
        text, name_sizes, name_offsets = names[0], [len(names[0])] * count, [0] * count
    else:
        text, name_sizes = b"".join(names), list(map(len, names))
        name_offsets = _offsets(name_sizes, 0)
    state_sizes = list(map(len, states))
    state_offsets = _offsets(state_sizes, len(text)) if any(state_sizes) else state_sizes
    text += b"".join(states)
    shapes = array("i", bytes(4 * _WIDTH * count))
    columns = (
        map(_family, sockets), map(_type, sockets), map(_protocol, sockets),
        name_offsets, name_sizes, state_offsets, state_sizes,
    )  # fmt: skip
    for place, column in enumerate(columns):
        shapes[place::_WIDTH] = array("i", column)
    capacity = len(text) + sum(name_sizes) + _HEAD * count
    buffer, size = _make("unsigned char[]", capacity), ffi.new("size_t *")
    result = lib.fdh_connections_pack(
        ffi.cast("struct fdh_connection *", ffi.from_buffer(shapes)),
        ffi.new("int[]", fds),
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


def _offsets(sizes: Sequence[int], at: int) -> list[int]:
    offsets = []
    for size in sizes:
        offsets.append(at)
        at += size
    return offsets


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

    def __iter__(self) -> Iterator[Connection]:
        payload, fds = self._payload, self._fds
        numbers = iter(ffi.unpack(self._shapes, _WIDTH * self._count))
        for family, kind, protocol, name_at, name_size, state_at, state_size in zip(*[numbers] * _WIDTH, strict=True):
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
