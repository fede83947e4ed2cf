"""Whatever the order of entering, leaving, closing, forking and dying: the counters are those of a simple model."""

from __future__ import annotations

import os
import select
import signal
import socket

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fdhandoff.accept import accept_many
from fdhandoff.counters import Counters, CountersView
from fdhandoff.errors import GateClosed
from fdhandoff.gate import Gate


class Worker:
    """A forked process that enters and leaves on command."""

    def __init__(self, gate: Gate) -> None:
        self.inside = 0
        self.commands, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.commands.close()
            while command := theirs.recv(1):
                answer = gate.enter() if command == b"e" else gate.leave()
                theirs.send(b"1" if answer is not False else b"0")
            os._exit(0)
        theirs.close()

    def tell(self, command: bytes) -> bool:
        self.commands.send(command)
        return self.commands.recv(1) == b"1"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.commands.close()


class GateMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.view = CountersView(os.dup(self.gate.memory_fd))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.clients: list[socket.socket] = []
        self.connections: list[socket.socket] = []
        self.detached: list[int] = []
        self.worker: Worker | None = None
        self.inside = 0
        self.limit = 0
        self.closed = False
        self.queued = 0
        self.accepted = self.finished = self.forced = 0

    # --- the model --------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        theirs = self.worker.inside if self.worker is not None else 0
        return self.inside + theirs + len(self.connections) + len(self.detached)

    @property
    def room(self) -> int:
        if self.closed:
            return 0
        return max(0, self.limit - self.active) if self.limit else 1000

    # --- what may happen --------------------------------------------------------------------------------------

    @rule()
    def enter(self) -> None:
        expected = self.room > 0
        assert self.gate.enter() == expected
        self.inside += expected
        self.accepted += expected

    @precondition(lambda self: self.inside)
    @rule(forced=st.booleans())
    def leave(self, forced: bool) -> None:
        if forced:
            self.gate.leave_forced()
        else:
            self.gate.leave()
        self.inside -= 1
        self.forced += forced
        self.finished += not forced

    @rule()
    def close(self) -> None:
        self.gate.close()
        self.closed = True

    @rule()
    def reopen(self) -> None:
        self.gate.reopen()
        self.closed = False

    @rule(limit=st.integers(0, 4))
    def set_limit(self, limit: int) -> None:
        self.gate.limit = self.limit = limit

    @precondition(lambda self: len(self.clients) < 20)
    @rule()
    def connect(self) -> None:
        self.clients.append(socket.create_connection(self.listener.getsockname(), 5))
        self.queued += 1

    @rule(limit=st.integers(1, 4))
    def accept(self, limit: int) -> None:
        expected = min(limit, self.queued, self.room)
        try:
            accepted = accept_many(self.listener, self.gate, limit)
        except GateClosed:
            assert self.closed
            accepted = []
        assert len(accepted) == expected
        self.connections += accepted
        self.queued -= expected
        self.accepted += expected

    @precondition(lambda self: self.connections)
    @rule(how=st.sampled_from(["close", "force", "detach"]))
    def end_connection(self, how: str) -> None:
        connection = self.connections.pop()
        if how == "detach":
            self.detached.append(connection.detach())
            return
        if how == "close":
            connection.close()
        else:
            connection.force_close()  # type: ignore[attr-defined]
        self.finished += how == "close"
        self.forced += how == "force"

    @precondition(lambda self: self.detached)
    @rule()
    def close_detached(self) -> None:
        os.close(self.detached.pop())
        assert self.gate.settle() == 1
        self.finished += 1

    @precondition(lambda self: self.worker is None)
    @rule()
    def fork(self) -> None:
        self.worker = Worker(self.gate)

    @precondition(lambda self: self.worker is not None)
    @rule()
    def worker_enters(self) -> None:
        assert self.worker is not None
        expected = self.room > 0
        assert self.worker.tell(b"e") == expected
        self.worker.inside += expected
        self.accepted += expected

    @precondition(lambda self: self.worker is not None and self.worker.inside)
    @rule()
    def worker_leaves(self) -> None:
        assert self.worker is not None
        self.worker.tell(b"l")
        self.worker.inside -= 1
        self.finished += 1

    @precondition(lambda self: self.worker is not None)
    @rule()
    def worker_dies(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        assert self.gate.settle() == self.worker.inside
        self.forced += self.worker.inside
        self.worker = None

    # --- what always holds ------------------------------------------------------------------------------------

    @invariant()
    def counters_are_the_models(self) -> None:
        counters = self.gate.counters
        assert counters == Counters(
            accepted=self.accepted,
            finished=self.finished,
            forced=self.forced,
            active=self.active,
            detached=len(self.detached),
            refused=counters.refused,
        )
        assert counters.accepted == counters.finished + counters.forced + counters.active
        assert self.view.counters == counters

    @invariant()
    def the_descriptors_tell(self) -> None:
        ready = select.select([self.gate.fileno(), self.gate.closed_fileno()], [], [], 0)[0]
        drained = self.closed and self.active == 0
        assert ready == [self.gate.fileno()] * drained + [self.gate.closed_fileno()] * self.closed
        assert self.gate.wait(0) == drained

    def teardown(self) -> None:
        if self.worker is not None:
            self.worker.kill()
        for sock in (*self.clients, *self.connections, self.listener):
            sock.close()
        for fd in self.detached:
            os.close(fd)
        self.gate.settle()
        while self.gate.active:
            self.gate.leave()
        self.view.close()
        self.gate.release()


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
