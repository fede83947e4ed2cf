"""How the client of an HTTP/2 connection is told that it ends, for servers that speak HTTP/2 by way of ``h2``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_ALL_STREAMS = 2**31 - 1
_PING = b"fdhandof"


class GoingAway:
    """Tells the client of ``connection``, an ``h2.connection.H2Connection``, that it is to open no stream any more, and learns
    when it has heard that; meanwhile the connection is as it was, and streams that the client begins are to be answered.
    ``write`` takes bytes, whole frames, that go to the client behind those that the server has written."""

    def __init__(self, connection: Any, write: Callable[[bytes], object]) -> None:
        from h2.exceptions import ProtocolError
        from hyperframe.frame import GoAwayFrame

        self.heard = False  # whatever the client sent before it heard has arrived, and was handled
        self._connection = connection
        self._write = write
        self._receive = connection.receive_data
        try:
            connection.ping(_PING)
        except ProtocolError:
            return  # it has ended, or it ends by itself
        # By h2's own method the connection would be over, and every frame that follows an error.
        write(GoAwayFrame(0, last_stream_id=_ALL_STREAMS).serialize() + connection.data_to_send())

    def hear(self, events: Iterable[Any]) -> None:
        """What ``connection.receive_data`` has returned, and the server has handled."""
        from h2.events import PingAckReceived

        self.heard = self.heard or any(
            isinstance(event, PingAckReceived) and event.ping_data == _PING for event in events
        )

    def listen(self) -> None:
        """Hears by itself, for a server that handles what ``receive_data`` returns before anybody can ask."""
        self._connection.receive_data = self._received

    def _received(self, data: bytes) -> Any:
        events = self._receive(data)
        self.hear(events)
        return events

    def end(self) -> None:
        """Says which stream was the last one. For a connection on which nothing is left to be answered, once the client has
        ``heard``; to be closed then."""
        self._connection.close_connection()
        self._write(self._connection.data_to_send())
