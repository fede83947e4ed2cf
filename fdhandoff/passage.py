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
from typing import TYPE_CHECKING

from .connection import CountedSocket
from .errors import GateClosed
from .listener import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from typing import Any

    from .service import Service


class Passage:
    """``factory()`` makes the server's protocol for a new connection. ``everyone()`` are the protocols of those that are open.
    ``movable(protocol)`` is what the next generation must know of the connection, as bytes, or ``None`` when it can't move
    now: something is half read or half written. ``restore(protocol, state)`` is called with that at the other end.

    Make it before ``Service.ready()``, in the running loop. ``moved``, ``arrived`` and ``stayed`` count.
    """

    def __init__(
        self,
        service: Service,
        factory: Callable[[], Any],
        *,
        everyone: Callable[[], Iterable[Any]],
        movable: Callable[[Any], bytes | None],
        restore: Callable[[Any, bytes], object] | None = None,
        ssl: ssl.SSLContext | None = None,
    ) -> None:
        self.service = service
        self.moved = self.arrived = 0
        self.leaving = False
        self.moves = False  # there is an heir, which has refused nothing so far
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

    # --- coming -----------------------------------------------------------------------------------------------

    async def serve(self) -> str:
        """Accepts until this process shall drain; returns why. After a rollback it goes on."""
        return await self.service.serve_async(self._enter)

    async def _enter(self, connection: CountedSocket, _: object) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._ssl)
        except (OSError, EOFError):
            connection.close()  # the client hung up, or speaks no TLS

    def _take(self, connections: list[Connection]) -> None:
        """In the reception's thread: they are ours."""
        try:
            self._loop.call_soon_threadsafe(self._welcome, connections)
        except RuntimeError:  # the loop has ended: this process is about to
            for connection in connections:
                connection.target.close()

    def _welcome(self, connections: list[Connection]) -> None:
        for connection in connections:
            task = self._loop.create_task(self._arrive(connection))
            self._arrivals.add(task)
            task.add_done_callback(self._arrivals.discard)

    async def _arrive(self, connection: Connection) -> None:
        sock: socket.socket = connection.target
        sock.setblocking(False)
        # One that comes while this process drains already is served all the same, and moves on.
        with contextlib.suppress(GateClosed):
            sock = CountedSocket(sock, self.service.gate)
        try:
            _, protocol = await self._loop.connect_accepted_socket(self._factory, sock)
        except OSError:
            sock.close()
            return
        self.arrived += 1
        if self._restore is not None:
            self._restore(protocol, connection.state)
        if self.leaving:
            self.settled(protocol)

    # --- going ------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """This process drains: whoever can move does so now, the others when ``settled`` is said of them."""
        self.leaving = True
        self.moves = self._ssl is None and self.service.has_heir
        await asyncio.sleep(0)  # what was accepted in this turn of the loop has its protocol in the next
        self._ready_to_move.update(self._everyone())
        await self._move()

    def settled(self, protocol: Any) -> None:
        """A connection has come to rest, as far as its protocol knows: it moves, if this process drains."""
        if not self.leaving or not self.moves:
            return
        self._ready_to_move.add(protocol)
        if self._moving is None:
            self._moving = self._loop.create_task(self._move())

    def later(self, protocol: Any) -> None:
        """``settled``, when this turn of the loop is over."""
        if self.leaving and self.moves:
            self._loop.call_soon(self.settled, protocol)

    async def _move(self) -> None:
        try:
            while self._ready_to_move and self.moves:
                await self._move_once()
        finally:
            self._moving = None

    async def _move_once(self) -> None:
        going: list[tuple[Any, Connection]] = []
        for protocol in self._ready_to_move:
            connection = self._packed(protocol)
            if connection is not None:
                going.append((protocol.transport, connection))
        self._ready_to_move.clear()
        if not going:
            return
        try:
            staying = await self._loop.run_in_executor(
                None, self.service.give_connections, [connection for _, connection in going]
            )
        except Exception:
            # Whatever is wrong over there: here they are as they were.
            self._stay([transport for transport, _ in going])
            raise
        finally:
            for _, connection in going:
                connection.target.close()
        left = {id(connection) for connection in staying}
        for transport, connection in going:
            if id(connection) not in left:
                self.moved += 1
                transport.abort()  # closes it here without a word to the client
        self._stay([transport for transport, connection in going if id(connection) in left])

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

    def _stay(self, transports: Iterable[Any]) -> None:
        for transport in transports:
            self.moves = False
            if not transport.is_closing():
                transport.resume_reading()
