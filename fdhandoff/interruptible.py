"""A blocking connection whose thread, while it waits for the next request, can be asked to let it go: its reads come back when
nothing has come for a moment, and only then is there something else to wait for. One that is busy costs no system call more
than it would by itself.
"""

from __future__ import annotations

import _socket
import io
import select
import socket
import struct

from .connection import CountedSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As the kernel takes them, seconds and microseconds: a client that pauses for longer is not busy.
_PATIENCE = struct.pack("@ll", 0, 50_000)
_NONE = struct.pack("@ll", 0, 0)

_recv_into = _socket.socket.recv_into
_send = _socket.socket.send
_fileno = _socket.socket.fileno
_setsockopt = _socket.socket.setsockopt


class Interruptible(CountedSocket):
    """``of(sock)`` makes one. ``makefile("rb")`` is made for that, and ``"wb"`` takes back what the moment costs; to whoever
    uses it in another way, or asks for its descriptor, it is the socket that it was before, from that moment on."""

    __slots__ = ()

    @staticmethod
    def of(sock: CountedSocket) -> None:
        """``sock`` becomes one, if it blocks."""
        if sock.gettimeout() is None:
            sock.__class__ = Interruptible

    def makefile(self, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        if mode not in ("rb", "wb") or buffering == 0:
            return super().makefile(mode, buffering, **options)  # type: ignore[call-overload]
        self._io_refs += 1  # type: ignore[attr-defined]
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        if mode == "wb":
            return io.BufferedWriter(_Writing(self, "w"), size)
        return io.BufferedReader(Reading(self, "r"), size)

    def _as_before(self) -> None:
        self.__class__ = CountedSocket  # type: ignore[assignment]
        if _fileno(self) >= 0:
            _setsockopt(self, socket.SOL_SOCKET, socket.SO_RCVTIMEO, _NONE)


def _as_before(name: str) -> Any:
    def method(self: Interruptible, *arguments: Any, **options: Any) -> Any:
        self._as_before()
        return getattr(self, name)(*arguments, **options)

    method.__name__ = name
    return method


for _name in ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "fileno", "detach", "dup",
              "settimeout", "setblocking"):  # fmt: skip
    setattr(Interruptible, _name, _as_before(_name))


class Reading(socket.SocketIO):
    """What is below ``makefile("rb")``."""

    _sock: Any
    _known = _limited = _resting = _late = _dry = _at_once = False

    def begins(self, reader: io.BufferedReader) -> bool:
        """Waits for something to read by ``reader``, or the end; false when nothing has come for a moment, or where that can't
        be said. The first time it does not wait: a client that has one request has sent it, and the time limit, which costs
        more than all else here, is for others."""
        sock = self._sock
        if type(sock) is not Interruptible:
            return self.has(reader)
        if not self._limited:
            if not self._known:
                self._known = True
                return self._has_come(reader)
            _setsockopt(sock, socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self._limited = True
        self._resting, self._late = True, False
        try:
            reader.peek(1)
        except OSError:
            pass  # the client has hung up: the next read says so
        finally:
            self._resting = False
        return not self._late

    def _has_come(self, reader: io.BufferedReader) -> bool:
        self._dry = self._at_once = True
        try:
            reader.peek(1)
        except OSError:
            pass
        finally:
            self._dry = self._at_once = False
        return not self._late

    def has(self, reader: io.BufferedReader) -> bool:
        """Whether ``reader`` has read more than it was asked for."""
        self._dry = True
        try:
            return bool(reader.peek(1))
        finally:
            self._dry = False

    def readinto(self, buffer: Any) -> int | None:
        sock = self._sock
        if self._dry or type(sock) is not Interruptible:
            return self._read_otherwise(buffer)
        while True:
            try:
                return _recv_into(sock, buffer)
            except BlockingIOError:
                if self._resting:
                    self._late = True
                    return None
            _wait(_fileno(sock))

    def _read_otherwise(self, buffer: Any) -> int | None:
        if not self._dry:
            return super().readinto(buffer)
        if not self._at_once:
            return None
        try:
            return _recv_into(self._sock, buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._late = True
            return None


class _Writing(socket.SocketIO):
    """What is below ``makefile("wb")``: ``SocketIO`` asks of each write whether it is open and for writing, in four calls. The
    time limit of a read costs the kernel a timer, about as much."""

    _sock: Any

    def write(self, data: Any) -> int | None:
        sock = self._sock  # none when it is closed
        return _send(sock, data) if type(sock) is Interruptible else super().write(data)


def number_of(sock: Any) -> int:
    """Its descriptor, for no more than to wait for it."""
    return _fileno(sock) if type(sock) is Interruptible else sock.fileno()


def _wait(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll()
