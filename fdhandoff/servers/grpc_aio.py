"""grpc.aio, upgraded without a failed call: ``await serve(server, "127.0.0.1:50051")`` in place of
``server.add_insecure_port(…)``, ``server.start()`` and ``server.wait_for_termination()``.

gRPC takes no listener and no connection from anybody, and its ``stop`` fails the calls that arrive while its GOAWAY is on the
way. So it listens where only this process comes in, connections are accepted here and passed on byte by byte, and a drain puts
a GOAWAY between two frames of each while the server serves on: a client that follows it makes its next call elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import TYPE_CHECKING, cast

from ..adapting import dual, listeners_of, service_name, settings
from ..service import Service

if TYPE_CHECKING:
    import ssl
    from typing import Any

    from typing_extensions import Unpack

    from ..adapting import Handoff
    from ..connection import CountedSocket

# RFC 9113: a frame is a length of three bytes, a type, flags, a stream's number of four bytes, and what it carries.
_HEAD = 9
_WITH_HEADERS = (1, 5, 9)  # HEADERS, PUSH_PROMISE, CONTINUATION: nothing comes between them until …
_END_HEADERS = 4  # … this flag
# "No stream that you have begun is refused, and begin no other here": NO_ERROR, and the highest number that a stream can have.
_GO_AWAY = bytes((0, 0, 8, 7, 0, 0, 0, 0, 0)) + (2**31 - 1).to_bytes(4, "big") + bytes(4)


async def serve(
    server: Any,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    grace: float | None = 30.0,
    **handoff: Unpack[Handoff],
) -> None:
    """Starts ``server`` and serves at ``address`` (``127.0.0.1:50051``, ``:50051``, ``unix:/run/x.sock``) until a newer
    generation does, or until it is told to stop; calls that are under way then have ``grace`` seconds (``None``: for ever).
    ``server``: a ``grpc.aio.server`` that has its handlers, no port, and was not started; or a function that makes one, and is
    called with the ``Service``. ``ssl_context``: TLS, with the protocol ``h2``; gRPC's own credentials would hide where a
    GOAWAY can stand. The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. Raises what ``Service`` raises.
    """
    with (
        Service(**settings(handoff, service_name(None, "grpc")), grace=grace) as service,
        tempfile.TemporaryDirectory(prefix="fdhandoff-", ignore_cleanup_errors=True) as folder,
    ):
        listeners_of(service, "grpc", dual(address))
        relay = _Relay(os.path.join(folder, "grpc.sock"), ssl_context)
        if not hasattr(server, "add_insecure_port"):
            server = server(service)
        server.add_insecure_port(f"unix:{relay.path}")
        await server.start()
        try:
            service.drains_when_asked()
            await service.ready_async()
            accepting = asyncio.create_task(service.serve_async(relay.enter))
            await service.wait_async()
            relay.go_away()
            report = await service.drain_async()
            await accepting
            if report.forced:
                relay.abort()
        finally:
            await server.stop(None)


class _Relay:
    """Connections, between clients and the server at ``path``."""

    def __init__(self, path: str, ssl_context: ssl.SSLContext | None) -> None:
        self.path = path
        self.leaving = False
        self.answers: set[_Answers] = set()
        self._ssl = ssl_context

    async def enter(self, connection: CountedSocket, _: object) -> None:
        loop = asyncio.get_running_loop()
        answers = _Answers(self)
        requests = _Side(answers)
        try:
            await loop.create_unix_connection(lambda: answers, self.path)
            await loop.connect_accepted_socket(lambda: requests, connection, ssl=self._ssl)
        except (OSError, EOFError):  # the client hung up, or speaks no TLS
            answers.abort()
            connection.close()
            return
        self.answers.add(answers)
        answers.lead_to(requests)
        if self.leaving:
            answers.go_away()

    def go_away(self) -> None:
        self.leaving = True
        for answers in list(self.answers):
            answers.go_away()

    def abort(self) -> None:
        for answers in list(self.answers):
            answers.abort()


class _Side(asyncio.Protocol):
    """One end of a connection that is passed on: what comes here goes out at ``other``, no faster than that takes it. Whoever
    speaks HTTP/2 closes no half of a connection only."""

    def __init__(self, other: _Side | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self._other = other
        self._waiting = b""  # what came before there was another side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def lead_to(self, other: _Side) -> None:
        self._other = other
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self.data_received(waiting)
        if (self.transport is None or self.transport.is_closing()) and other.transport is not None:
            other.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._waiting += data
        else:
            self._other.send(data)

    def send(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._other is not None and self._other.transport is not None:
            self._other.transport.close()  # when it has written what it has

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Answers(_Side):
    """The server's end: knows where a frame of the server's ends."""

    def __init__(self, relay: _Relay) -> None:
        super().__init__()
        self._relay = relay
        self._left = 0  # of the present frame
        self._head = b""
        self._in_headers = False
        self._begun = False  # the server's first frame, which nothing may precede, is out
        self._told = self._to_tell = False

    def go_away(self) -> None:
        """Says so between two frames: now, or in what comes next."""
        self._to_tell = True
        if self._between() and not self._told and self._other is not None:
            self._told = True
            self._other.send(_GO_AWAY)

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            data = self._followed(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.answers.discard(self)
        super().connection_lost(exc)

    def _between(self) -> bool:
        return self._begun and not self._left and not self._head and not self._in_headers

    def _followed(self, data: bytes) -> bytes:
        """``data``, with what there is to tell in it at the first place where that can stand."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
            else:
                part = data[at : at + _HEAD - len(self._head)]
                self._head += part
                at += len(part)
                if len(self._head) < _HEAD:
                    break
                self._left = int.from_bytes(self._head[:3], "big")
                if self._head[3] in _WITH_HEADERS:
                    self._in_headers = not self._head[4] & _END_HEADERS
                self._head, self._begun = b"", True
            if self._to_tell and not self._told and self._between():
                self._told = True
                data = data[:at] + _GO_AWAY + data[at:]
                at, end = at + len(_GO_AWAY), end + len(_GO_AWAY)
        return data
