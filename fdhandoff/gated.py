"""A listener for servers that accept by themselves and can't be told to stop: what they accept comes through the gate."""

from __future__ import annotations

import errno
import socket
import time

from .accept import Acceptor
from .errors import SystemCallError
from .system.native import FDH_CLOSED, FDH_FULL, FDH_PAUSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .connection import CountedSocket
    from .gate import Gate

# How long a server that asks again and again is held up while it may not accept: what is in the queue is another's by then.
_PAUSE_SECONDS = 0.005


class GatedListener(socket.socket):
    """``listener`` (borrowed), as the socket that a server accepts from: each connection is a ``CountedSocket``, which is
    inside the gate until it is closed. While the gate is closed nothing can be accepted, as if the queue were empty.

    It is shared with others, so the server's ``listen`` changes no backlog, its ``shutdown`` shuts nothing down, and its
    ``close`` closes a duplicate.
    """

    def __init__(self, listener: socket.socket, gate: Gate) -> None:
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.dup().detach())
        self.setblocking(False)
        self._gate = gate
        self._acceptor = Acceptor(self.fileno(), gate, batch=1, timeout=None)

    @property
    def gate(self) -> Gate:
        return self._gate

    def accept(self) -> tuple[CountedSocket, Any]:
        """A connection, which blocks, and where it comes from. ``BlockingIOError`` when there is none for us: wait until the
        listener is readable. ``ConnectionAbortedError`` when its client has hung up."""
        try:
            accepted = self._acceptor.accept()
        except SystemCallError as error:
            raise OSError(error.errno, str(error)) from error
        if not accepted:
            if self._acceptor.condition in (FDH_CLOSED, FDH_FULL, FDH_PAUSE):
                time.sleep(_PAUSE_SECONDS)
            raise BlockingIOError(errno.EAGAIN, "no connection for this process")
        (connection,) = accepted
        try:
            return connection, connection.getpeername()
        except OSError as error:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client has hung up") from error

    def listen(self, _: int = 0) -> None:
        """It listens."""

    def shutdown(self, _: int) -> None:
        """Others accept from it."""
