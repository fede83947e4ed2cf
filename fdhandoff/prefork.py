"""``PreforkWorker``: what an adapter needs of a ``Service``, in a worker process of a server whose listeners, readiness and end
are another's to decide."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from .deadline import after, passed
from .errors import HandoffError
from .gate import Gate
from .generation import Generation
from .moving import Crossing
from .service import REOPEN_SECONDS, DrainReport
from .system import environment
from .system.connections import clients_of
from .system.process import start_time
from .system.wake import Wake

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, MutableMapping, Sequence
    from typing import Any

    from .accept import AcceptLoop
    from .connection import CountedSocket
    from .control import Reply
    from .counters import Counters
    from .listener import Connection
    from .moving import Guest

_LOOK_SECONDS = 0.02  # how often a drain looks whether it is over


class PreforkWorker:
    """Has ``Service``'s methods for serving and draining, with ``listeners`` (borrowed) and a gate of its own (or ``gate``).
    ``grace``: seconds that a drain may last (``None``: for ever). ``directory``: where connections find their new owner; empty
    where they can't move. ``log``: called with each line (default: standard error)."""

    goes_back: bool = False  # as Service's

    def __init__(
        self,
        listeners: Iterable[socket.socket],
        *,
        grace: float | None,
        number: int = 1,
        directory: str = "",
        gate: Gate | None = None,
        log: Callable[[str], object] | None = None,
    ) -> None:
        self.gate = gate or Gate()
        self._own_gate = gate is None
        self.grace = grace
        self.generation = Generation(number, os.getpid(), start_time(os.getpid()))
        self.verdict = ""
        self.sent_away = False  # asked to drain by the master over all: whoever started us does not expect our end yet
        self.crossing = Crossing(directory, appoints=False)
        self._listeners = list(listeners)
        self._log = log or self._to_stderr
        self._ended = Wake()
        self._hurried = False
        self._accepting: list[AcceptLoop] = []
        self._finished_before = 0
        self._began = 0.0

    @classmethod
    def under_master(
        cls, environ: MutableMapping[str, str], listeners: Iterable[socket.socket], **options: Any
    ) -> PreforkWorker:
        """With what ``fdhandoff-cli run`` has said to the server, if it runs under that; taken out of ``environ``, so that the
        worker's own children do not take it for theirs."""
        number = environ.pop(environment.GENERATION, "")
        directory = environ.pop(environment.CONNECTIONS, "")
        return cls(listeners, number=int(number) if number.isdigit() else 1, directory=directory, **options)

    def say(self, line: str) -> None:
        self._log(line)

    @staticmethod
    def _to_stderr(line: str) -> None:
        print(f"fdhandoff[{os.getpid()}]: {line}", file=sys.stderr, flush=True)

    # --- as Service -------------------------------------------------------------------------------------------

    def receive_connections(
        self,
        take: Callable[[Iterable[Connection]], object],
        *,
        seat: Callable[[Guest], Callable[[], object]] | None = None,
    ) -> None:
        self.crossing.take = take
        self.crossing.seat = seat

    async def ready_async(self) -> None:
        """Whoever started us decides when we serve: it is now. Connections are taken over from here on."""
        try:
            self.crossing.open(self.generation.number, {"status": self._verb_status, "drain": self._verb_drain})
        except HandoffError as error:
            self.say(f"{error}; connections of an older generation drain there instead of moving here")

    def _verb_status(self, _: dict[str, Any], reply: Reply) -> None:
        reply.done(
            {"pid": os.getpid(), "state": "draining" if self.draining else "serving", "active": self.gate.active}
        )

    def _verb_drain(self, _: dict[str, Any], reply: Reply) -> None:
        """The master over all, which thereupon waits until no connection is left, and then ends the server."""
        self.sent_away = True
        self.stop()
        reply.done({"state": "draining", "pid": os.getpid()})

    async def serve_async(
        self,
        handler: Callable[[CountedSocket, Any], object],
        listeners: Iterable[socket.socket] | None = None,
        **options: Any,
    ) -> str:
        import asyncio

        from .accept import AcceptLoop as Loop

        chosen = self._listeners if listeners is None else list(listeners)
        with Loop(chosen, self.gate, handler, **options) as loop:
            self._accepting.append(loop)
            try:
                while not self.draining:
                    await loop.run_async()
                    if not self.draining:
                        await asyncio.sleep(REOPEN_SECONDS)
            finally:
                self._accepting.remove(loop)
        return self.verdict

    @property
    def draining(self) -> bool:
        return bool(self.verdict)

    @property
    def has_heir(self) -> bool:
        return self.crossing.has_heir(self.generation.number)

    def give_connections(self, connections: Sequence[Connection]) -> list[Connection]:
        return self.crossing.give(connections, self.generation.number)

    def stop(self) -> None:
        """Drain, and end. From signal handlers, too; again and again is the same as once."""
        if not self.verdict:
            self.verdict = "stop"
            self._began = time.monotonic()
            self._finished_before = self._counters.finished
            for loop in self._accepting:
                loop.stop()
            if self._own_gate:
                self.gate.close()
            self._ended.set()

    def hurry(self) -> None:
        """Drain no longer."""
        self.stop()
        self._hurried = True

    @property
    def hurried(self) -> bool:
        return self._hurried

    async def wait_async(self) -> str:
        import asyncio

        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        fd = os.dup(self._ended.fileno())
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return self.verdict

    async def drain_async(self) -> DrainReport:
        import asyncio

        deadline = after(self.grace)
        while self._counters.active and not passed(deadline) and not self._hurried:
            self.gate.settle()
            await asyncio.sleep(_LOOK_SECONDS)
        counters = self._counters
        finished = counters.finished - self._finished_before
        clients = clients_of(self._listeners, [os.getpid()]) if counters.active else []
        report = DrainReport(finished, counters.active, time.monotonic() - self._began, self.crossing.moved, clients)
        if report.forced:
            self.say(f"drained in {report.seconds:.1f}s: {report.forced} connections cut at the deadline{report.named}")
        return report

    @property
    def _counters(self) -> Counters:
        """Of this process alone."""
        if self._own_gate:
            return self.gate.counters
        return next(slot.counters for slot in self.gate.slots() if slot.pid == os.getpid())

    def close(self) -> None:
        self.crossing.close(final=False)
        self.gate.release()
        self._ended.close()
