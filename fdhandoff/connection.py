"""A connection that is inside the gate until it is closed."""

from __future__ import annotations

import _socket
import os
import socket

from .door import identity_of
from .errors import GateClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .door import Door
    from .gate import Gate

_IDLE = 1
_DETACHED = 2
_FORCED = 4


# Read by the C type's own descriptors: ``socket.socket`` makes an enumeration of each.
_family = _socket.socket.family.__get__
_type = _socket.socket.type.__get__
_protocol = _socket.socket.proto.__get__


class CountedSocket(socket.socket):
    """A ``socket.socket`` that leaves its gate exactly once: when its descriptor is really closed, by ``close``, the end of
    a ``with`` block, the last file of ``makefile`` or garbage collection. ``shutdown`` does not leave.

    ``detach`` (which ``SSLContext.wrap_socket`` calls) gives the descriptor away; it still counts until it is closed, which
    is noticed by the gate's ``wait`` and ``settle``, or told by its ``leave_detached``. ``dup`` gives a plain socket that
    does not count. In a forked child the parent's connections do not count: the parent holds them as long as they live.
    """

    __slots__ = ("_door", "_identity", "_mark")

    _door: Door
    _identity: tuple[int, int]
    _mark: int

    def __init__(self, sock: _socket.socket, gate: Gate) -> None:
        """Enters the gate with a connection that was accepted elsewhere, and takes its descriptor. ``GateClosed`` when the
        gate is closed or full: ``sock`` is as it was then."""
        if not gate.enter():
            raise GateClosed("the gate is closed or full: the connection does not enter")
        try:
            super().__init__(_family(sock), _type(sock), _protocol(sock), sock.fileno())
            timeout = sock.gettimeout()
            sock.detach()
        except BaseException:
            gate.leave_forced()
            raise
        self._door = gate._door
        self.settimeout(timeout)

    # --- what the server says of it ---------------------------------------------------------------------------

    def mark_idle(self) -> None:
        """It waits for its client's next request."""
        self._set_mark(_IDLE, True)

    def mark_busy(self) -> None:
        """It does no longer."""
        self._set_mark(_IDLE, False)

    def mark_detached(self) -> None:
        """It left the server's own books (upgraded, a websocket, hijacked); it still counts until it is closed."""
        self._set_mark(_DETACHED, True)

    @property
    def inside(self) -> bool:
        """Whether it still counts as this object."""
        return hasattr(self, "_door")

    def remember(self) -> None:
        """Its descriptor will be closed by somebody (uvloop) who tells it by ``detach`` afterwards, when its number may be
        another's: it is known again by what it is now."""
        self._identity = identity_of(self.fileno())

    def force_close(self) -> None:
        """Closes it at once, whatever still refers to it, and counts it as forced. Who waits to read or write is woken."""
        self._mark = getattr(self, "_mark", 0) | _FORCED
        try:
            self.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster
        self._closed = True
        self._real_close()

    # --- leaving ----------------------------------------------------------------------------------------------

    def detach(self) -> int:
        door = self._go()
        fd = super().detach()
        if door is not None:
            door.follow(fd, getattr(self, "_identity", None))
        return fd

    def dup(self) -> socket.socket:  # type: ignore[override]
        sock = socket.socket(self.family, self.type, self.proto, fileno=os.dup(self.fileno()))
        sock.settimeout(self.gettimeout())
        return sock

    def _real_close(self, _ss: type[_socket.socket] = _socket.socket) -> None:
        try:
            _ss.close(self)
        finally:
            self._leave()

    def __del__(self) -> None:
        _finalize(self)  # closes it, with a ResourceWarning, if nobody has
        if hasattr(self, "_door"):
            self._leave()

    def _leave(self) -> None:
        forced = getattr(self, "_mark", 0) & _FORCED
        door = self._go()
        if door is not None:
            if forced:
                door.leave_forced()
            else:
                door.leave()

    def _go(self) -> Door | None:
        """The door, for the first who asks: he leaves by it."""
        try:
            door = self._door
            del self._door  # of two threads one fails here
        except AttributeError:
            return None
        mark = getattr(self, "_mark", 0)
        if mark & (_IDLE | _DETACHED):
            door.note(-(mark & _IDLE), -((mark & _DETACHED) >> 1))
            self._mark = mark & _FORCED
        return door

    def _set_mark(self, bit: int, on: bool) -> None:
        door = getattr(self, "_door", None)
        mark = getattr(self, "_mark", 0)
        if door is None or bool(mark & bit) == on:
            return
        self._mark = mark ^ bit
        step = 1 if on else -1
        door.note(step if bit == _IDLE else 0, step if bit == _DETACHED else 0)


_finalize = _socket.socket.__del__  # type: ignore[attr-defined]


class Accepted(CountedSocket):
    """Made of family, type, protocol and descriptor by C code alone. Whoever makes one sets what ``socket.socket`` would:
    ``_io_refs`` to 0 and ``_closed`` to false, and then ``_door``."""

    __slots__ = ()

    __init__ = _socket.socket.__init__


Accepted.__name__ = Accepted.__qualname__ = CountedSocket.__name__
