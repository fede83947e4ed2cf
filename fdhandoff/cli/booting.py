"""The first half of ``take``: the command starts, becomes ready, and the old side commits, or everything is undone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import time

from ..deadline import FOREVER, after, format_duration, passed
from ..errors import DeadlineExceeded
from ..system.channel import wait
from ..system.notify import Notifier
from ..system.processes import descendants
from . import command
from .hearing import STOPS
from .outcome import OWN_FAILURE, SIGNALLED, Failure, say
from .readiness import Readiness
from .statefile import write_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from ..system.process import Exit, Process
    from ..takeover import Takeover
    from .hearing import Hearing

COMMIT_SECONDS = 60.0
# How often a command is looked at where the system has no pidfds.
_LOOK_SECONDS = 0.05


class Booting:
    """``boot()`` takes it to the commit, or raises ``Failure`` (or what the old side made of it); ``close`` it in any case."""

    def __init__(self, takeover: Takeover, words: list[str], options: Namespace, hearing: Hearing) -> None:
        self.takeover = takeover
        self.words = words
        self.options = options
        self.hearing = hearing
        self.notifier = Notifier.from_environment(os.environ)
        self.sockets = takeover.listeners.items()
        self.files = list(takeover.files.items())
        self.process: Process | None = None
        self.began = time.monotonic()
        self.committed = 0.0
        self._ended: Exit | None = None
        self._held: list[int] = []  # signals for the command, until it can have handlers for them
        self._stops: list[int] = []
        self._state = b""
        way, delay = options.ready
        inodes = {f"{name} ({place})" if place else name: inode for name, inode, place in _inodes(self.sockets)}
        self.readiness = Readiness(way, delay, inodes, self.notifier.status)

    def boot(self) -> None:
        old = self.takeover.peer
        if self.takeover.connections:
            raise Failure(
                f"{old} offers {len(self.takeover.connections)} established connections, which no command can be given; "
                "it serves on",
                OWN_FAILURE,
            )
        self._keep_state()
        self._start()
        self._await_readiness()
        self._commit()
        self.committed = time.monotonic()
        self._keep_state(again=True)

    def close(self) -> None:
        """The command first: it must not accept when somebody else is the owner, and what it accepted it may finish."""
        if not self.committed:
            self.takeover.abort("the command was given up")
        if self.process is not None:
            if self._ended is None:
                command.finish(self.process, self.options.drain_signal, self.options.grace)
            command.sweep(self.process, self.options.grace)
            self.process.close()
        self.readiness.close()

    def _start(self) -> None:
        items = [(name, sock.fileno()) for name, sock in self.sockets] + self.files
        number = self.takeover.generation.number
        try:
            self.process = command.start(self.words, items, number, self.readiness.address)
        except ValueError as error:
            raise Failure(f"the command can't be started: {error}", OWN_FAILURE) from None
        self.readiness.begin()

    def _await_readiness(self) -> None:
        """Returns when the command is ready, or the old side has had its last word."""
        assert self.process is not None
        deadline = after(self.options.ready_timeout)
        while not self.readiness.check(self.process.pid):
            self._wait(min(deadline, after(self.readiness.patience())), self.takeover.fileno())
            self._obey()
            if self._ended is not None or self._stops:
                self._give_up()
            if _readable(self.takeover.fileno()):
                return  # it gave up, or died: asking for the commit tells which
            if passed(deadline):
                why = self.readiness.why_not()
                limit = format_duration(self.options.ready_timeout)
                self.takeover.abort(f"the command {why} within {limit}")
                raise Failure(
                    f"the command {why} within {limit}{self._hint()}; {self.takeover.peer} serves on", OWN_FAILURE
                )

    def _commit(self) -> None:
        """Asks for the commit, in a thread: the command may end, and a stop may come, while the old side makes up its mind."""
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                self.takeover.ready(COMMIT_SECONDS)
            except BaseException as error:
                outcome.append(error)
            else:
                outcome.append(None)
            self.hearing.wake()

        thread = threading.Thread(target=work, name="fdhandoff-ready", daemon=True)
        thread.start()
        while not outcome:
            self._wait(FOREVER)
            self._obey()
            if self._ended is not None or self._stops:
                self._give_up()
        thread.join()
        if outcome[0] is not None:
            raise outcome[0]

    def _give_up(self) -> None:
        """The command ended, or we are to stop, before the service was ours."""
        assert self.process is not None
        old = self.takeover.peer
        if self._ended is not None:
            self.takeover.abort(f"the command {self._ended}")
            raise Failure(
                f"the command {self._ended} before the service was ours{self._hint()}; {old} serves on",
                command.code_of(self._ended) or OWN_FAILURE,
            )
        number = self._stops[0]
        self.takeover.abort(f"stopped by signal {number}")
        self._ended = command.finish(self.process, number, self.options.grace)
        raise Failure(
            f"stopped by signal {number} before the service was ours; {old} serves on",
            command.code_of(self._ended) or SIGNALLED + number,
        )

    def _hint(self) -> str:
        """A wrapper that forks is the usual reason for listeners that nobody finds."""
        assert self.process is not None
        others = descendants(self.process.pid) if self._ended is None and sys.platform == "linux" else []
        if not others:
            return ""
        return (
            f" (it started process {others[0]}, which does not find the listeners by LISTEN_PID, the number of its parent: "
            "let it exec, or use {fd:NAME})"
        )

    # --- what comes -----------------------------------------------------------------------------------------

    def _wait(self, deadline: int, *more: int) -> None:
        assert self.process is not None
        fds = [self.hearing.fileno(), self.readiness.fileno(), *more]
        if self._ended is None:
            fds.append(self.process.pidfd)
            if self.process.pidfd < 0:
                deadline = min(deadline, after(_LOOK_SECONDS))
        try:
            wait([fd for fd in fds if fd >= 0], (), deadline)
        except DeadlineExceeded:
            pass

    def _obey(self) -> None:
        """Sorts the signals that came, and notices the command's end."""
        assert self.process is not None
        for number in self.hearing.take():
            (self._stops if number in STOPS else self._held).append(number)
        if self._ended is None:
            self._ended = self.process.wait(0)

    # --- what goes ------------------------------------------------------------------------------------------

    def _keep_state(self, *, again: bool = False) -> None:
        """The state that came: the offered one before the command starts, the final one if that is another."""
        state, file = self.takeover.state, self.options.state_out
        if file is None:
            if state and not again:
                self._tell(
                    "state",
                    f"{len(state)} bytes of state came along, which the command can't be given: --state-out FILE keeps them",
                )
        elif not again or state != self._state:
            try:
                write_state(file, state)
            except OSError as error:
                sentence = f"the state could not be written to {file}: {error.strerror}"
                if not again:
                    raise Failure(f"{sentence}; {self.takeover.peer} serves on", OWN_FAILURE) from None
                self._tell("state", sentence)
        self._state = state

    def _tell(self, event: str, sentence: str, **facts: Any) -> None:
        """What happened, on standard error: standard output is the command's."""
        if not self.options.json:
            say(sentence)
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(json.dumps({"schema": 1, "event": event, "message": sentence, **facts}) + "\n")
            sys.stderr.flush()


def _inodes(sockets: list[tuple[str, Any]]) -> list[tuple[str, int, int]]:
    """Name, inode, and which of several with that name (0 for the first)."""
    names = [name for name, _ in sockets]
    return [
        (name, os.fstat(sock.fileno()).st_ino, names[:place].count(name)) for place, (name, sock) in enumerate(sockets)
    ]


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
