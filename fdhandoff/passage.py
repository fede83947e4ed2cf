"""The connections of a server in an asyncio event loop, through a change of generation: accepted by the gate's rules, moved to
the generation that serves while this one drains, and taken over from the one before.

What belongs to one server alone (whether a connection of its protocol waits for the next request, and what it must be told) is
asked of its adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

from .connection import CountedSocket
from .departure import GIVERS, Departure, Pauses
from .errors import GateClosed
from .listener import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from typing import Any

    from .prefork import PreforkWorker
    from .service import Service


# Connections that are under way together. Nobody answers them meanwhile, so it is not long.
BATCH = 64
# How long the next ones wait until those that came are attached to the loop, where that is busy.
_ATTACHED_SECONDS = 1.0


class Passage:
    """``factory()`` makes the server's protocol for a new connection. ``everyone()`` are the protocols of those that are open.
    ``movable(protocol)`` is what the next generation must know of the connection, as bytes, or ``None`` when it can't move
    now: something is half read or half written. ``restore(protocol, state)`` is called with that at the other end.
    ``announce()`` is called while this process drains, once it is known that what is open here ends here: from then on answers
    say so. ``watch(protocol)`` is called with whoever is open when this process begins to leave, and with whoever comes later:
    it has ``settled`` or ``later`` said of it from then on, which needs nothing before.

    Make it before ``Service.ready()``, in the running loop. ``moved`` and ``arrived`` count.
    """

    def __init__(
        self,
        service: Service | PreforkWorker,
        factory: Callable[[], Any],
        *,
        everyone: Callable[[], Iterable[Any]],
        movable: Callable[[Any], bytes | None],
        restore: Callable[[Any, bytes], object] | None = None,
        watch: Callable[[Any], object] | None = None,
        announce: Callable[[], object] | None = None,
        ssl: ssl.SSLContext | None = None,
    ) -> None:
        self.service = service
        self.arrived = 0
        self.leaving = False
        self.announced = False  # what is open here ends here
        self._watch = watch
        self._announce = announce
        self._departure = Departure(service)
        self._pauses = Pauses()
        self._factory = factory
        self._everyone = everyone
        self._movable = movable
        self._restore = restore
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._ready_to_move: set[Any] = set()
        self._moving: asyncio.Task[None] | None = None
        self._arrivals: set[asyncio.Task[None]] = set()
        if ssl is None:  # what TLS knows of a connection lives in this process alone
            service.receive_connections(self._take)

    @property
    def moved(self) -> int:
        return self._departure.moved

    # --- coming -----------------------------------------------------------------------------------------------

    async def serve(self, listeners: Iterable[socket.socket] | None = None) -> str:
        """Accepts from ``listeners`` (default: all of the service's) until this process shall drain; returns why. After a
        rollback it goes on."""
        return await self.service.serve_async(self._enter, listeners)

    async def _enter(self, connection: CountedSocket, _: object) -> None:
        try:
            await self.attach(connection)
        except (OSError, EOFError):
            connection.close()  # the client hung up, or speaks no TLS

    async def attach(self, sock: socket.socket, state: bytes | None = None) -> Any:
        """Gives a connection to the server, with its state if it has moved here; returns its protocol. For a server with
        transports of its own, replace it."""
        protocol = self._factory()
        made = protocol if state is None else _Arriving(self, protocol, state)
        await self._loop.connect_accepted_socket(lambda: made, sock, ssl=self._ssl)
        if self.leaving and self._watch is not None:
            self._watch(protocol)
        return protocol

    def _take(self, connections: Iterable[Connection]) -> None:
        """In the reception's thread: they are ours."""
        attached = threading.Event()
        try:
            self._loop.call_soon_threadsafe(self._welcome, connections, attached)
        except RuntimeError:  # the loop has ended: this process is about to
            for connection in connections:
                connection.target.close()
            return
        attached.wait(_ATTACHED_SECONDS)  # then the next ones are not kept waiting here, but answered where they are

    def _welcome(self, connections: Iterable[Connection], attached: threading.Event) -> None:
        tasks = {self._loop.create_task(self._arrive(connection)) for connection in connections}
        self._arrivals |= tasks
        left = len(tasks)

        def done(task: asyncio.Task[None]) -> None:
            nonlocal left
            left -= 1
            self._arrivals.discard(task)
            if left == 0:
                attached.set()

        for task in tasks:
            task.add_done_callback(done)

    async def _arrive(self, connection: Connection) -> None:
        sock: socket.socket = connection.target
        sock.setblocking(False)
        # One that comes while this process drains already is served all the same, and moves on.
        with contextlib.suppress(GateClosed):
            sock = CountedSocket(sock, self.service.gate)
        try:
            protocol = await self.attach(sock, connection.state)
        except OSError:
            sock.close()
            return
        self.arrived += 1
        if self.leaving:
            self.settled(protocol)

    # --- going ------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """This process drains: whoever can move does so now, the others when ``settled`` is said of them. What stays, because
        whoever should take it is slow, is offered again."""
        self.leaving = True
        await asyncio.sleep(0)  # what was accepted in this turn of the loop has its protocol in the next
        everyone = list(self._everyone())
        if self._watch is not None:
            for protocol in everyone:
                self._watch(protocol)
        self._ready_to_move.update(everyone)
        if not await self._move_once():
            self._begin_moving()

    def settled(self, protocol: Any) -> None:
        """A connection has come to rest, as far as its protocol knows: it moves, if this process drains."""
        if self.leaving and not self.announced:
            self._ready_to_move.add(protocol)
            self._begin_moving()

    def later(self, protocol: Any) -> None:
        """``settled``, when this turn of the loop is over."""
        if self.leaving and not self.announced:
            self._loop.call_soon(self.settled, protocol)

    def _begin_moving(self) -> None:
        if self._moving is None:
            self._moving = self._loop.create_task(self._move())

    async def _move(self) -> None:
        try:
            while not await self._move_once():
                await asyncio.sleep(self._pauses.next())
        finally:
            self._moving = None

    async def _move_once(self) -> bool:
        """Whether there is nothing left to try, for now."""
        if self.announced:
            return True
        if self._ssl is not None or not self._departure.hopeful:
            self.announced = True
            self._ready_to_move.clear()
            if self._announce is not None:
                self._announce()
            return True
        if not self.service.has_heir:
            return False  # it comes yet
        trying, self._ready_to_move = list(self._ready_to_move), set()
        under_way: set[asyncio.Task[bool]] = set()
        try:
            while trying or under_way:
                while trying and len(under_way) < GIVERS:
                    now, trying = trying[:BATCH], trying[BATCH:]
                    if going := self._going(now):
                        under_way.add(self._loop.create_task(self._give(going)))
                if under_way:
                    done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    if not all([task.result() for task in done]):
                        break
        finally:
            if under_way:
                await asyncio.wait(under_way)
            self._ready_to_move.update(trying)
        return not self._ready_to_move

    def _going(self, protocols: Iterable[Any]) -> list[tuple[Any, Any, Connection]]:
        """Those that can move now, with their transports."""
        packed = ((protocol, protocol.transport, self._packed(protocol)) for protocol in protocols)
        return [
            (protocol, transport, connection) for protocol, transport, connection in packed if connection is not None
        ]

    async def _give(self, going: list[tuple[Any, Any, Connection]]) -> bool:
        """Whether any of these protocols, with their transports, was taken."""
        staying = connections = [connection for _, _, connection in going]
        try:
            staying = await self._loop.run_in_executor(None, self._departure.give, connections)
        finally:
            # Also where something is wrong over there: here they are as they were.
            stays = {id(connection) for connection in staying}
            for (
                protocol,
                transport,
                connection,
            ) in going:  # a protocol that lost its client meanwhile has forgotten the transport
                connection.target.close()
                if id(connection) not in stays:
                    transport.abort()  # closes it here without a word to the client
                elif not transport.is_closing():
                    transport.resume_reading()
                    self._ready_to_move.add(protocol)
        if len(stays) < len(going):
            self._pauses.reset()
        return len(stays) < len(going)

    def _packed(self, protocol: Any) -> Connection | None:
        """The connection to be given, by a descriptor of its own: the server's may be closed any time by a timer of its own."""
        transport = protocol.transport
        if transport is None or transport.is_closing() or transport.get_extra_info("ssl_object") is not None:
            return None
        if transport.get_write_buffer_size():
            return None
        state = self._movable(protocol)
        if state is None:
            return None
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return None
        transport.pause_reading()  # what comes from here on waits in the kernel for its new owner
        return Connection("connection", socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno())), state)


class _Arriving(asyncio.Protocol):
    """For the moment in which a connection is attached: whose protocol knows its state before it hears of the client's next
    byte."""

    def __init__(self, passage: Passage, protocol: Any, state: bytes) -> None:
        self._passage = passage
        self._protocol = protocol
        self._state = state

    def connection_made(self, transport: Any) -> None:
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        if self._passage._restore is not None:
            self._passage._restore(self._protocol, self._state)
