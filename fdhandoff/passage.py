"""The connections of a server in an asyncio event loop, through a change of generation: accepted by the gate's rules, moved to
the generation that serves while this one drains, and taken over from the one before.

What belongs to one server alone (whether a connection of its protocol waits for the next request, and what it must be told) is
asked of its adapter.
"""

from __future__ import annotations

import _socket
import asyncio
import gc
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from .connection import CountedSocket
from .departure import Departure, Pauses
from .errors import GateClosed
from .listener import Connection
from .system.batches import Arrived

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from typing import Any

    from .moving import Guest
    from .prefork import PreforkWorker
    from .service import Service


# Connections in a message. Nobody answers them while they are under way, so they are few.
BATCH = 48
# When more than these arrive together, collections of garbage wait until none has come for a moment, or for the last at most.
_MANY = 8
_MOMENT = 0.2
_LAST = 5.0
# When one is looked at again whose client has not read all of its answer: nobody says when it has.
_READING = 0.1

# Read by the C type's own descriptors: ``socket.socket`` makes an enumeration of each.
_family = _socket.socket.family.__get__
_type = _socket.socket.type.__get__
_protocol = _socket.socket.proto.__get__


class Passage:
    """``factory()`` makes the server's protocol for a new connection. ``everyone()`` are the protocols of those that are open.
    ``movable(protocol)`` is what the next generation must know of the connection, as bytes, or ``None`` when it can't move
    now: something is half read or half written. ``restore(protocol, state)`` is called with that at the other end.
    ``announce()`` is called while this process drains, once it is known that what is open here ends here: from then on answers
    say so; ``end(protocol)`` for one whose ``movable`` has raised, which ends here alone. ``watch(protocol)`` is called with
    whoever is open when this process begins to leave, and with whoever comes later: it has ``settled`` or ``later`` said of it
    from then on, which needs nothing before.

    Make it before ``Service.ready()``, in the running loop. ``arrived`` counts.
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
        end: Callable[[Any], object] | None = None,
        ssl: ssl.SSLContext | None = None,
    ) -> None:
        self.service = service
        self.arrived = 0
        self.leaving = False
        self.announced = False  # what is open here ends here
        self._watch = watch
        self._announce = announce
        self._end = end
        self._departure = Departure(service)
        self._pauses = Pauses()
        self._factory = factory
        self._everyone = everyone
        self._movable = movable
        self._restore = restore
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._ready_to_move: dict[Any, None] = {}
        self._broken: dict[int, Any] = {}  # transports whose protocols can't say what they must
        self._tried = asyncio.Event()  # once all were
        self._at_once = BATCH
        self._moving: asyncio.Task[None] | None = None
        self._giver: ThreadPoolExecutor | None = None
        self._arrivals: set[asyncio.Task[None]] = set()
        self._collect: asyncio.TimerHandle | None = None
        self._put_off_since = 0.0
        self._thread = threading.get_ident()
        # Asyncio's own loops make a transport at once. To be told by a task of each connection that it was made costs as much
        # as all else.
        self._make_transport: Any = getattr(self._loop, "_make_socket_transport", None)
        self._ours_to_close = self._make_transport is not None  # uvloop closes descriptors by itself
        if type(self).attach is not Passage.attach:
            self._make_transport = None
        if ssl is None:  # what TLS knows of a connection lives in this process alone
            service.receive_connections(self._welcome, seat=self._seat)

    # --- coming -----------------------------------------------------------------------------------------------

    async def serve(self, listeners: Iterable[socket.socket] | None = None) -> str:
        """Accepts from ``listeners`` (default: all of the service's) until this process shall drain; returns why. After a
        rollback it goes on. What keeps it from accepting is said at once, and stops the service: whoever sees to it then
        starts another."""
        try:
            return await self.service.serve_async(self._enter, listeners)
        except Exception as error:
            self.service.say(f"nothing can be accepted any more: {error}")
            self.service.stop()
            raise

    async def _enter(self, connection: CountedSocket, _: object) -> None:
        self._follow(connection)
        try:
            protocol = await self.attach(connection)
        except (OSError, EOFError):
            connection.close()  # the client hung up, or speaks no TLS
            return
        if protocol is not None:
            self.settled(protocol)

    def _follow(self, connection: CountedSocket) -> None:
        if not self._ours_to_close:
            connection.remember()

    async def attach(self, sock: socket.socket, state: bytes | None = None) -> Any:
        """Gives a connection to the server, with its state if it has moved here; returns its protocol. For a server with
        transports of its own, replace it."""
        protocol = self._factory()
        made = protocol if state is None else _Arriving(self, protocol, state)
        await self._loop.connect_accepted_socket(lambda: made, sock, ssl=self._ssl)
        if self.leaving and self._watch is not None:
            self._watch(protocol)
        return protocol

    def _seat(self, guest: Guest) -> Callable[[], None]:
        """A giver has come, in another thread. The loop takes what it brings: where that is busy, connections are not
        acknowledged, but answered where they are."""
        self._soon(self._begin, guest)
        return partial(self._dismiss, guest)

    def _soon(self, what: Callable[[Guest], None], guest: Guest) -> None:
        try:
            self._loop.call_soon_threadsafe(what, guest)
        except RuntimeError:  # the loop has ended: this process is about to
            guest.close()

    def _begin(self, guest: Guest) -> None:
        if guest.attend():
            self._loop.add_reader(guest.fileno(), self._attend, guest)
        else:
            guest.close()

    def _attend(self, guest: Guest) -> None:
        if not guest.attend():
            self._see_off(guest)

    def _see_off(self, guest: Guest) -> None:
        if guest.fileno() >= 0:
            self._loop.remove_reader(guest.fileno())
            guest.close()

    def _dismiss(self, guest: Guest) -> None:
        if threading.get_ident() != self._thread:
            self._soon(self._see_off, guest)
        elif self._loop.is_closed():
            guest.close()
        else:
            self._see_off(guest)

    def _welcome(self, connections: Iterable[Connection]) -> None:
        """They are ours."""
        for number, (arrived, state) in enumerate(_bare(connections)):
            if number == _MANY:
                self._put_off_collecting()
            arrived.setblocking(False)
            sock: socket.socket
            try:
                sock = counted = CountedSocket(arrived, self.service.gate)
                self._follow(counted)
            except GateClosed:
                # One that comes while this process drains already is served all the same, and moves on.
                sock = socket.socket(arrived.family, arrived.type, arrived.proto, arrived.detach())
            if self._make_transport is not None:
                self._arrive_at_once(sock, state)
                continue
            task = self._loop.create_task(self._arrive(sock, state))
            self._arrivals.add(task)
            task.add_done_callback(self._arrivals.discard)

    def _put_off_collecting(self) -> None:
        """A full collection walks through all that there is, and what is there grows so fast now that one follows the other;
        meanwhile nobody is answered."""
        now = self._loop.time()
        if self._collect is None:
            if not gc.isenabled():
                return  # the application's decision
            gc.disable()
            self._put_off_since = now
        else:
            self._collect.cancel()
        self._collect = self._loop.call_at(min(now + _MOMENT, self._put_off_since + _LAST), self._collect_again)

    def _collect_again(self) -> None:
        self._collect = None
        gc.enable()

    def _arrive_at_once(self, sock: socket.socket, state: bytes) -> None:
        """As ``attach``, which waits until the protocol knows of it; that is in the next turn of the loop."""
        protocol = self._factory()
        try:
            self._make_transport(sock, _Arriving(self, protocol, state))
        except OSError:
            sock.close()
            return
        self.arrived += 1
        if self.leaving:
            self._loop.call_soon(self._has_come_late, protocol)

    def _has_come_late(self, protocol: Any) -> None:
        if self._watch is not None:
            self._watch(protocol)
        self.settled(protocol)

    async def _arrive(self, sock: socket.socket, state: bytes) -> None:
        try:
            protocol = await self.attach(sock, state)
        except OSError:
            sock.close()
            return
        self.arrived += 1
        self.settled(protocol)

    # --- going ------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """This process drains: whoever can move does so now, the others when ``settled`` is said of them. What stays, because
        whoever should take it is slow, is offered again."""
        self.leaving = True
        await asyncio.sleep(0)  # what was accepted in this turn of the loop has its protocol in the next
        everyone = dict.fromkeys(self._everyone())
        if self._watch is not None:
            for protocol in everyone:
                self._watch(protocol)
        self._ready_to_move.update(everyone)
        del everyone  # what is of a connection that has gone goes meanwhile, not when all have
        self._begin_moving()
        await self._tried.wait()

    def settled(self, protocol: Any) -> None:
        """A connection has come to rest, as far as its protocol knows: it moves, if this process drains."""
        if self.leaving and not self.announced:
            self._ready_to_move[protocol] = None
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
                self._tried.set()
                await asyncio.sleep(self._pauses.next())
        finally:
            self._moving = None
            self._tried.set()

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
        if self._giver is None:  # not the application's threads: all may be busy while connections are under way
            self._giver = ThreadPoolExecutor(1, "fdhandoff-departure")
            # Whoever serves now is busy with its beginning: while it is called for the first time, all are answered here.
            await self._loop.run_in_executor(self._giver, self._departure.give, [])
        staying: list[Any] = []
        willing = True
        try:
            while willing and self._ready_to_move:
                going = self._going()
                if not going:
                    break
                giving = self._loop.create_task(self._give(going, staying))
                try:
                    willing = await asyncio.shield(giving)
                except asyncio.CancelledError:
                    await asyncio.wait({giving})  # it has begun
                    raise
        finally:
            self._ready_to_move.update(dict.fromkeys(staying))
        return not self._ready_to_move

    def _going(self) -> list[tuple[Any, Any, Connection]]:
        """The next of those that can move now, with their transports: first whoever came to rest last, and may soon be asked
        again. None where there is no descriptor for one."""
        going: list[tuple[Any, Any, Connection]] = []
        while self._ready_to_move and len(going) < self._at_once:
            protocol, _ = self._ready_to_move.popitem()
            transport = protocol.transport
            try:
                connection = self._packed(protocol)
            except OSError as error:
                transport.resume_reading()
                self._ready_to_move[protocol] = None
                self._departure.hindered(error)
                self._at_once = max(1, self._at_once // 2)
                break
            if connection is not None:
                going.append((protocol, transport, connection))
        return going

    async def _give(self, going: list[tuple[Any, Any, Connection]], staying_here: list[Any]) -> bool:
        """Whether any of these protocols, with their transports, was taken; the others are added to ``staying_here``."""
        staying = connections = [connection for _, _, connection in going]
        try:
            staying = await self._loop.run_in_executor(self._giver, self._departure.give, connections)
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
                    staying_here.append(protocol)
        taken = len(stays) < len(going)
        if taken:
            self._pauses.reset()
        # Where descriptors are short those for fewer connections may do; what has gone makes room.
        self._at_once = min(BATCH, self._at_once * 2) if taken else max(1, self._at_once // 2)
        return taken

    def _packed(self, protocol: Any) -> Connection | None:
        """The connection to be given, by a descriptor of its own: the server's may be closed any time by a timer of its own."""
        transport = protocol.transport
        if transport is None or transport.is_closing() or transport.get_extra_info("ssl_object") is not None:
            return None
        if transport.get_write_buffer_size():
            self._loop.call_later(_READING, self.settled, protocol)
            return None
        if id(transport) in self._broken:
            return None
        try:
            state = self._movable(protocol)
        except Exception:  # the application's fault: the others move all the same, and this one ends here
            sys.excepthook(*sys.exc_info())
            self._broken[id(transport)] = transport
            if self._end is not None:
                self._end(protocol)
            return None
        if state is None:
            return None
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return None
        transport.pause_reading()  # what comes from here on waits in the kernel for its new owner
        return Connection("connection", _twin(sock), state)


def _bare(connections: Iterable[Connection]) -> Iterable[tuple[_socket.socket, bytes]]:
    if isinstance(connections, Arrived):
        return connections.bare()
    return ((connection.target, connection.state) for connection in connections)


def _twin(sock: Any) -> _socket.socket:
    """Another descriptor of the same connection."""
    inner = getattr(sock, "_sock", sock)  # asyncio shows a wrapper of it
    if isinstance(inner, _socket.socket):
        return _socket.socket(_family(inner), _type(inner), _protocol(inner), os.dup(inner.fileno()))
    return _socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))


class _Arriving(asyncio.Protocol):
    """For the moment in which a connection is attached: whose protocol knows its state before it hears of the client's next
    byte."""

    __slots__ = ("_passage", "_protocol", "_state")

    def __init__(self, passage: Passage, protocol: Any, state: bytes) -> None:
        self._passage = passage
        self._protocol = protocol
        self._state = state

    def connection_made(self, transport: Any) -> None:
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        if self._passage._restore is not None:
            self._passage._restore(self._protocol, self._state)
