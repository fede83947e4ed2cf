"""Servers on asyncio's streams and protocols, upgraded without a failed request: ``await start_server(handler, host, port)`` in
place of ``asyncio.start_server``, ``await create_server(factory, host, port)`` in place of ``loop.create_server``, and the same
for ``start_unix_server`` and ``create_unix_server``.

A handler of streams asks ``draining()`` when it answers, and ends its connection then. A protocol with the methods of
``Movable`` has its connection moved to the new generation.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from ..adapting import address_of, listeners_of, service_name, settings, taken
from ..passage import Passage
from ..service import Service

if TYPE_CHECKING:
    import os
    import socket
    import ssl as _ssl
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Any, Protocol

    class Movable(Protocol):
        """What a protocol may have besides asyncio's methods, each on its own.

        ``handoff_state()``: what the next generation must know of the connection, as bytes (``b""`` for nothing), where it can
        move now: nothing is half read or half written, and reading was not paused. Else ``None``: it is asked again.
        ``handoff_restore(state)``: in the next generation, on a new protocol, before ``connection_made``.
        ``handoff_ending()``: this connection will not move, and this process ends: say so with the next answer, and close.
        """

        def handoff_state(self) -> bytes | None: ...
        def handoff_restore(self, state: bytes) -> None: ...
        def handoff_ending(self) -> None: ...


_LIMIT = 2**16  # as asyncio.start_server
_LOOK_SECONDS = 0.05  # how often a busy protocol is asked again while its process drains

_current: ContextVar[Server] = ContextVar("fdhandoff_server")


def draining() -> bool:
    """In a handler of ``start_server``: whether this process ends. Say so with the answer, and close the connection then; an
    idle one is not to be closed, because a request may be on its way."""
    return _current.get().draining


async def until_draining() -> None:
    """In a handler of ``start_server``: returns when this process shall end, for connections that last (streams of events):
    their clients are to be told to come again."""
    await _current.get().until_draining()


async def start_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    host: str | None = None,
    port: int = 0,
    *,
    limit: int = _LIMIT,
    **options: Any,
) -> Server:
    """``asyncio.start_server``, accepting when it returns: a running generation has handed over by then. ``options`` as for
    ``create_server``."""
    return await _start(_streams(client_connected_cb, limit), _internet(host, port), options)


async def start_unix_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    path: str | os.PathLike[str],
    *,
    limit: int = _LIMIT,
    **options: Any,
) -> Server:
    """``asyncio.start_unix_server``. The path stays when a generation ends, and goes with the last one."""
    return await _start(_streams(client_connected_cb, limit), f"unix:{path}", options)


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol], host: str | None = None, port: int = 0, **options: Any
) -> Server:
    """``loop.create_server``, accepting when it returns: a running generation has handed over by then. ``host``: a name or an
    address, ``None`` for all. ``options``: ``ssl``, ``ssl_handshake_timeout``, ``ssl_shutdown_timeout``, ``backlog`` (100), and

    ``grace``: how many seconds what is inside may take when this process ends (30; ``None``: for ever). The ``handoff_…``
    keywords are ``fdhandoff.adapting.Handoff``'s. Raises what ``Service`` raises."""
    return await _start(lambda _: protocol_factory, _internet(host, port), options)


async def create_unix_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol], path: str | os.PathLike[str], **options: Any
) -> Server:
    """``loop.create_unix_server``; as ``create_server``."""
    return await _start(lambda _: protocol_factory, f"unix:{path}", options)


def _internet(host: str | None, port: int) -> str:
    return address_of(host or "", port)


async def _start(
    factory: Callable[[Server], Callable[[], asyncio.BaseProtocol]], address: str, options: dict[str, Any]
) -> Server:
    handoff = settings(taken(options), service_name(None, "asyncio"))
    ours: dict[str, Any] = {"backlog": 100, "grace": 30.0}
    ours |= {name: options.pop(name) for name in list(options) if name in ours}
    tls = ("ssl", "ssl_handshake_timeout", "ssl_shutdown_timeout")
    theirs: dict[str, Any] = {}
    theirs |= {name: options.pop(name) for name in tls if name in options}
    if options:
        raise TypeError(f"unknown here: {', '.join(options)}; there are {', '.join([*ours, *tls])}")
    service = Service(**handoff, grace=ours["grace"])
    try:
        sockets = listeners_of(service, "asyncio", f"{address}?backlog={ours['backlog']}")
        server = Server(service, sockets, factory, theirs)
        await service.ready_async()
    except BaseException:
        service.close()
        raise
    server._begin()
    return server


class Server:
    """In place of ``asyncio.Server``. ``service``: the ``Service``, which has the signals: TERM and INT drain, HUP upgrades."""

    def __init__(
        self,
        service: Service,
        sockets: list[socket.socket],
        factory: Callable[[Server], Callable[[], asyncio.BaseProtocol]],
        options: dict[str, Any],
    ) -> None:
        self.service = service
        self.sockets: Sequence[socket.socket] = tuple(sockets)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passage = _Passage(self, factory(self), options)
        self._running: asyncio.Task[None] | None = None

    def _begin(self) -> None:
        self._running = self._loop.create_task(self._run())

    # --- as asyncio.Server ------------------------------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return not self.draining

    async def start_serving(self) -> None:
        """It does already."""

    async def serve_forever(self) -> None:
        """Until a newer generation serves, or it is told to stop, and what is inside has finished. Cancelled, it stops."""
        try:
            await self._ended()
        except asyncio.CancelledError:
            self.close()
            await self._ended()
            raise

    def close(self) -> None:
        """Accepts nothing more, and drains."""
        if not self.draining:
            self.service.stop()

    async def wait_closed(self) -> None:
        """Until everything has finished, ``grace`` seconds at most, whatever clients do."""
        await self._ended()

    async def _ended(self) -> None:
        assert self._running is not None
        await asyncio.shield(self._running)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    # --- draining ---------------------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether this process ends."""
        return self.service.draining

    async def until_draining(self) -> None:
        """Returns when it does."""
        await self.service.wait_async()

    async def _run(self) -> None:
        passage = self._passage
        with self.service:
            accepting = asyncio.create_task(passage.serve())
            await self.service.wait_async()
            looking = asyncio.create_task(passage.look())
            try:
                report = await self.service.drain_async()
            finally:
                looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await accepting
            if report.forced:
                for transport in list(passage.transports):
                    transport.abort()
            await self._finish(report.seconds)
            self.service.say(str(report))

    async def _finish(self, spent: float) -> None:
        """A handler may go on when its connection is closed: it has the rest of the time."""
        grace = self.service.grace
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=None if grace is None else max(0.0, grace - spent))
        left = set(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _handle(self, callback: Callable[..., Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        token = _current.set(self)  # the task has a copy
        try:
            result = callback(reader, writer)
            if result is not None:
                task: asyncio.Task[None] = self._loop.create_task(_closing(result, writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            _current.reset(token)


async def _closing(handling: Awaitable[None], writer: asyncio.StreamWriter) -> None:
    """asyncio would leave the connection open where the handler fails, and the drain would wait for it."""
    try:
        await handling
    except Exception as error:
        writer.close()
        context = {"message": "a handler failed", "exception": error, "transport": writer.transport}
        asyncio.get_running_loop().call_exception_handler(context)
    except BaseException:
        writer.close()
        raise


def _streams(callback: Callable[..., Any], limit: int) -> Callable[[Server], Callable[[], asyncio.BaseProtocol]]:
    def factory(server: Server) -> asyncio.BaseProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=server._loop)
        return asyncio.StreamReaderProtocol(reader, partial(server._handle, callback), loop=server._loop)

    return lambda server: partial(factory, server)


class _Open:
    """An open connection, as ``Passage`` wants it: the same for the same transport."""

    __slots__ = ("transport",)

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Open) and other.transport is self.transport

    def __hash__(self) -> int:
        return id(self.transport)

    def state(self) -> bytes | None:
        ask = getattr(self.transport.get_protocol(), "handoff_state", None)
        if ask is None or not self.transport.is_reading():
            return None  # the second for the protocol's own reasons, which moving would undo
        state: bytes | None = ask()
        return state

    def end(self) -> None:
        tell = getattr(self.transport.get_protocol(), "handoff_ending", None)
        if tell is not None and not self.transport.is_closing():
            try:
                tell()
            except Exception:  # the application's fault, which is no reason not to tell the others
                sys.excepthook(*sys.exc_info())


class _Passage(Passage):
    def __init__(self, server: Server, factory: Callable[[], asyncio.BaseProtocol], options: dict[str, Any]) -> None:
        self.transports: weakref.WeakSet[Any] = weakref.WeakSet()
        context: _ssl.SSLContext | None = options.get("ssl")
        super().__init__(
            server.service,
            factory,
            everyone=self._everyone_open,
            movable=_Open.state,
            announce=self._end_all,
            end=_Open.end,
            ssl=context,
        )
        self._options = options

    def _everyone_open(self) -> list[_Open]:
        return [_Open(transport) for transport in list(self.transports) if not transport.is_closing()]

    def _end_all(self) -> None:
        for one in self._everyone_open():
            one.end()

    async def look(self) -> None:
        """While this process drains: who can't move is told, who can't move yet is asked again."""
        await self.leave()
        for one in self._everyone_open():
            self._tell_fixed(one)
        while not self.announced:
            for one in self._everyone_open():
                self.settled(one)
            await asyncio.sleep(_LOOK_SECONDS)

    def _tell_fixed(self, one: _Open) -> None:
        if not hasattr(one.transport.get_protocol(), "handoff_state") and not self.announced:
            one.end()

    async def attach(self, sock: socket.socket, state: bytes | None = None) -> _Open:
        transport, _ = await self._loop.connect_accepted_socket(partial(self._make, state), sock, **self._options)
        self.transports.add(transport)
        one = _Open(transport)
        if self.announced:
            one.end()
        elif self.leaving:
            self._tell_fixed(one)
        return one

    def _make(self, state: bytes | None) -> Any:
        protocol = self._factory()
        restore = getattr(protocol, "handoff_restore", None)
        if state is not None and restore is not None:
            restore(state)
        return protocol
