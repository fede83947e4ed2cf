"""socketserver and http.server, upgraded without a failed request: ``serve(ThreadingHTTPServer, address, Handler)`` in place of
``ThreadingHTTPServer(address, Handler).serve_forever()``.

An HTTP handler's connection that waits for its next request moves to the new generation, and so does any connection whose
handler gives its state as bytes: it has the methods ``state()`` and ``resume(state)``. Any other handler finishes what it has.

``state()`` is called in the handler's thread, when a read of ``rfile`` or of ``request`` waits for the client while this
process drains: what must be known of the connection, or ``None`` for "not now". What was read of an unfinished line, or of
a ``read`` of so many bytes, travels along. In the next generation ``resume(state)`` is called in the place of ``handle()``.
Here the read raises ``Moved``, a ``ConnectionError``, which may leave the handler; so does what is written after that.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import select
import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING

from ..accept import BATCH
from ..adapting import address_of, dual, listeners_of, service_name, settings
from ..connection import CountedSocket
from ..departure import Departure, Pauses
from ..interruptible import Interruptible, Reading, number_of
from ..listener import Connection
from ..reading import Moved, WaitingSocket, pack, unpack
from ..service import DrainReport, Service

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from typing import Any

    from typing_extensions import Unpack

    from ..adapting import Handoff

    Address = tuple[str, int] | str


# Where the loops over a connection's requests are defined in whose place ours does.
_LOOPS = ("http.server", "wsgiref.simple_server", "werkzeug.serving", "django.core.servers.basehttp")


def serve(
    server_class: type[socketserver.BaseServer],
    address: Address,
    handler_class: type[socketserver.BaseRequestHandler],
    *,
    grace: float | None = 30.0,
    ssl_context: ssl.SSLContext | None = None,
    announce: Callable[[], object] | None = None,
    **handoff: Unpack[Handoff],
) -> None:
    """Serves until a newer generation does, or until it is told to stop; then finishes what is inside, for ``grace`` seconds
    at most (``None``: for ever). ``address``: host and port, or a Unix socket's path. ``ssl_context``: for each connection,
    wrapped in the handler's thread; it can't move then. ``announce()`` is called when this process begins to drain: for an
    HTTP handler whose answers have their headers from elsewhere than ``end_headers``; they ask its ``ends()`` from then on. The
    ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. The server's listener, signals and end are those of the
    ``Service``, which handlers find as ``self.server.service``.

    ``ValueError`` for a datagram server, and for one that forks: nobody could wait for its children. Raises what ``Service``
    raises.
    """
    if issubclass(server_class, socketserver.UDPServer):
        raise ValueError(f"{server_class.__name__} serves datagrams, which have no connections: use Service itself")
    if hasattr(socketserver, "ForkingMixIn") and issubclass(server_class, socketserver.ForkingMixIn):
        raise ValueError(f"{server_class.__name__} forks: use a threading server, or fdhandoff-cli run --workers")
    with Service(**settings(handoff, service_name(None, "socketserver")), grace=grace) as service:
        listeners = listeners_of(service, "main", _text(address, server_class))
        handed = _handed(handler_class, service, ssl_context)
        server: Any = server_class(address, handed, bind_and_activate=False)  # type: ignore[call-arg]
        server.socket.close()  # it never listens: the service has the listener
        server.socket = listeners[0]
        server.server_address = listeners[0].getsockname()
        if isinstance(server, http.server.HTTPServer):
            server.server_name, server.server_port = server.server_address[:2]
        if isinstance(server, socketserver.ThreadingMixIn):
            server.daemon_threads = True  # the gate waits for their connections, and the grace period ends that
        threaded = isinstance(server, socketserver.ThreadingMixIn)
        keeps = ssl_context is None and _keeps(handler_class)
        rests = ssl_context is None and _is_http(handler_class) and not keeps and not _has_own_loop(handler_class)
        requests = _Requests(server, service, keeps=keeps, rests=rests)
        if threaded and (keeps or rests):
            service.receive_connections(requests.take)
        ending = None if threaded else _Ending(service, requests)
        service.ready()
        if _is_http(handler_class):
            service.when_draining(lambda: _let_leave(handed))
        if announce is not None:
            service.when_draining(announce)
        # One that has no threads takes nothing out of the queue which it can't serve at once.
        service.serve(requests.begin, listeners, batch=BATCH if threaded else 1)
        report = ending.report() if ending is not None else service.drain()
        service.say(str(report))


class _Ending:
    """The drain of a server whose only thread is inside a handler: it goes on beside that, and ends it at the deadline."""

    def __init__(self, service: Service, requests: _Requests) -> None:
        self._service = service
        self._requests = requests
        self._report: DrainReport | None = None
        self._failure: BaseException | None = None
        self._over = threading.Event()
        service.when_draining(threading.Thread(target=self._run, name="fdhandoff-drain", daemon=True).start)

    def _run(self) -> None:
        try:
            self._report = self._service.drain()
        except BaseException as error:
            self._failure = error
        current = self._requests.current
        if current is not None and (self._report is None or self._report.forced):
            with contextlib.suppress(OSError):  # the handler is through with it
                current.shutdown(socket.SHUT_RDWR)  # which wakes the handler, and closes it
        self._over.set()

    def report(self) -> DrainReport:
        """When it is over. Raises what the drain has raised."""
        self._over.wait()
        if self._report is None:
            assert self._failure is not None
            raise self._failure
        return self._report


def _text(address: Address, server_class: Any) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    if not address[0] and server_class.address_family == socket.AF_INET:
        return f"0.0.0.0:{address[1]}"  # its handlers expect an address of IPv4
    return dual(address_of(*address[:2]))


def _is_http(handler_class: type) -> bool:
    return issubclass(handler_class, http.server.BaseHTTPRequestHandler)


def _keeps(handler_class: type) -> bool:
    return callable(getattr(handler_class, "state", None)) and callable(getattr(handler_class, "resume", None))


class _Requests:
    """Connections on their way to the server and out of it. ``keeps``: its handlers give their state, and go on from it.
    ``rests``: one that waits for its next request moves."""

    def __init__(self, server: Any, service: Service, *, keeps: bool, rests: bool) -> None:
        self.keeps = keeps
        self._rests = rests
        self.departure = Departure(service)
        self.current: socket.socket | None = None  # the last one that was accepted
        self._server = server
        self._service = service
        # Of each socket only the thread that has it says something here, so no lock is needed.
        self._gone: set[int] = set()  # the sockets, by identity, whose connections have moved
        self._came: dict[int, tuple[bytes, bytes]] = {}  # and what came with those that moved here
        self._shutdown_request = server.shutdown_request
        server.shutdown_request = self._end
        server.handoff, server.service = self, service

    def begin(self, connection: socket.socket, _: object = None) -> None:
        """As ``BaseServer.handle_request`` does with what it has accepted."""
        server = self._server
        self.current = connection
        if self._rests and isinstance(connection, CountedSocket):
            Interruptible.of(connection)
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
        for connection in connections:
            for counted in self.departure.admitted([connection]):
                try:
                    if connection.state:
                        self._note(counted, connection.state)
                    self.begin(counted)
                except ValueError as error:
                    self._service.say(f"{error}: it is closed")
                    counted.close()
                except OSError:
                    counted.close()  # the client has hung up

    def _note(self, sock: socket.socket, state: bytes) -> None:
        if not self.keeps:
            raise ValueError("a connection came with a state, which this release's handler does not resume")
        self._came[id(sock)] = unpack(state)

    def came_with(self, sock: socket.socket) -> tuple[bytes, bytes] | None:
        """What was unread over there, and the state; ``None`` for a connection that begins here, or rested."""
        return self._came.pop(id(sock), None)

    def give(self, sock: socket.socket, state: bytes = b"") -> bool:
        """Whether the connection is the next generation's now."""
        if self.departure.give([Connection("connection", sock, state)]):
            return False
        self._gone.add(id(sock))
        return True

    def _end(self, request: socket.socket) -> None:
        self._came.pop(id(request), None)
        if id(request) in self._gone:
            self._gone.discard(id(request))
            self._server.close_request(request)  # without a shutdown, which its new owner would feel
        else:
            self._shutdown_request(request)


def _handed(base: Any, service: Service, ssl_context: ssl.SSLContext | None) -> Any:
    """``base``, that knows how to rest and to leave."""
    if ssl_context is not None:
        base = _encrypted(base, ssl_context)
    if _is_http(base):
        base = _resting(base, service, ssl_context)
    return _keeping(base, service) if _keeps(base) and ssl_context is None else base


class _Sending(socketserver._SocketWriter):  # type: ignore[misc, name-defined]
    """An unbuffered ``wfile``. ``socketserver`` asks a view of what was written for its length, which takes about as long as
    all that ``_resting`` asks of a request."""

    def write(self, data: Any) -> int:
        self._sock.sendall(data)
        return len(data) if type(data) is bytes else memoryview(data).nbytes


def _has_own_loop(base: Any) -> bool:
    """Whether the application's handler decides itself how requests follow each other. It does not move then."""
    where = next(one.__module__ for one in base.__mro__ if "handle" in vars(one))
    return where not in _LOOPS


def _resting(base: Any, service: Service, ssl_context: ssl.SSLContext | None) -> Any:
    own_loop = _has_own_loop(base)

    class Handed(base):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            if type(self.wfile) is socketserver._SocketWriter:  # type: ignore[attr-defined]
                self.wfile.__class__ = _Sending

        def handle(self) -> None:
            # What TLS has read and not given out can't be waited for by a descriptor.
            if own_loop or ssl_context is not None:
                super().handle()
                return
            self.close_connection = True
            reader = self.rfile
            raw = getattr(reader, "raw", None)
            begins = raw.begins if type(raw) is Reading else None
            while (begins and self._busy and self.rfile is reader and begins(reader)) or self._comes_or_leaves():
                self.handle_one_request()
                if self.close_connection:
                    return

        # Until the drain: who answers one request after the other waits for the next alone at first.
        _busy = True

        def _comes_or_leaves(self) -> bool:
            """Waits for the next request's first byte; false where the connection has gone elsewhere, or its time is up."""
            if self._is_buffered():
                return True
            handoff = self.server.handoff
            return _speaks(self.connection, service, handoff.departure, lambda: handoff.give(self._accepted()))

        def _accepted(self) -> socket.socket:
            """The connection, as it came to the server."""
            return self.request  # type: ignore[no-any-return]

        def _is_buffered(self) -> bool:
            """Whether more was read than the last request had."""
            raw = getattr(self.rfile, "raw", None)
            if type(raw) is Reading:
                return raw.has(self.rfile)
            if not hasattr(self.rfile, "peek"):
                return False  # it reads no more than it is asked for
            before = self.connection.gettimeout()
            self.connection.settimeout(0)
            try:
                return bool(self.rfile.peek(1))
            except OSError:
                return False  # the client has hung up: the next read will say so
            finally:
                self.connection.settimeout(before)

        def ends(self) -> bool:
            """Whether the connection ends with the answer that is given now, while this process drains."""
            return own_loop or ssl_context is not None or not self.server.handoff.departure.hopeful

    Handed.__name__ = Handed.__qualname__ = base.__name__
    return Handed


def _let_leave(handed: Any) -> None:
    """What a handler does for its connection's departure, it does from now on: before, it costs no request anything."""
    end_headers = handed.end_headers

    def announcing(self: Any) -> None:
        if self.ends() and not self.close_connection:
            self.send_header("Connection", "close")
        end_headers(self)

    handed.end_headers = announcing
    handed._busy = False


def _keeping(base: Any, service: Service) -> Any:
    """``base``, a handler with ``state`` and ``resume``, that moves whenever it waits for its client."""

    class Keeping(base):  # type: ignore[misc]
        def __init__(self, request: socket.socket, address: Any, server: Any) -> None:
            self.__request = request
            came: tuple[bytes, bytes | None] = server.handoff.came_with(request) or (b"", None)
            unread, self.__came = came
            self.__line = WaitingSocket(request, unread, self.__wait)
            super().__init__(self.__line, address, server)

        def handle(self) -> None:
            try:
                if self.__came is None:
                    super().handle()
                else:
                    self.resume(self.__came)
            except Moved:
                pass

        def finish(self) -> None:
            with contextlib.suppress(Moved):
                super().finish()

        def _accepted(self) -> socket.socket:
            return self.__request

        def __wait(self) -> None:
            """Before each read of the client's bytes."""
            self.__line.check()
            if self.__request.gettimeout() == 0:
                return
            if not _speaks(self.__request, service, self.server.handoff.departure, self.__leave):
                self.__line.check()
                raise TimeoutError("timed out")

        def __leave(self) -> bool:
            state = self.state()
            data = pack(bytes(self.__line.unread), state) if state is not None else None
            if data is None:
                return False
            wfile = getattr(self, "wfile", None)
            if wfile is not None:
                wfile.flush()
            self.__line.moved = self.server.handoff.give(self.__request, data)
            return self.__line.moved

    Keeping.__name__ = Keeping.__qualname__ = base.__name__
    return Keeping


def _speaks(sock: socket.socket, service: Service, departure: Departure, leave: Callable[[], bool]) -> bool:
    """Waits for the client's next byte, or its end; false where ``leave()``, which is asked while this process drains, says
    that the connection has gone elsewhere, or where the socket's timeout is over."""
    timeout = sock.gettimeout()
    fd = number_of(sock)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(service.fileno(), select.POLLIN)
    pauses = Pauses()
    limit = None if timeout is None else time.monotonic() + timeout
    retry: float | None = None
    while True:
        ready = [fd for fd, _ in poller.poll(_milliseconds(limit, retry))]
        if fd in ready:
            return True
        if limit is not None and time.monotonic() >= limit:
            return False
        if retry is None and not ready:
            continue
        if retry is None:
            poller.unregister(service.fileno())  # it stays readable
        elif time.monotonic() < retry:
            continue
        if not departure.hopeful:
            retry = math.inf  # nobody takes it: it is told with its next answer
            continue
        if leave():
            return False
        retry = time.monotonic() + pauses.next()


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
