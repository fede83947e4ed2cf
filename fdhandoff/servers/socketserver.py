"""socketserver and http.server, upgraded without a failed request: ``serve(ThreadingHTTPServer, address, Handler)`` in place of
``ThreadingHTTPServer(address, Handler).serve_forever()``.

An HTTP handler's connection that waits for its next request moves to the new generation. Any other handler
finishes what it has.
"""

from __future__ import annotations

import http.server
import math
import select
import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING

from ..adapting import address_of, listeners_of, service_name
from ..departure import Departure, Pauses
from ..listener import Connection
from ..service import Service

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from typing import Any

    Address = tuple[str, int] | str


def serve(
    server_class: type[socketserver.BaseServer],
    address: Address,
    handler_class: type[socketserver.BaseRequestHandler],
    *,
    handoff_name: str = "",
    handoff_path: str = "",
    handoff_probation: float = 5.0,
    grace: float | None = 30.0,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Serves until a newer generation does, or until it is told to stop; then finishes what is inside, for ``grace`` seconds
    at most (``None``: for ever). ``address``: host and port, or a Unix socket's path. ``ssl_context``: for each connection,
    wrapped in the handler's thread; it can't move then. The server's listener, signals and end are those of the ``Service``,
    which handlers find as ``self.server.service``.

    ``ValueError`` for a datagram server, and for one that forks: nobody could wait for its children. Raises what ``Service``
    raises.
    """
    if issubclass(server_class, socketserver.UDPServer):
        raise ValueError(f"{server_class.__name__} serves datagrams, which have no connections: use Service itself")
    if hasattr(socketserver, "ForkingMixIn") and issubclass(server_class, socketserver.ForkingMixIn):
        raise ValueError(f"{server_class.__name__} forks: use a threading server, or fdhandoff-cli run --workers")
    name = handoff_name or service_name(None, "socketserver")
    with Service(name, path=handoff_path, probation=handoff_probation, grace=grace) as service:
        listeners = listeners_of(service, "main", _text(address))
        server: Any = server_class(address, _handed(handler_class, service, ssl_context), bind_and_activate=False)  # type: ignore[call-arg]
        server.socket.close()  # it never listens: the service has the listener
        server.socket = listeners[0]
        server.server_address = listeners[0].getsockname()
        if isinstance(server, http.server.HTTPServer):
            server.server_name, server.server_port = server.server_address[:2]
        if isinstance(server, socketserver.ThreadingMixIn):
            server.daemon_threads = True  # the gate waits for their connections, and the grace period ends that
        requests = _Requests(server, service)
        if isinstance(server, socketserver.ThreadingMixIn) and ssl_context is None and _moves(handler_class):
            service.receive_connections(requests.take)
        service.ready()
        service.serve(requests.begin, listeners)
        report = service.drain()
        moved = requests.departure.moved
        service.say(f"{moved} connections moved on, {report.finished - moved} ended here")


def _text(address: Address) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    return address_of(*address[:2])


def _moves(handler_class: type) -> bool:
    return issubclass(handler_class, http.server.BaseHTTPRequestHandler)


class _Requests:
    """Connections on their way to the server and out of it."""

    def __init__(self, server: Any, service: Service) -> None:
        self.departure = Departure(service)
        self._server = server
        self._service = service
        self._gone: set[int] = set()  # the sockets, by identity, whose connections have moved
        self._lock = threading.Lock()
        self._shutdown_request = server.shutdown_request
        server.shutdown_request = self._end
        server.handoff, server.service = self, service

    def begin(self, connection: socket.socket, _: object = None) -> None:
        """As ``BaseServer.handle_request`` does with what it has accepted."""
        server = self._server
        address = connection.getpeername()
        if not server.verify_request(connection, address):
            server.shutdown_request(connection)
            return
        try:
            server.process_request(connection, address)
        except Exception:
            server.handle_error(connection, address)
            server.shutdown_request(connection)

    def take(self, connections: Iterable[Connection]) -> None:
        """What an older generation has given."""
        for counted in self.departure.admitted(connections):
            try:
                self.begin(counted)
            except OSError:
                counted.close()  # the client has hung up

    def give(self, sock: socket.socket) -> bool:
        """Whether the connection is the next generation's now."""
        if self.departure.give([Connection("connection", sock)]):
            return False
        with self._lock:
            self._gone.add(id(sock))
        return True

    def _end(self, request: socket.socket) -> None:
        with self._lock:
            gone = id(request) in self._gone
            self._gone.discard(id(request))
        if gone:
            self._server.close_request(request)  # without a shutdown, which its new owner would feel
        else:
            self._shutdown_request(request)


def _handed(base: Any, service: Service, ssl_context: ssl.SSLContext | None) -> Any:
    """``base``, that knows how to rest and to leave."""
    if ssl_context is not None:
        base = _encrypted(base, ssl_context)
    if not _moves(base):
        return base

    class Handed(base):  # type: ignore[misc]
        def handle(self) -> None:
            if ssl_context is not None:  # what TLS has read and not given out can't be waited for by a descriptor
                super().handle()
                return
            self.close_connection = True
            while self._request_comes():
                self.handle_one_request()
                if self.close_connection:
                    return

        def _request_comes(self) -> bool:
            """Waits for the next request's first byte; false where the connection has gone elsewhere, or its time is up."""
            if self._is_buffered():
                return True
            poller = select.poll()
            poller.register(self.connection, select.POLLIN)
            poller.register(service.fileno(), select.POLLIN)
            pauses = Pauses()
            limit = None if self.timeout is None else time.monotonic() + self.timeout
            retry: float | None = None
            while True:
                ready = [fd for fd, _ in poller.poll(_milliseconds(limit, retry))]
                if self.connection.fileno() in ready:
                    return True
                if limit is not None and time.monotonic() >= limit:
                    return False
                if retry is None and not ready:
                    continue
                if retry is None:
                    poller.unregister(service.fileno())  # it stays readable
                elif time.monotonic() < retry:
                    continue
                if not self.server.handoff.departure.hopeful:
                    retry = math.inf  # nobody takes it: it is told with its next answer
                    continue
                if self.server.handoff.give(self.request):
                    return False
                retry = time.monotonic() + pauses.next()

        def _is_buffered(self) -> bool:
            """Whether more was read than the last request had."""
            before = self.connection.gettimeout()
            self.connection.settimeout(0)
            try:
                return bool(self.rfile.peek(1))
            except OSError:
                return False  # the client has hung up: the next read will say so
            finally:
                self.connection.settimeout(before)

        def _stays(self) -> bool:
            return ssl_context is not None or not self.server.handoff.departure.hopeful

        def ends(self) -> bool:
            """Whether the connection ends with the answer that is given now."""
            return service.draining and self._stays()

        def end_headers(self) -> None:
            if self.ends() and not self.close_connection:
                self.send_header("Connection", "close")
            super().end_headers()

    Handed.__name__ = Handed.__qualname__ = base.__name__
    return Handed


def _milliseconds(*moments: float | None) -> float | None:
    """Until the earliest of them."""
    left = [max(0.0, moment - time.monotonic()) for moment in moments if moment not in (None, math.inf)]
    return math.ceil(min(left) * 1000) if left else None


def _encrypted(base: Any, context: ssl.SSLContext) -> Any:
    class Encrypted(base):  # type: ignore[misc]
        def __init__(self, request: socket.socket, *others: Any) -> None:
            super().__init__(context.wrap_socket(request, server_side=True), *others)

    Encrypted.__name__ = Encrypted.__qualname__ = base.__name__
    return Encrypted
