"""tornado, upgraded without a failed request: ``await serve(app, 8888)`` in place of ``app.listen(8888)`` and what waits behind
it, or ``run(app, 8888)``.

A connection that rests moves to the new generation; any other is told ``Connection: close`` with its next answer. A websocket
is closed with code 1012.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from functools import wraps
from typing import TYPE_CHECKING

try:
    from tornado.http1connection import HTTP1Connection
    from tornado.httpserver import HTTPServer
    from tornado.iostream import IOStream
    from tornado.web import Application
    from tornado.websocket import WebSocketHandler
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs tornado: pip install 'tornado>=6.4' ({error})") from None

from ..adapting import address_of, listeners_of, service_name, settings, taken
from ..passage import Passage
from ..service import Service
from ..websocket import RESTART

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


def run(app: Any, port: int, address: str | None = None, **options: Any) -> None:
    """``serve`` in an event loop of its own."""
    asyncio.run(serve(app, port, address, **options))


async def serve(
    app: Any,
    port: int,
    address: str | None = None,
    *,
    unix_socket: str = "",
    backlog: int = 128,
    grace: float | None = 30.0,
    **options: Any,
) -> None:
    """Serves until a newer generation does, or until it is told to stop; then finishes what is inside, for ``grace`` seconds
    at most (``None``: for ever). ``app``: an ``Application``, or whatever ``tornado.httpserver.HTTPServer`` takes, whose
    ``options`` (``xheaders``, ``ssl_options``, …) these are. ``address`` and ``port`` as for ``app.listen`` (default: all
    addresses), or a ``unix_socket``'s path. The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. Handlers find the
    ``Service`` as ``self.settings["fdhandoff"]``. Raises what ``Service`` raises.
    """
    where = f"unix:{unix_socket}" if unix_socket else address_of(address or "", port)
    with Service(**settings(taken(options), service_name(None, "tornado")), grace=grace) as service:
        listeners_of(service, "http", f"{where}?backlog={backlog}")
        if isinstance(app, Application):
            app.settings["fdhandoff"] = service
        server = Server(app, **options)
        with _websockets() as websockets, contextlib.ExitStack() as ending:
            passage = server.passage = _Passage(service, server, lambda: ending.enter_context(_announcing()))
            await service.ready_async()
            accepting = asyncio.create_task(passage.serve())
            await service.wait_async()
            vars(server)["start_request"] = server._start_request
            await passage.leave()
            for handler in list(websockets):
                handler.close(RESTART, "service restart")
            report = await service.drain_async()
            await accepting
        service.say(str(report))
        await server.close_all_connections()


# A request pays for neither: the one is where websockets begin, the other is put where answers do when they shall end.


@contextlib.contextmanager
def _websockets() -> Iterator[weakref.WeakSet[WebSocketHandler]]:
    """The handlers of those that are open."""
    found: weakref.WeakSet[WebSocketHandler] = weakref.WeakSet()
    kind: Any = WebSocketHandler
    get_protocol = kind.get_websocket_protocol

    @wraps(get_protocol)
    def noting(self: WebSocketHandler) -> Any:
        found.add(self)
        return get_protocol(self)

    kind.get_websocket_protocol = noting
    try:
        yield found
    finally:
        kind.get_websocket_protocol = get_protocol


@contextlib.contextmanager
def _announcing() -> Iterator[None]:
    """Each answer says that its connection ends."""
    kind: Any = HTTP1Connection
    write_headers = kind.write_headers

    @wraps(write_headers)
    def announcing(self: Any, *arguments: Any, **options: Any) -> Any:
        # Behind one whose next request has come already nothing ends: that one is answered, too.
        if not self.is_client and self.stream is not None and not self.stream._read_buffer_size:
            self._disconnect_on_finish = True
        return write_headers(self, *arguments, **options)

    kind.write_headers = announcing
    try:
        yield
    finally:
        kind.write_headers = write_headers


class Server(HTTPServer):
    """tornado's server, whose connections come from a ``Passage`` and may leave by it."""

    passage: _Passage

    def streams(self) -> Iterable[Any]:
        return [connection.stream for connection in self._connections]

    def _start_request(self, server_conn: Any, request_conn: Any) -> Any:
        """It begins to wait for a connection's next request: ``start_request``, from when this process leaves on."""
        if isinstance(server_conn.stream, Stream):
            self.passage.later(server_conn.stream)
        return HTTPServer.start_request(self, server_conn, request_conn)


class _Passage(Passage):
    def __init__(self, service: Service, server: Server, announce: Callable[[], object]) -> None:
        made_by: Any = Stream  # ``attach`` does it
        ssl: Any = server.ssl_options
        super().__init__(service, made_by, everyone=server.streams, movable=_movable, announce=announce, ssl=ssl)
        self._server = server

    async def attach(self, sock: socket.socket, state: bytes | None = None) -> Any:  # noqa: ARG002 - it has none
        server, address = self._server, sock.getpeername()
        if server.ssl_options is not None:
            server._handle_connection(sock, address)  # TLS is tornado's
            return None
        stream = Stream(sock, max_buffer_size=server.max_buffer_size, read_chunk_size=server.read_chunk_size)
        server.handle_stream(stream, address)
        return stream


def _movable(stream: Any) -> bytes | None:
    """It waits for the first byte of a request's head: tornado looks for nothing else by this pattern."""
    rests = isinstance(stream, Stream) and stream._read_regex is not None and not stream._read_buffer_size
    return b"" if rests else None


class Stream(IOStream):
    """tornado's stream, with what a ``Passage`` wants to know of a transport."""

    @property
    def transport(self) -> Stream:
        return self

    def is_closing(self) -> bool:
        return self.closed()

    def get_extra_info(self, name: str) -> Any:
        return self.socket if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return len(self._write_buffer)

    def pause_reading(self) -> None:
        self.io_loop.update_handler(self.socket, 0)

    def resume_reading(self) -> None:
        self.io_loop.update_handler(self.socket, self._state or 0)

    def abort(self) -> None:
        self.close()
