"""cheroot, upgraded without a failed request: ``Server(bind_addr, app, …).start()`` with this module's ``Server`` in place of
``cheroot.wsgi.Server``, and ``python -m fdhandoff.servers.cheroot …`` in place of ``cheroot …``, with its own options.

A connection that rests moves to the new generation. Where nobody takes it, answers say ``Connection: close``.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

try:
    from cheroot import cli, wsgi
    from cheroot.makefile import MakeFile
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs cheroot: pip install 'cheroot>=11' ({error})") from None

from ..adapting import address_of, dual, listeners_of, service_name, settings, split, taken, with_service
from ..departure import Departure
from ..errors import HandoffError, SystemCallError
from ..gated import GatedListener
from ..listener import Connection
from ..service import Service

if TYPE_CHECKING:
    from collections.abc import Iterable


# Its stubs know little of what is used here.
_cli: Any = cli
_Server: Any = wsgi.Server
# As cheroot knows all of IPv6's addresses.
_ALL = ("::", "::0", "::0.0.0.0")


class Server(_Server):  # type: ignore[misc]
    """cheroot's WSGI server as a generation of a service: ``start()`` returns once a newer one serves and all is finished here,
    or once it is told to stop; what is inside then may take ``grace`` seconds (``None``: for ever). It serves one listener,
    the first. The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. The application finds the ``Service`` as
    ``environ["fdhandoff"]``."""

    ConnectionClass: Any

    def __init__(
        self,
        bind_addr: Any,
        wsgi_app: Any,
        *arguments: Any,
        grace: float | None = 30.0,
        **options: Any,
    ) -> None:
        self._handoff = {**settings(taken(options), service_name(None, "cheroot")), "grace": grace}
        super().__init__(bind_addr, wsgi_app, *arguments, **options)
        self._application = wsgi_app

    def start(self) -> None:
        """Raises what ``Service`` raises."""
        with Service(**self._handoff) as service:
            self.service, self.departure = service, Departure(service)
            self.wsgi_app = with_service(self._application, service)
            connection: Any = self.ConnectionClass
            # Its class is also that of those that are open when the drain begins.
            self._request: Any = type("Request", (connection.RequestHandlerClass,), {})
            self.ConnectionClass = type("Connection", (connection,), {"RequestHandlerClass": self._request})
            self._listener = self._listen(service)
            self._prepare()
            expire = self._connections._expire
            self._connections._expire = partial(self._look_after, expire)
            if self.ssl_adapter is None:
                service.receive_connections(self._take)
            else:
                service.drains_when_asked()
            service.ready()
            failures: list[BaseException] = []
            ending = threading.Thread(target=self._end, args=(failures,), name="fdhandoff-cheroot", daemon=True)
            service.when_draining(ending.start)
            self.serve()
            service.wait()
            ending.join()
            if failures:
                raise failures[0]

    def _prepare(self) -> None:
        """The pool's threads inherit that they are daemons: the gate waits for them, and what is cut holds nobody up."""
        failures: list[BaseException] = []

        def prepare() -> None:
            try:
                self.prepare()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=prepare, name="fdhandoff-prepare", daemon=True)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    def _listen(self, service: Service) -> socket.socket:
        """Of what a host's name stands for the first that can be bound, as cheroot has it."""
        first, *others = self._addresses(service)
        if service.inherited or not others:
            return listeners_of(service, "http", first)[0]
        for address in (first, *others[:-1]):
            with contextlib.suppress(SystemCallError):
                return service.listen("http", address)
        return service.listen("http", others[-1])

    def _addresses(self, service: Service) -> list[str]:
        options = f"backlog={self.request_queue_size}"
        if isinstance(self.bind_addr, (str, bytes)):
            path = self.bind_addr if isinstance(self.bind_addr, str) else self.bind_addr.decode()
            return [f"unix:{path}?mode=0777&{options}"]
        host, port = self.bind_addr[:2]
        if host in _ALL:
            host = "::"
        if not self.nodelay:
            options += "&nodelay=0"
        if self.reuse_port:
            options += "&reuseport=1"
        hosts = _hosts(host, port)
        came = {sock.getsockname()[0] for _, sock in service.listeners.unclaimed()}
        hosts.sort(key=lambda one: one not in came)  # what is served goes on, although another could be bound by now
        return [dual(f"{address_of(one, port)}?{options}") for one in hosts]

    def bind(self, *_: Any) -> Any:
        """Nothing: the service has the listener. ``ValueError`` for a TLS adapter that would have to wrap that."""
        self.socket = GatedListener(self._listener, self.service.gate)
        if self.ssl_adapter is not None and self.ssl_adapter.bind(self.socket) is not self.socket:
            raise ValueError(
                f"{type(self.ssl_adapter).__name__} wraps the listener, which other generations have, too: "
                "use the adapter 'builtin'"
            )
        self.bind_addr = self.resolve_real_bind_addr(self.socket)
        return self.socket

    def bind_unix_socket(self, _: Any) -> Any:
        return self.bind()

    def _end(self, failures: list[BaseException]) -> None:
        service, done = self.service, False
        try:
            self._announce()
            report = service.drain()
            service.say(str(report))
            done = not report.forced
        except BaseException as error:
            failures.append(error)
        if not done:
            self.requests.stop = lambda _: None  # it would wait for them without end
        self.stop()

    # --- connections come and go --------------------------------------------------------------------------------

    def _announce(self) -> None:
        """From here on a connection moves when it is answered, or ends with that answer if it may not."""
        send = self._request.send_headers

        def send_headers(request: Any) -> None:
            if self.ssl_adapter is not None or not self.departure.hopeful:
                request.close_connection = True
            send(request)

        self._request.send_headers = send_headers
        self.put_conn = self._put_or_give

    def _put_or_give(self, conn: Any) -> None:
        """In a worker's thread: it has answered, and the connection is kept."""
        if conn.rfile.has_data() or not self._give([conn]):
            super().put_conn(conn)

    def _look_after(self, expire: Any, threshold: float) -> None:
        """In the thread that waits for them, every now and then: those that rest move."""
        expire(threshold)
        if self.service.draining:
            selector = self._connections._selector
            resting = [(fd, one) for fd, one in selector.connections if one is not self]
            for fd, _ in resting:
                selector.unregister(fd)
            gone = self._give([one for _, one in resting])
            for _, one in resting:
                if one not in gone:
                    self._connections.put(one)

    def _give(self, connections: list[Any]) -> set[Any]:
        """Those that have moved."""
        if not connections or self.ssl_adapter is not None or not self.departure.hopeful:
            return set()
        offered = {id(one.socket): one for one in connections}
        for one in self.departure.give([Connection("connection", one.socket) for one in connections]):
            del offered[id(one.target)]
        for one in offered.values():  # without a shutdown, which its new owner would feel
            one.rfile.close()
            one.wfile.close()
            one.socket.close()
        return set(offered.values())

    def _take(self, connections: Iterable[Connection]) -> None:
        """What an older generation gives; in a thread of its own."""
        for counted in self.departure.admitted(connections):
            try:
                counted.settimeout(self.timeout)
                address = counted.getpeername()
            except OSError:
                counted.close()  # the client has hung up
                continue
            taken = self.ConnectionClass(self, counted, MakeFile)
            if not isinstance(self.bind_addr, (str, bytes)):
                taken.remote_addr, taken.remote_port = address[:2]
            taken.ssl_env = {}
            self.put_conn(taken)


def _hosts(host: str, port: int) -> list[str]:
    """The addresses of a name that has several; else ``host`` as it is."""
    try:
        found = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except socket.gaierror:
        return [host]  # who binds it says so
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    return addresses if len(addresses) > 1 else [host]


def main() -> None:
    """cheroot's own command line, our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        ours.setdefault("handoff_name", service_name(words[0] if words else "", "cheroot"))
        sys.argv[1:] = words
        _cli.Application.server = lambda application, words: Server(**application.server_args(words), **ours)
        _cli.main()
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
