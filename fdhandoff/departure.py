"""How the connections of a process that drains leave it, however slow whoever takes them is just now: what stayed is offered
again, for as long as there is hope that somebody takes it.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import TYPE_CHECKING

from .connection import CountedSocket
from .errors import GateClosed, HandoffError, SystemCallError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .listener import Connection
    from .prefork import PreforkWorker
    from .service import Service

# After a handoff: how long the new side may take to name itself the heir, and any heir to take one connection at least.
HEIR_SECONDS = 3.0
PATIENCE_SECONDS = 15.0
# Giving at once: while one's connections are taken in over there, another's are made ready here.
GIVERS = 3
FIRST_PAUSE = 0.05
# What a system call fails by while there is no room, which may be again.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
LAST_PAUSE = 1.0


class Departure:
    """For the connections of ``service``, which may be offered by any thread."""

    def __init__(self, service: Service | PreforkWorker) -> None:
        self._service = service
        self._began = 0.0
        self._failing_since = 0.0
        self._given_up = False
        self._complaints: set[str] = set()
        self._waiting: list[_Offer] = []
        self._lock = threading.Lock()  # for the fields
        self._giving = threading.Semaphore(GIVERS)

    @property
    def hopeful(self) -> bool:
        """Whether connections of this process, which drains, may still go on elsewhere. Where they may not, their clients are
        told."""
        if self._given_up:
            return False
        if self._service.has_heir:
            return True
        self._began = self._began or time.monotonic()
        waited = time.monotonic() - self._began
        if self._service.goes_back:
            return waited < PATIENCE_SECONDS
        return self._service.verdict == "handed over" and waited < HEIR_SECONDS

    def hindered(self, error: OSError) -> None:
        """There is no descriptor for offering one: the next try is later, when others have gone."""
        number = error.errno or errno.EMFILE
        self._complain(str(SystemCallError("dup", number, doing="moving connections")))
        with self._lock:
            self._note(0, 1)

    def _complain(self, why: str) -> None:
        """Once for each reason."""
        if why and why not in self._complaints:
            self._complaints.add(why)
            self._service.say(f"{why}; connections that can't move are served here meanwhile")

    def give(self, connections: Sequence[Connection]) -> list[Connection]:
        """Those that stay for now. Blocks, a few seconds at most; what several threads bring at once goes together."""
        offer = _Offer(connections)
        with self._lock:
            self._waiting.append(offer)
        with self._giving:
            with self._lock:
                offers: list[_Offer] = []
                if offer in self._waiting:  # nobody took it along
                    offers, self._waiting = self._waiting, []
            if offers:
                self._give(offers)
        offer.done.wait()
        return offer.staying

    def admitted(self, connections: Iterable[Connection]) -> Iterator[CountedSocket]:
        """Of those that an older generation gives: the ones that the gate lets in. Where this process drains already, they go
        on to where ours go."""
        for connection in connections:
            try:
                counted = CountedSocket(connection.target, self._service.gate)
            except GateClosed:
                self.pass_on(connection)
                continue
            yield counted

    def pass_on(self, connection: Connection) -> None:
        """One that came when this process was draining already: it goes where ours go, or its client is told by its end."""
        pauses = Pauses()
        while self.hopeful:
            if not self.give([connection]):
                connection.target.close()
                return
            time.sleep(pauses.next())
        connection.target.shutdown(socket.SHUT_WR)
        connection.target.close()

    def _give(self, offers: list[_Offer]) -> None:
        everything = [one for offer in offers for one in offer.connections]
        staying = everything
        try:
            if not self._given_up and self._service.has_heir:
                staying = self._service.give_connections(everything)
            if staying:
                self._complain(self._service.crossing.why)
        except HandoffError as error:
            if isinstance(error, SystemCallError) and error.errno in _PASSING:
                self._complain(str(error))
            else:
                # Not one that cures itself: somebody else answers over there, say.
                self._given_up = True
                self._service.say(f"{error}; connections finish here")
        finally:
            with self._lock:
                self._note(len(everything) - len(staying), len(staying))
            stays = {id(one) for one in staying}
            for offer in offers:
                offer.staying = [one for one in offer.connections if id(one) in stays]
                offer.done.set()

    def _note(self, moved: int, staying: int) -> None:
        now = time.monotonic()
        if moved or not staying:
            self._failing_since = 0.0
        elif not self._failing_since:
            self._failing_since = now
        elif now - self._failing_since >= PATIENCE_SECONDS and not self._given_up:
            self._given_up = True
            self._service.say(
                f"generation {self._service.generation.number}'s connections are not taken over: they finish here"
            )


class _Offer:
    def __init__(self, connections: Sequence[Connection]) -> None:
        self.connections = connections
        self.staying: list[Connection] = []
        self.done = threading.Event()


class Pauses:
    """How long to wait before the next try: longer each time, and short again after a success."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def next(self) -> float:
        pause, self._next = self._next, min(LAST_PAUSE, self._next * 2)
        return pause

    def reset(self) -> None:
        self._next = FIRST_PAUSE
