"""Reads of a connection by a thread, that let it go while they wait: for servers whose handlers block.

A read that is not complete has not happened: what came of it stays unread, and travels with the connection. So half a line
moves, without the handler's having to know.
"""

from __future__ import annotations

import io
import socket
import struct
from typing import TYPE_CHECKING

from .listener import Connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SIZES = struct.Struct("!BI")  # format, size of what is unread; then that and the application's state
_FORMAT = 1
_CHUNK = 64 * 1024


class Moved(ConnectionError):
    """From a read or a write of a connection that goes on in the next generation: nobody has left."""


def pack(unread: bytes, state: bytes) -> bytes | None:
    """``None`` where it is more than a connection's state may be."""
    data = _SIZES.pack(_FORMAT, len(unread)) + unread + state
    return data if len(data) <= Connection.STATE_MAX else None


def unpack(data: bytes) -> tuple[bytes, bytes]:
    """What is unread, and the application's state. ``ValueError`` where it is none."""
    if len(data) < _SIZES.size:
        raise ValueError("a connection's state is cut off")
    form, size = _SIZES.unpack_from(data)
    unread, state = data[_SIZES.size : _SIZES.size + size], data[_SIZES.size + size :]
    if form != _FORMAT or len(unread) < size:
        raise ValueError(f"a connection's state has the unknown format {form}, or is cut off")
    return unread, state


class WaitingSocket:
    """``sock``, as its handler sees it. ``wait()`` is called before each read that would block, and raises ``Moved`` where the
    connection has gone. ``unread`` is what came of the next read, and is not enough for it yet."""

    def __init__(self, sock: socket.socket, unread: bytes, wait: Callable[[], object]) -> None:
        self._sock = sock
        self._wait = wait
        self.unread = bytearray(unread)
        self.moved = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.unread:
            return bytes(self.unread[:size]) if flags & socket.MSG_PEEK else self.take(size)
        self._wait()
        return self._sock.recv(size, flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        data = self.recv(size or len(buffer), flags)
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:
        self.check()
        return self._sock.send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.check()
        self._sock.sendall(data, flags)

    def makefile(self, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        """``rb`` and ``wb``, which handlers use, heed the connection's move."""
        if mode == "rb":
            return Reader(self)
        if mode == "wb":
            return io.BufferedWriter(_Writing(self), buffering if buffering and buffering > 0 else _CHUNK)
        return self._sock.makefile(mode, buffering, **options)  # type: ignore[call-overload]

    def take(self, size: int) -> bytes:
        data = bytes(self.unread[:size])
        del self.unread[:size]
        return data

    def more(self) -> bool:
        """Waits for more that is ``unread``; false at the connection's end."""
        self._wait()
        data = self._sock.recv(_CHUNK)
        self.unread += data
        return bool(data)

    def check(self) -> None:
        """Raises ``Moved``, if it has."""
        if self.moved:
            raise Moved("the connection goes on in the next generation")


class Reader(io.BufferedIOBase):
    """What ``makefile("rb")`` returns."""

    def __init__(self, source: WaitingSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        source = self._source
        wanted = None if size is None or size < 0 else size
        while (wanted is None or len(source.unread) < wanted) and source.more():
            pass
        return source.take(len(source.unread) if wanted is None else wanted)

    def read1(self, size: int = -1) -> bytes:
        source = self._source
        if not source.unread:
            source.more()
        return source.take(len(source.unread) if size < 0 else size)

    def peek(self, _: int = 0) -> bytes:
        """Of what was read already, at least a byte if there is any to come."""
        if not self._source.unread:
            self._source.more()
        return bytes(self._source.unread)

    def readline(self, size: int | None = -1) -> bytes:
        source = self._source
        limit = None if size is None or size < 0 else size
        seen = 0
        while (end := source.unread.find(b"\n", seen)) < 0:
            seen = len(source.unread)
            if (limit is not None and seen >= limit) or not source.more():
                end = len(source.unread) - 1
                break
        return source.take(end + 1 if limit is None else min(end + 1, limit))


class _Writing(io.RawIOBase):
    def __init__(self, sink: WaitingSocket) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._sink.send(data)
