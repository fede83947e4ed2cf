"""Accepting connections through a gate: each is counted in the same step in which it is accepted.

So when ``Gate.close`` has returned, whatever is accepted is counted, and what is not stays in the listener's queue for the
next owner. Many connections come with one call, close-on-exec and non-blocking from birth.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from itertools import repeat

from .connection import Accepted, CountedSocket
from .errors import GateClosed, ListenerMismatch, SystemCallError
from .system.fds import describe
from .system.native import FDH_CLOSED, FDH_FULL, FDH_PAUSE, check, ffi, lib
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from .gate import Gate

__all__ = ["AcceptLoop", "Acceptor", "CountedSocket", "accept_many", "protocol_handler"]

BATCH = 64
# What calls on a connection fail with when its client is no longer there.
_HUNG_UP = frozenset(
    (errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN, errno.ETIMEDOUT)
)
# How long nothing is accepted after descriptors or memory ran out, doubled up to the last.
_PAUSE_FIRST = 0.01
_PAUSE_LAST = 1.0
# How often a full gate is looked at for processes that died inside.
LOOK = 1.0


def accept_many(
    listener: socket.socket | int, gate: Gate, limit: int = BATCH, *, timeout: float | None = 0.0
) -> list[CountedSocket]:
    """Up to ``limit`` connections from the listener's queue, without waiting; none when it is empty or the gate is full
    (``gate.want_room()`` tells). Raises when none came and none will: ``GateClosed``, and ``SystemCallError`` (EMFILE) when
    the process or the system is out of descriptors or memory: wait a moment then, the connections stay in the queue.
    ``timeout`` is the connections' own, as in ``settimeout``: they are non-blocking unless it says otherwise.
    """
    acceptor = Acceptor(listener, gate, batch=limit, timeout=timeout)
    accepted = acceptor.accept()
    if not accepted and acceptor.condition == FDH_CLOSED:
        raise GateClosed("the gate is closed: nothing is accepted any more")
    if not accepted and acceptor.condition == FDH_PAUSE:
        raise SystemCallError("accept4", errno.EMFILE, doing="accepting a connection")
    return accepted


class Acceptor:
    """Accepts from one listener (borrowed) in batches. One thread uses it at a time. ``condition`` tells why the last call
    stopped: 0 for an empty queue, or ``FDH_MORE``, ``FDH_CLOSED``, ``FDH_FULL``, ``FDH_PAUSE``."""

    __slots__ = ("_fds", "_kind", "_n", "batch", "condition", "fd", "gate", "listener", "timeout")

    def __init__(
        self, listener: socket.socket | int, gate: Gate, *, batch: int = BATCH, timeout: float | None = 0.0
    ) -> None:
        self.listener = listener
        self.gate = gate
        self.batch = batch
        self.timeout = timeout
        self.condition = 0
        self.fd = listener if isinstance(listener, int) else listener.fileno()
        what = describe(self.fd)
        if what is None or not what.listening:
            raise ListenerMismatch(f"descriptor {self.fd} does not listen", expected="a listener", got=str(what))
        # With this flag among the type's bits the new object knows that its descriptor doesn't block.
        flag = getattr(socket, "SOCK_NONBLOCK", 0)
        self._kind = (repeat(what.family), repeat(what.type | flag), repeat(what.protocol))
        self._fds = ffi.new("int[]", batch)
        self._n = ffi.new("size_t *")

    def accept(self) -> list[CountedSocket]:
        """What is in the queue, up to ``batch``. ``SystemCallError`` when the descriptor is no listener any more."""
        door = self.gate._door
        accepted: list[CountedSocket] = []
        if self.gate._handle is None:
            self.condition = FDH_CLOSED
            return accepted
        self._n[0] = 0
        try:
            self.condition = check(
                "accept4",
                lib.fdh_accept(door.handle, self.fd, self._fds, self.batch, self._n),
                "accepting a connection",
            )
            fds = ffi.unpack(self._fds, self._n[0])
            accepted.extend(map(Accepted, *self._kind, fds))
            for connection in accepted:
                connection._io_refs = 0  # type: ignore[attr-defined]
                connection._closed = False
                connection._door = door
            if self.timeout != 0:
                for connection in accepted:
                    connection.settimeout(self.timeout)
        except BaseException:
            self._undo(accepted)
            raise
        return accepted

    def _undo(self, accepted: list[CountedSocket]) -> None:
        """An interrupt came between: nothing stays open, nothing stays counted."""
        door, n = self.gate._door, self._n[0]
        for connection in accepted:
            connection._door = door
            connection.force_close()
        for fd in ffi.unpack(self._fds, n)[len(accepted) :]:
            lib.fdh_close(fd)
            door.leave_forced()


class AcceptLoop:
    """Calls ``handler(connection, listener)`` for every connection that is accepted from ``listeners`` (sockets or
    descriptors, borrowed) until ``gate`` closes or ``stop`` is called; what is in the queues then stays there.

    The handler runs in the loop's own thread and should pass the connection on: to a thread, a pool, a task. It owns the
    connection and closes it. If it raises, the loop ends with its exception, and what it had accepted and not yet passed on
    is closed, counted as forced. But a client that has hung up ends nobody's loop: an ``OSError`` that says so (``ENOTCONN``
    by ``getpeername``, ``ECONNRESET``, …) closes its connection, and the loop goes on. ``batch``: at most so many are
    accepted before the first of them is handled; 1 for a handler that serves the connection itself. ``timeout``: the
    connections' own; ``None``, the default, means blocking.

    When descriptors or memory run out the loop pauses, leaves the connections in the queue and says so once: it calls
    ``on_pause(message)``, or logs a warning.
    """

    def __init__(
        self,
        listeners: Iterable[socket.socket | int],
        gate: Gate,
        handler: Callable[[CountedSocket, socket.socket | int], object],
        *,
        batch: int = BATCH,
        timeout: float | None = None,
        on_pause: Callable[[str], object] | None = None,
    ) -> None:
        self.listeners = list(listeners)
        self.gate = gate
        self.handler = handler
        self.batch = batch
        self.timeout = timeout
        self.on_pause = on_pause
        self._wake = Wake()

    def run(self) -> None:
        """Accepts until the gate is closed or ``stop`` is called. Several threads may run one loop."""
        acceptors = {acceptor.fd: acceptor for acceptor in self.acceptors(self.timeout)}
        ends = {self.gate.closed_fileno(), self._wake.fileno()}
        listening, waiting = _poller(ends | acceptors.keys()), _poller(ends | {self.gate.room_fileno()})
        resting = _poller(ends)
        pause = Pause(self)
        # For somebody's own handler that calls stop(): Python heeds a signal in its main thread, and one that came in the
        # instant before this waits, or to another thread, does not wake it. (A Service hears its signals in a thread.)
        patience = LOOK * 1000 if threading.current_thread() is threading.main_thread() else None
        while True:
            ready = {fd for fd, _ in listening.poll(patience)}
            if ready & ends:
                return
            for fd in ready:
                acceptor = acceptors[fd]
                self.accept(acceptor)
                if acceptor.condition == FDH_CLOSED:
                    return
                if acceptor.condition == FDH_PAUSE:
                    resting.poll(pause.longer() * 1000)
                    break
                pause.over()
                if acceptor.condition == FDH_FULL:
                    if not self.gate.want_room():
                        waiting.poll(LOOK * 1000)
                        self.gate.settle()
                    break

    async def run_async(self) -> None:
        """``run`` for asyncio. The connections are non-blocking, as its calls want them. A handler that is a coroutine
        function runs as a task; what such a task raises goes to the loop's exception handler."""
        from .accept_asyncio import Run  # late: it imports asyncio

        await Run(self).ended

    def stop(self) -> None:
        """``run`` and ``run_async`` return, and do so at once when they are called again. From any thread or signal
        handler."""
        self._wake.set()

    def stop_fileno(self) -> int:
        return self._wake.fileno()

    def close(self) -> None:
        """Gives back what the loop holds, which is not much; the listeners are the caller's."""
        self._wake.close()

    def __enter__(self) -> AcceptLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- pieces -----------------------------------------------------------------------------------------------

    def acceptors(self, timeout: float | None) -> list[Acceptor]:
        return [Acceptor(each, self.gate, batch=self.batch, timeout=timeout) for each in self.listeners]

    def accept(self, acceptor: Acceptor) -> list[object]:
        """One batch, handled; what the handler returned."""
        accepted = acceptor.accept()
        accepted.reverse()
        results = []
        try:
            while accepted:
                try:
                    while accepted:
                        results.append(self.handler(accepted[-1], acceptor.listener))
                        accepted.pop()
                except OSError as error:
                    if not _has_hung_up(accepted[-1], error):
                        raise
                    accepted.pop().close()
        except BaseException:
            for connection in accepted:
                connection.force_close()
            raise
        return results


class Pause:
    """How long to rest while descriptors or memory are short; the first time of each such spell is reported."""

    def __init__(self, loop: AcceptLoop) -> None:
        self._loop = loop
        self._seconds = 0.0

    def longer(self) -> float:
        if not self._seconds:
            self._report()
        self._seconds = min(self._seconds * 2, _PAUSE_LAST) or _PAUSE_FIRST
        return self._seconds

    def over(self) -> None:
        self._seconds = 0.0

    def _report(self) -> None:
        message = (
            "out of descriptors or memory: connections stay in the queue until some are free (see the open-files limit)"
        )
        if self._loop.on_pause is not None:
            self._loop.on_pause(message)
            return
        try:
            import logging
        except OSError:
            return  # not even a module can be read
        logging.getLogger(__package__).warning(message)


def protocol_handler(
    factory: Callable[[], asyncio.BaseProtocol], **options: Any
) -> Callable[[CountedSocket, socket.socket | int], Coroutine[Any, Any, None]]:
    """A handler for ``AcceptLoop.run_async`` that serves each connection with an asyncio protocol, as ``create_server``
    would. ``options`` go to ``loop.connect_accepted_socket`` (``ssl=…``). The transport closes the connection, which then
    leaves the gate."""

    async def handle(connection: CountedSocket, _: socket.socket | int) -> None:
        import asyncio

        await asyncio.get_running_loop().connect_accepted_socket(factory, connection, **options)

    return handle


def _has_hung_up(connection: CountedSocket, error: OSError) -> bool:
    """Whether ``error`` is the client's doing, as far as can be known of a connection that the handler has closed."""
    if error.errno not in _HUNG_UP:
        return False
    if connection.fileno() < 0:
        return True
    gone = select.poll()
    gone.register(connection, 0)  # POLLHUP and POLLERR are always told
    return bool(gone.poll(0))


def _poller(fds: Iterable[int]) -> select.poll:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller
