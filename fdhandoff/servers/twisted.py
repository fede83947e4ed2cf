"""Twisted, upgraded without a failed request: ``listen(factory, "127.0.0.1:8080")`` in place of
``reactor.listenTCP(8080, factory)``, for a factory of any protocol.

Connections end where they are: those of ``twisted.web`` are told ``Connection: close`` with their next answer, or by GOAWAY,
any other protocol is asked by ``leave``.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING

from ..accept import Acceptor
from ..adapting import listeners_of, service_name, settings
from ..http2 import GoingAway
from ..service import REOPEN_SECONDS, Service
from ..system.native import FDH_CLOSED, FDH_FULL, FDH_PAUSE

# Twisted's endpoints take what tells of inherited listeners out of the environment as soon as they are imported, by whomever.
_TELLING = ("LISTEN_FDS", "LISTEN_PID")
_told = {name: os.environ[name] for name in _TELLING if name in os.environ}

try:
    from twisted.internet import endpoints, tcp, unix
    from twisted.internet.abstract import FileDescriptor
    from twisted.internet.defer import Deferred
    from twisted.python import log
    from twisted.python.failure import Failure
    from twisted.web.http import HTTPChannel, _GenericHTTPChannelProtocol
    from twisted.web.http_headers import Headers
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs Twisted: pip install 'twisted>=24.7' ({error})") from None

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Unpack

    from ..adapting import Handoff

if "LISTEN_FDS" not in _told and (_taken := endpoints._SystemdParser._sddaemon.inheritedDescriptors()):
    _told = {"LISTEN_FDS": str(len(_taken)), "LISTEN_PID": str(os.getpid())}  # it was imported before us
os.environ.update(_told)

_serving: weakref.WeakKeyDictionary[Service, Serving] = weakref.WeakKeyDictionary()

_LOOK_SECONDS = (
    0.05  # how often, in a drain, connections are looked at that speak HTTP/2 or have not said what they speak
)
_PAUSE_SECONDS = 0.1  # how long nothing is accepted when descriptors ran out, or the gate is full


def listen(
    factory: Any,
    address: str,
    *,
    reactor: Any = None,
    leave: Callable[[Any], object] | None = None,
    grace: float | None = 30.0,
    **handoff: Unpack[Handoff],
) -> Service:
    """Serves ``factory`` at ``address`` (``127.0.0.1:8080``, ``:8080`` for all addresses, ``unix:/run/x.sock``) once
    ``reactor.run()`` is called, until a newer generation serves or this process is told to stop; then what is inside has
    ``grace`` seconds (``None``: for ever), and the reactor is stopped. Call it once, before ``reactor.run()``.

    ``leave(protocol)`` is called in the reactor's thread for each open connection when the drain begins: what it is told of
    its end is the protocol's matter. The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. Returns the ``Service``,
    which is closed with the reactor. Signals are the service's. Raises what ``Service`` raises; what goes wrong in ``ready()``
    is said, and stops the reactor.
    """
    reactor = reactor or _default_reactor()
    service = Service(**settings(handoff, service_name(None, "twisted")), grace=grace)
    try:
        listeners = listeners_of(service, "main", address)
        serving = Serving(service, factory, listeners, reactor, leave)
    except BaseException:
        service.close()
        raise
    reactor.addSystemEventTrigger("after", "shutdown", service.close)
    _serving[service] = serving
    return service


def run(factory: Any, address: str, **options: Any) -> None:
    """``listen`` and ``reactor.run()``. Raises what went wrong in ``ready()``, too."""
    reactor: Any = options.pop("reactor", None) or _default_reactor()
    service = listen(factory, address, reactor=reactor, **options)
    reactor.run()
    failure = _serving[service].failure
    if failure is not None:
        raise failure


def _default_reactor() -> Any:
    from twisted.internet import reactor  # installs one, if nobody has

    return reactor


class Serving:
    """A service in a reactor, from its start to its stop. ``at_leave`` is called when the drain begins, ``at_end`` when it is
    over and before the reactor stops; that may return a ``Deferred``, which is waited for."""

    def __init__(
        self,
        service: Service,
        factory: Any,
        listeners: list[socket.socket],
        reactor: Any,
        leave: Callable[[Any], object] | None = None,
        at_leave: Callable[[], object] = lambda: None,
        at_end: Callable[[], Any] = lambda: None,
    ) -> None:
        self.service = service
        self.failure: BaseException | None = None
        self.transports: weakref.WeakSet[Any] = weakref.WeakSet()
        self._factory = factory
        self._listeners = listeners
        self._reactor = reactor
        self._leave, self._at_leave, self._at_end = leave, at_leave, at_end
        self._ports: list[Any] = []
        # The reactor takes TERM, INT and others for itself when it starts.
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        service.drains_when_asked()
        reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        self._in_thread(self.service.ready).addCallbacks(self._serve, self._fail)

    def _in_thread(self, function: Callable[[], Any]) -> Deferred[Any]:
        """In a thread that ends with it: one of the reactor's pool would stay. The reactor waits for it when it stops."""
        ended: Deferred[Any] = Deferred()

        def run() -> None:
            outcome: Any
            try:
                outcome = function()
            except BaseException:
                outcome = Failure()  # type: ignore[no-untyped-call]
            self._reactor.callFromThread(ended.callback, outcome)

        thread = threading.Thread(target=run, name="fdhandoff-twisted", daemon=True)
        thread.start()
        self._reactor.addSystemEventTrigger("during", "shutdown", thread.join)
        return ended

    def _fail(self, failure: Any) -> None:
        self.failure = failure.value
        self.service.say(f"{failure.value}")
        self._reactor.stop()

    def _serve(self, _: object) -> None:
        self.service.unblock_signals()  # here, in the reactor's thread: the one in which it became ready can't
        self._reactor.addReader(_End(self._reactor, self.service.fileno(), self._drain))
        for listener in self._listeners:
            port = _port_class(listener).adopt(self, listener, self._factory, self._reactor)
            self._ports.append(port)
            port.startListening()

    def _drain(self) -> None:
        for port in self._ports:
            port.stopReading()
        self._tell([_Ending(one) for one in list(self.transports) if _speaks_http(one)])
        self._at_leave()
        if self._leave is not None:
            for transport in list(self.transports):
                if transport.connected:
                    self._leave(transport.protocol)
        self._in_thread(self.service.drain).addCallback(self._end).addErrback(self._fail)

    def _tell(self, endings: list[_Ending]) -> None:
        endings = [one for one in endings if one.look()]
        if endings:
            self._reactor.callLater(_LOOK_SECONDS, self._tell, endings)

    def _end(self, report: Any) -> Any:
        for transport in list(self.transports):
            if report.forced and transport.connected:
                transport.abortConnection()
        waited = self._at_end()
        if waited is None:
            self._reactor.stop()
            return None
        return waited.addBoth(lambda _: self._reactor.stop())


class _End(FileDescriptor):
    """Tells once that the service drains."""

    def __init__(self, reactor: Any, fd: int, tell: Callable[[], object]) -> None:
        super().__init__(reactor)
        self._fd, self._tell = fd, tell

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        reactor: Any = self.reactor
        reactor.removeReader(self)
        self._tell()


class _Gated:
    """What a port does otherwise: it accepts by the gate's rules."""

    @classmethod
    def adopt(cls, serving: Serving, listener: socket.socket, factory: Any, reactor: Any) -> Any:
        make: Any = cls._fromListeningDescriptor  # type: ignore[attr-defined]
        if listener.family == _UNIX:
            port = make(reactor, listener.fileno(), factory)
        else:
            port = make(reactor, listener.fileno(), listener.family, factory)
        port.serving = serving
        port.acceptor = Acceptor(listener, serving.service.gate)
        return port

    def doRead(self: Any) -> None:
        for connection in self.acceptor.accept():
            try:
                address = connection.getpeername()
            except OSError:
                connection.close()  # its client has hung up
                continue
            try:
                self._open(connection, address)
            except Exception:
                log.err(None, "a connection could not be begun")  # type: ignore[no-untyped-call]
                connection.close()
        condition = self.acceptor.condition
        if condition == FDH_CLOSED:  # handed over, unless there is a rollback
            self._rest(REOPEN_SECONDS)
        elif condition in (FDH_PAUSE, FDH_FULL):
            self._rest(_PAUSE_SECONDS)

    def _open(self: Any, connection: Any, address: Any) -> None:
        protocol = self.factory.buildProtocol(self._buildAddr(address))
        if protocol is None:
            connection.close()
            return
        self.sessionno += 1
        transport = self.transport(connection, protocol, address, self, self.sessionno, self.reactor)
        protocol.makeConnection(transport)
        self.serving.transports.add(transport)

    def _rest(self: Any, seconds: float) -> None:
        self.stopReading()
        self.reactor.callLater(seconds, self._again)

    def _again(self: Any) -> None:
        service = self.serving.service
        if service.draining:
            return
        if service.gate.closed:
            self._rest(REOPEN_SECONDS)
        else:
            service.gate.settle()
            self.startReading()


_UNIX = unix.Port.addressFamily


class _TcpPort(_Gated, tcp.Port):
    pass


class _UnixPort(_Gated, unix.Port):
    pass


def _port_class(listener: socket.socket) -> Any:
    return _UnixPort if listener.family == _UNIX else _TcpPort


def _generic(transport: Any) -> Any:
    """``twisted.web``'s protocol of a connection, also behind TLS, which has a channel for HTTP/1 until a client has begun with
    HTTP/2."""
    return getattr(transport.protocol, "wrappedProtocol", transport.protocol)


def _speaks_http(transport: Any) -> bool:
    return bool(transport.connected) and isinstance(_generic(transport), (HTTPChannel, _GenericHTTPChannelProtocol))


class _Ending:
    """A connection of ``twisted.web`` whose client is told that it ends."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._told = False
        self._going_away: GoingAway | None = None

    def look(self) -> bool:
        """Says what can be said by now; whether there is to be another look."""
        if not self._transport.connected:
            return False
        protocol = _generic(self._transport)
        channel = getattr(protocol, "_channel", protocol)
        if isinstance(channel, HTTPChannel):
            if not self._told:
                self._told = True
                _announcing(channel)
            return getattr(protocol, "_negotiatedProtocol", b"http/1.1") is None
        if self._going_away is None:
            self._going_away = GoingAway(channel.conn, channel.transport.write)
            self._going_away.listen()
        elif self._going_away.heard and not channel.streams:
            self._going_away.end()
            channel.transport.loseConnection()
            return False
        return True


def _announcing(channel: Any) -> None:
    """From here on each answer says that its connection ends, unless the next request has come already."""
    write_headers = channel.writeHeaders

    def announcing(version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        if channel.persistent and not any(channel._dataBuffer):
            channel.persistent = False
            if not isinstance(headers, Headers):
                headers = Headers({name: [value] for name, value in headers})
            headers.setRawHeaders(b"connection", [b"close"])
        write_headers(version, code, reason, headers)

    channel.writeHeaders = announcing
