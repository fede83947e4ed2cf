"""Drain by observation: the kernel says which connections a generation still has, and it is told to stop when it has none. What
waits in the queue of one that died is given to the one that serves."""

from __future__ import annotations

import os
import selectors
import socket
import time

from ..deadline import format_duration
from ..system.environment import connections_of
from .options import SHARED
from .readiness import AGENT
from .run import DRAINING, STOPPING
from .tasks import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .master import Master
    from .outlet import Outlet
    from .run import Run

_LOOK_FIRST, _LOOK_LAST = 0.02, 0.5
# A client that has not answered in this time after the switch has gone, or was never there.
HALF_OPEN_SECONDS = 3.0
_RELAY_BYTES = 65536
RELAY = "fdhandoff-relay"
_PROBE_BYTES = 4096


async def retire(master: Master, old: Run, *, settled: bool) -> None:
    """To the end of a generation that gets no new connections: told to stop when none of its own is left or its grace period is
    over, and killed when that does not end it. One that a master before this one had begun with goes on where it was.
    ``settled``: the handshakes have been waited for that had begun when it got its last connection."""
    options = old.options
    began = time.monotonic()
    told = old.state == STOPPING  # a second signal would make some servers cut what they have
    old.restarts = False
    if not told:
        old.state = DRAINING
        if old.deadline is None:
            if options.pre_stop_delay:
                await pause(master.loop, options.pre_stop_delay)
            old.deadline = None if options.grace is None else time.monotonic() + options.grace
        master.changed()
        _ask_to_leave(master, old)
    deadline = old.deadline
    left = 0 if told else await _watched(master, old, deadline, settled=settled)
    if old.alive:
        if not told:
            old.stop()
            master.changed()
        patience: float | None = options.kill_after
        # Where a queue is shared, or there is none, only the server itself knows when it has finished.
        if not master.outlets or any(outlet.mode == SHARED for outlet in master.outlets):
            patience = None if deadline is None else max(options.kill_after, deadline - time.monotonic())
        if patience is None:
            await old.ended
        else:
            await pause(master.loop, patience, old.ended)
        if old.alive:
            master.say(f"{old} did not end within {format_duration(patience or 0)} of being told to; it is killed")
    if not old.ended.done:
        old.kill()
        await old.ended
    cut = f", {counted(left)} cut at the deadline" if left else ""
    master.say(f"{old} has drained in {format_duration(round(time.monotonic() - began, 2))}{cut}, and ended")
    master.discard(old, settled=settled)


def _ask_to_leave(master: Master, old: Run) -> None:
    """Where its connections can move to its successor's processes."""
    directory = connections_of(old.options.path) if old.options.path is not None else ""
    if os.path.isdir(directory):
        from .heirs import ask_to_leave

        ask_to_leave(master, old, directory)


async def _watched(master: Master, old: Run, deadline: float | None, *, settled: bool) -> int:
    """How many connections are left, at the end of the watch."""
    seconds = _LOOK_FIRST
    master.ears.look()
    before = _half_open(master, settled)
    patience = time.monotonic() + HALF_OPEN_SECONDS
    while old.alive:
        # In this order: what is accepted meanwhile is seen among the connections.
        if old.deaf.done:
            serve_waiting(master, old)
        waiting = sum(outlet.waiting(old.slot) or 0 for outlet in master.outlets if outlet.mode != SHARED)
        left = waiting + master.connections(old)
        if any(half_open for _, half_open in before):
            before = [(outlet, half_open & outlet.half_open()) for outlet, half_open in before if half_open]
        coming = time.monotonic() < patience and any(half_open for _, half_open in before)
        if not left and not coming:
            return 0
        if deadline is not None and time.monotonic() >= deadline:
            return left
        rest = seconds if deadline is None else min(seconds, max(0.0, deadline - time.monotonic()))
        await pause(master.loop, rest, old.ended)
        seconds = min(seconds * 2, _LOOK_LAST)
    return 0


def _half_open(master: Master, settled: bool) -> list[tuple[Outlet, frozenset[int]]]:
    """The handshakes that may yet lead to a queue that gets no new ones. To list them takes milliseconds, where the kernel's
    table of connections is large."""
    return [] if settled else [(outlet, outlet.half_open()) for outlet in master.outlets]


async def bury(master: Master, dead: Run, gone: Callable[[], object], *, settled: bool) -> None:
    """Once nobody can reach the dead generation's queues any more, and they are empty: ``gone()``."""
    before = _half_open(master, settled)
    until = time.monotonic() + HALF_OPEN_SECONDS
    dead.rescued += serve_waiting(master, dead)
    while time.monotonic() < until and any(half_open for _, half_open in before):
        await pause(master.loop, _LOOK_FIRST)
        dead.rescued += serve_waiting(master, dead)
        before = [(outlet, half_open & outlet.half_open()) for outlet, half_open in before if half_open]
    dead.rescued += serve_waiting(master, dead)
    gone()


async def serve_stranded(master: Master) -> None:
    """What waits in queues that came to us and that no generation accepts from is served by the one that we have. Nothing new
    comes there, but for handshakes that had begun."""
    orphans = master.store.orphans - {run.slot for run in master.runs}

    def waiting(outlet: Outlet) -> list[socket.socket]:
        return [*outlet.stranded(), *(client for slot in orphans for client in outlet.forsaken(slot))]

    before = [(outlet, outlet.half_open()) for outlet in master.outlets if orphans or outlet.lent_sockets()]
    until = time.monotonic() + HALF_OPEN_SECONDS
    rescued = _relay_all(master, waiting)
    while time.monotonic() < until and any(half_open for _, half_open in before):
        await pause(master.loop, _LOOK_FIRST)
        rescued += _relay_all(master, waiting)
        before = [(outlet, half_open & outlet.half_open()) for outlet, half_open in before if half_open]
    rescued += _relay_all(master, waiting)
    master.store.served()
    if rescued:
        master.say(f"{master.current} serves {counted(rescued)} that waited for somebody else, through the master")


def serve_waiting(master: Master, run: Run) -> int:
    """What waits in the queue of a generation that will never accept it is served by the one that serves: how many."""
    rescued = rescue(master, run.slot)
    if rescued:
        master.say(f"{master.current} serves {counted(rescued)} that waited for {run}, through the master")
    return rescued


def rescue(master: Master, slot: int) -> int:
    """What waits in the queue of a slot that no living generation has goes to the one that serves: how many those are."""
    return _relay_all(master, lambda outlet: outlet.forsaken(slot))


def _relay_all(master: Master, accepted: Callable[[Outlet], list[socket.socket]]) -> int:
    """Relays what was accepted, byte for byte, to the generation that serves: for it they come from this host."""
    rescued = 0
    for outlet in master.outlets:
        for client in accepted(outlet):
            try:
                if not _has_gone(client):
                    Relay(client, outlet.connect()).start()
                    rescued += 1
                    continue
            except OSError as error:
                master.say(f"a connection that waited for a dead generation is lost: {error}")
            client.close()
    return rescued


def _has_gone(client: socket.socket) -> bool:
    """Whether the client has hung up already, as our own probes have, also one that had asked its question."""
    client.setblocking(False)
    try:
        said = client.recv(_PROBE_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return not said or AGENT in said


def counted(connections: int) -> str:
    return f"{connections} connection{'s' * (connections != 1)}"


def relays() -> bool:
    """Whether connections pass through us, which end with us."""
    import threading  # late: hardly any master has one

    return any(thread.name == RELAY for thread in threading.enumerate())


class Relay:
    """Two connections as one, until both sides have said all."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._pairs = {client: server, server: client}

    def start(self) -> None:
        import threading  # late: hardly any master has ever to do this

        threading.Thread(target=self._run, name=RELAY, daemon=True).start()

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for sock in self._pairs:
                    sock.setblocking(True)
                    selector.register(sock, selectors.EVENT_READ)
                while selector.get_map():
                    for key, _ in selector.select():
                        source = key.fileobj
                        assert isinstance(source, socket.socket)
                        data = source.recv(_RELAY_BYTES)
                        if data:
                            self._pairs[source].sendall(data)
                        else:
                            selector.unregister(source)
                            self._pairs[source].shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of them has reset it: the other hears of it by the close
        finally:
            for sock in self._pairs:
                sock.close()
