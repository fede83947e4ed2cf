"""hypercorn, upgraded without a failed request: ``run(config)`` in place of ``hypercorn.run.run(config)``,
``await serve(app, config)`` in place of ``hypercorn.asyncio.serve``, and ``python -m fdhandoff.servers.hypercorn app:app …`` in
place of ``hypercorn app:app …``, with hypercorn's own options.

A connection that speaks HTTP/1 without TLS moves to the new generation between two of its requests. Any other is told: by
``Connection: close``, by GOAWAY, a websocket by code 1012. Each is answered to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import sys
from functools import partial
from random import randint
from typing import TYPE_CHECKING

try:
    import h11
    import hypercorn.__main__
    from hypercorn.asyncio.lifespan import Lifespan
    from hypercorn.asyncio.run import _run
    from hypercorn.asyncio.tcp_server import TCPServer
    from hypercorn.asyncio.worker_context import WorkerContext
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.protocol.h2 import H2Protocol
    from hypercorn.protocol.h11 import H11Protocol
    from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
    from hypercorn.utils import LifespanFailureError, LifespanTimeoutError, NoAppError, load_application, wrap_app
    from wsproto.events import CloseConnection
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs hypercorn: pip install 'hypercorn>=0.18' ({error})") from None

from ..adapting import address_of, dual, service_name, settings, split
from ..crew import run_crew
from ..errors import HandoffError
from ..http2 import GoingAway
from ..passage import Passage
from ..service import Service
from ..websocket import RESTART

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any

    from hypercorn.config import Config
    from typing_extensions import Unpack

    from ..adapting import Handoff
    from ..prefork import PreforkWorker

# Where graceful_timeout does not say it: hypercorn's three seconds are short for what is under way.
_GRACE_SECONDS = 30.0
_NOT_STARTED = (NoAppError, LifespanFailureError, LifespanTimeoutError)
# Names of listeners that speak without TLS although there is a certificate.
_INSECURE = "insecure"


def run(config: Config, **handoff: Unpack[Handoff]) -> int:
    """``hypercorn.run.run(config)``, until a newer generation serves or it is told to stop; 0. The ``handoff_…`` keywords are
    ``fdhandoff.adapting.Handoff``'s. The application finds the ``Service`` in its lifespan's state, as
    ``scope["state"]["fdhandoff"]``. ``config.graceful_timeout`` (30 s where it is not set) is the longest drain.

    With ``config.workers`` above 1 so many processes serve, whose application finds a ``PreforkWorker`` there: its generation,
    whether it drains. ``ValueError`` for what can't be: the reloader, trio, QUIC. Raises what ``Service`` and the application
    raise.
    """
    _check(config)
    if config.worker_class not in ("asyncio", "uvloop"):
        raise ValueError(f"worker class {config.worker_class}: only asyncio and uvloop are served here")
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if config.worker_class == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with _service(config, config.application_path, handoff) as service:
        bound = _bind(service, config)

        def work(service: Service | PreforkWorker) -> None:
            app = load_application(config.application_path, config.wsgi_max_body_size)

            async def main(**_: Any) -> None:
                await _Host(service, app, config, bound).serve()

            _run(main, debug=config.debug, loop_factory=loop_factory)

        def in_a_child(member: PreforkWorker) -> None:
            try:
                work(member)
            except _NOT_STARTED as error:
                print(f"fdhandoff: {error}", file=sys.stderr)
                sys.exit(1)

        if config.workers > 1:
            return run_crew(service, [*bound[0], *bound[1]], config.workers, in_a_child)
        work(service)
    return 0


async def serve(
    app: Any,
    config: Config,
    *,
    shutdown_trigger: Callable[..., Awaitable[Any]] | None = None,
    mode: Any = None,
    **handoff: Unpack[Handoff],
) -> None:
    """``hypercorn.asyncio.serve(app, config, …)``, until a newer generation serves, or it is told to stop, or
    ``shutdown_trigger`` returns. As ``run``, which see, but in the event loop of the main thread, whichever it is."""
    _check(config)
    with _service(config, app, handoff) as service:
        bound = _bind(service, config)
        await _Host(service, wrap_app(app, config.wsgi_max_body_size, mode), config, bound, shutdown_trigger).serve()


def _check(config: Config) -> None:
    if config.use_reloader:
        raise ValueError("the reloader is for development: use hypercorn itself for that")
    if config.quic_bind:
        raise ValueError("QUIC can't be served here: its connections are known to one process alone")


def _service(config: Config, app: Any, handoff: Handoff) -> Service:
    grace = vars(config).get("graceful_timeout", _GRACE_SECONDS)
    return Service(**settings(handoff, service_name(app, "hypercorn")), grace=float(grace), pidfile=config.pid_path)


def _bind(service: Service, config: Config) -> tuple[list[socket.socket], list[socket.socket]]:
    """The listeners with TLS and those without. Where whoever started us passed them, their names say which is which."""
    named: list[tuple[str, socket.socket]] = []
    if service.inherited:
        named = list(zip(service.listeners.names, service.listeners, strict=True))
    else:
        rows = [("http", config.bind), (_INSECURE, config.insecure_bind if config.ssl_enabled else [])]
        for row, binds in rows:
            for number, bind in enumerate(binds):
                name = f"{row}-{number + 1}" if number else row
                named += [(name, sock) for sock in service.listen_all(name, _address(bind, config))]
    secure = [sock for name, sock in named if config.ssl_enabled and not name.startswith(_INSECURE)]
    return secure, [sock for _, sock in named if sock not in secure]


def _address(bind: str, config: Config) -> str:
    """hypercorn's way to say an address, in ours."""
    if bind.startswith("fd://"):
        raise ValueError(f"{bind}: listeners that are passed on come with LISTEN_FDS here; without it, bind an address")
    if bind.startswith("unix:"):
        mode = "" if config.umask is None else f"&mode={0o777 & ~config.umask:04o}"
        return f"{bind}?backlog={config.backlog}{mode}"
    host, separator, port = bind.replace("[", "").replace("]", "").rpartition(":")
    if not separator or not port.isdigit():
        host, port = bind, "8000"  # as hypercorn reads it
    return dual(f"{address_of(host, int(port))}?backlog={config.backlog}")


class _Host:
    """One process of it: what hypercorn's ``worker_serve`` does, with the service's listeners, readiness and end."""

    def __init__(
        self,
        service: Service | PreforkWorker,
        app: Any,
        config: Config,
        bound: tuple[list[socket.socket], list[socket.socket]],
        trigger: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        self.service = service
        self.app = app
        self.config = config
        self.trigger = trigger
        self.log = config.log  # made before the copies: it is theirs as well
        # hypercorn would end an HTTP/2 connection together with the answers that it owes: we count there.
        self.patient = copy.copy(config)
        self.patient.keep_alive_max_requests = sys.maxsize
        self.loop = asyncio.get_running_loop()
        limit = config.max_requests
        self.context = WorkerContext(None if limit is None else limit + randint(0, config.max_requests_jitter))  # noqa: S311
        self.state: dict[str, Any] = {"fdhandoff": service}
        self.draining = False
        self.streams: set[_Streams] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        secure, plain = bound
        self.passages = [(self._passage(config.create_ssl_context()), secure)] if secure else []
        self.passages += [(self._passage(None), plain)] if plain else []

    def _passage(self, ssl: Any) -> Passage:
        passage: Passage
        passage = Passage(
            self.service,
            lambda: _Streams(self, passage, announcing),
            everyone=lambda: [one for one in self.streams if one.passage is passage],
            movable=lambda one: one.state(),
            watch=lambda one: one.look(),
            ssl=ssl,
        )
        announcing = _announcing(self.config, lambda: passage.announced)
        return passage

    async def serve(self) -> None:
        lifespan = Lifespan(self.app, self.config, self.loop, self.state)
        living = self.loop.create_task(lifespan.handle_lifespan())
        await lifespan.wait_for_startup()
        if living.done() and (error := living.exception()) is not None:
            raise error
        try:
            await self.service.ready_async()
            accepting = [asyncio.create_task(passage.serve(listeners)) for passage, listeners in self.passages]
            await self._ending()
            report = await self._drain()
            await asyncio.gather(*accepting)
            if report.forced:
                for streams in list(self.streams):
                    if streams.transport is not None:
                        streams.transport.abort()
            await self._finish(0.0 if report.forced else self.service.grace, report.seconds)
            self.service.say(str(report))
        finally:
            await self.context.terminated.set()
            await lifespan.wait_for_shutdown()
            living.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await living

    async def _ending(self) -> None:
        """Until this process shall drain."""
        ending = asyncio.create_task(self.service.wait_async())
        enough = [asyncio.create_task(self.context.terminate.wait())]
        if self.trigger is not None:
            enough.append(asyncio.ensure_future(self.trigger()))
        await asyncio.wait({ending, *enough}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            self.service.stop()
            await ending
        for one in enough:
            one.cancel()
        outcomes = await asyncio.gather(*enough, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):  # the trigger's own
                raise outcome

    async def _drain(self) -> Any:
        self.draining = True
        for passage, _ in self.passages:
            await passage.leave()
        return await self.service.drain_async()

    async def _finish(self, grace: float | None, spent: float) -> None:
        """The application may go on when its answer is out: it has the rest of the time, if anything is left of that."""
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=None if grace is None else max(0.0, grace - spent))
        left = set(self.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def begin(self, streams: _Streams, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.server = _Connection(streams, reader, writer)
        task = self.loop.create_task(streams.server.run())
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": "a connection failed", "exception": error, "task": task})


def _announcing(config: Config, ending: Callable[[], bool]) -> Config:
    """``config`` for HTTP/1: from the moment in which connections shall end each one's answer is its last."""
    limit = config.keep_alive_max_requests

    def requests(_: Any) -> int:
        return 0 if ending() else limit

    kind = type("Announcing", (type(config),), {"keep_alive_max_requests": property(requests)})
    made = copy.copy(config)
    made.__class__ = kind
    return made


class _Streams(asyncio.StreamReaderProtocol):
    """A connection's bytes, for hypercorn's own class."""

    def __init__(self, host: _Host, passage: Passage, announcing: Config) -> None:
        self.reader = asyncio.StreamReader(loop=host.loop)
        super().__init__(self.reader, partial(host.begin, self), loop=host.loop)
        self.host = host
        self.passage = passage
        self.announcing = announcing
        self.transport: Any = None
        self.server: _Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.host.streams.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.host.streams.discard(self)
        super().connection_lost(exc)

    def look(self) -> None:
        if self.server is not None:
            self.server.look()

    def state(self) -> bytes | None:
        """Of one that waits for its next request there is nothing to be said."""
        http = self.server.http if self.server is not None else None
        unread = self.reader._buffer  # type: ignore[attr-defined]
        if not isinstance(http, H11Protocol) or http.stream is not None or unread or self.reader.at_eof():
            return None
        conn = http.connection
        if not isinstance(conn, h11.Connection) or conn.trailing_data[0]:
            return None
        return b"" if conn.our_state is h11.IDLE and conn.their_state is h11.IDLE else None


class _Wrapper(ProtocolWrapper):
    """hypercorn's, which says when a connection goes over to HTTP/2."""

    changed: Callable[[Any], None]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "protocol":
            self.changed(value)


class _Connection(TCPServer):
    """hypercorn's, which says when it rests, and tells its client that it ends."""

    def __init__(self, streams: _Streams, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = streams.host
        super().__init__(host.app, host.loop, host.patient, host.context, host.state, reader, writer)
        self._host = host
        self._streams = streams
        self._attended: Any = None
        self._closed_websockets: set[int] = set()
        self._going_away: GoingAway | None = None
        self._over = False

    @property
    def http(self) -> Any:
        wrapper = getattr(self, "protocol", None)
        return wrapper.protocol if wrapper is not None else None

    async def _read_data(self) -> None:
        if isinstance(self.http, H11Protocol):
            self.http.config = self._streams.announcing
        self.protocol.__class__ = _Wrapper
        self.protocol.changed = self._attend  # type: ignore[attr-defined]
        self._attend(self.http)
        await super()._read_data()
        await self.idle_task.stop()  # its client has gone: it need not wait for the keep-alive time

    def _attend(self, http: Any) -> None:
        """Has ``look`` called after whatever comes and goes, where there may be something to say: of HTTP/1 not before the
        drain."""
        if http is self._attended or not (isinstance(http, H2Protocol) or self._host.draining):
            return
        self._attended = http
        handle, send = http.handle, http.send

        async def handled(event: Any) -> None:
            await handle(event)
            self.look()

        async def sent(event: Any) -> None:
            await send(event)
            if self._host.draining:
                self._streams.passage.later(self._streams)
                self.look()

        http.handle, http.send = handled, sent

    def look(self) -> None:
        """What the client must be told, as soon as it can be."""
        http = self.http
        if http is None:
            return
        self._attend(http)
        if isinstance(http, H2Protocol):
            self._look_at_h2(http)
        if not self._host.draining:
            return
        for stream in list(http.streams.values()) if isinstance(http, H2Protocol) else [http.stream]:
            if isinstance(stream, WSStream) and stream.state is ASGIWebsocketState.CONNECTED:
                self._close_websocket(stream)

    def _close_websocket(self, stream: Any) -> None:
        """The application hears of it when the client has answered."""
        if stream.stream_id in self._closed_websockets:
            return
        self._closed_websockets.add(stream.stream_id)
        closing = CloseConnection(code=RESTART, reason="service restart")
        self._task_group.spawn(stream._send_wsproto_event, closing)

    def _look_at_h2(self, http: Any) -> None:
        """First that no stream is to begin any more; and the end when all that began meanwhile is answered."""
        enough = http.keep_alive_requests >= self._host.config.keep_alive_max_requests
        if self._going_away is None:
            if enough or self._host.draining:
                self._going_away = GoingAway(http.connection, self._say)
                http._handle_events = partial(self._events, http._handle_events, self._going_away)
        elif self._going_away.heard and not self._over and not http.streams and not http.stream_buffers:
            self._over = True
            self._going_away.end()
            self.writer.close()

    @staticmethod
    async def _events(inner: Any, going_away: GoingAway, events: Iterable[Any]) -> None:
        await inner(events)
        going_away.hear(events)

    def _say(self, data: bytes) -> None:
        """Whole frames, between those that hypercorn writes."""
        if not self.writer.is_closing():
            self.writer.write(data)


def main() -> int:
    """hypercorn's own command line, with ``run`` in the place of its ``run``, and our options taken out; the exit status."""
    try:
        ours, words = split(sys.argv[1:])
        sys.modules["hypercorn.__main__"].run = partial(run, **ours)  # type: ignore[attr-defined]
        return int(hypercorn.__main__.main(words))
    except (ValueError, HandoffError, *_NOT_STARTED) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    sys.exit(main())
