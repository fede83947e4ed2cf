"""One stable pid in front of a program that replaces itself: which of its processes is the service now, and what became of it.

A program that upgrades itself starts a successor, and the process that a supervisor knows ends. The proxy is the subreaper of
all of them, so an orphaned successor becomes its child, and the end of every process wakes it: nothing is polled. Which process
is the *main* one now is decided when that matters (a signal is to be passed on, a main process has ended), by what can't lie:

1. the pidfile, where one was named and the process in it is alive and descends from the proxy; any other content is no answer;
2. descent: a successor executes a program of its own (workers are forked and go on with their parent's) and listens. While the
   old one lives it counts only if the old one itself has stopped listening, and the command lines agree.

What ended with an error and leaves nothing of that kind has crashed: what is left of it is ended, and its status is the
proxy's.
"""

from __future__ import annotations

import os
import signal
import time

from .deadline import after, format_duration
from .errors import HandoffError, SystemCallError
from .master.loop import Loop
from .system.connections import listen
from .system.kin import parent_of
from .system.pidfile import alive as alive_in
from .system.process import Exit, Process, command_name
from .system.processes import descendants, has_children, has_executed, reap_all, state_of, words_of, would_die_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from .master.loop import Timer

#: What ends a program: passed on to every main process, and from then on nobody is followed any more.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# How long a signal is kept for a process that would die of it, as it has no handler yet; and how often that is looked at.
HELD_SECONDS = 10.0
_LOOK_SECONDS = 0.02
# How long a process that ended is waited for in the pidfile by its successor's name, where descent tells nothing.
PATIENCE_SECONDS = 1.0
# What a crashed program left behind is told to end, and killed after this time.
LEFTOVER_SECONDS = 10.0


class Proxy:
    """``run`` it once. ``kill_after`` (seconds; ``None``: never): from the first stop signal until all that lives is killed.
    ``to_all``: signals that older main processes get, too. ``forwarded``: all signals that are passed on."""

    def __init__(
        self,
        say: Callable[[str], object],
        *,
        forwarded: Iterable[int],
        pidfile: str = "",
        kill_after: float | None = None,
        to_all: Collection[int] = (),
    ) -> None:
        self._say = say
        self._forwarded = list(forwarded)
        self._pidfile = os.path.abspath(pidfile) if pidfile else ""
        self._kill_after = kill_after
        self._to_all = frozenset({*to_all, *STOPS})
        self._loop = Loop()
        self._current: Process | None = None
        self._older: list[Process] = []
        self._guessed = False  # whether the current one was found by descent alone
        self._last = Exit()  # how the last main process ended, as far as that is known
        self._bad = Exit()  # how the one before ended, where the current one was guessed after a crash
        self._stop = 0  # the signal by which we were told to end
        self._leaving = False
        self._told: set[int] = set()
        self._remarks: set[str] = set()
        self._patience: Timer | None = None
        self._kept: list[int] = []  # signals that came while nobody was known to be the service

    def run(self, start: Callable[[], Process]) -> Exit:
        """``start()`` starts the command; returns how the last main process ended, when no descendant is left."""
        before = {number: signal.getsignal(number) for number in (*self._forwarded, signal.SIGCHLD)}
        self._loop.heed_signals()
        try:
            for number in before:
                # Shells ignore INT and QUIT for what a script starts in the background; servers hear them all the same.
                if before[number] is not signal.SIG_IGN or number in (signal.SIGCHLD, *STOPS):
                    signal.signal(number, self._heard)
            self._follow(start())
            self._loop.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            for process in self._mains():
                process.close()
            self._loop.close()
        return self._bad if self._last.status == 0 and self._bad != Exit() and not self._stop else self._last

    def _heard(self, number: int, _: object) -> None:
        self._loop.call(self._reap if number == signal.SIGCHLD else lambda: self._signalled(number))

    # --- who is it --------------------------------------------------------------------------------------------

    def _follow(self, process: Process, why: str = "") -> None:
        """It is the main process from now on."""
        if self._current is not None:
            self._older.append(self._current)
        known = next((one for one in self._older if one.pid == process.pid), None)
        if known is not None:
            self._older.remove(known)
            if process is not known:
                process.close()
            process = known
        else:
            self._loop.on_readable(process.fileno(), lambda: self._ended(process))
        self._current = process
        if why:
            self._say(f"process {_named(process.pid)} is the service now: {why}")
        kept, self._kept = self._kept, []
        for number in kept:
            self._pass_on(process, number, time.monotonic() + HELD_SECONDS)

    def _in_pidfile(self) -> Process | None:
        """The process that the pidfile names, if it lives and is one of ours."""
        if not self._pidfile:
            return None
        try:
            pid = alive_in(self._pidfile)
        except HandoffError as error:
            self._remark(str(error))
            return None
        if pid is None:
            return None
        try:
            process = Process.from_pid(pid)
        except SystemCallError:
            return None
        if _descends(pid) and (process.alive() or parent_of(pid) == os.getpid()):
            return process  # one that has ended already, too: how, is what counts then
        process.close()
        if pid != os.getpid():
            self._remark(
                f"{self._pidfile} names process {_named(pid)}, which did not come from here: it is not followed"
            )
        return None

    def _refresh(self) -> None:
        """Looks whether a successor has taken the current one's place while both live."""
        current = self._current
        if current is None or self._stop:
            return
        named = self._in_pidfile()
        if named is not None:
            if named.pid == current.pid:
                named.close()
            else:
                self._follow(named, f"{self._pidfile} names it")
            self._guessed = False
            return
        below = descendants(current.pid)
        words = _first_words(current.pid)
        heirs = [pid for pid in below if has_executed(pid) and _first_words(pid) == words]
        heirs = [pid for pid in heirs if self._listens([pid])]
        if len(heirs) == 1 and words and not self._listens([current.pid]):
            process = _open(heirs[0])
            if process is not None:
                self._follow(process, f"{_named(current.pid)} started it, and has stopped listening")
                self._guessed = True

    def _successor(self, ended: Exit) -> tuple[Process, str] | None:
        """Who goes on where a main process ended, and how we know; ``None``: nobody, as far as can be seen now."""
        named = self._in_pidfile()
        if named is not None:
            self._guessed = False
            return named, f"{self._pidfile} names it"
        self._guessed = True
        for older in reversed(self._older):
            if older.alive() and self._listens([older.pid, *descendants(older.pid)]):
                return older, "it still listens"
        children = _living_children()
        heirs = [pid for pid in children if has_executed(pid) and self._listens([pid, *descendants(pid)])]
        if ended.status == 0:
            # It left in good order. A program that puts itself into the background is its parent's continuation.
            # A successor that has ended meanwhile is one all the same: its status counts, not that of who left it in charge.
            heirs = heirs or ([] if children else [pid for pid in _children() if has_executed(pid)])
            chosen = max(heirs, key=_age_of) if heirs else min(children, key=_age_of, default=0)
        else:
            # Several are what a parent of workers leaves behind.
            chosen = heirs[0] if len(heirs) == 1 else 0
        process = _open(chosen) if chosen else None
        return None if process is None else (process, "the one before started it")

    def _listens(self, pids: Collection[int]) -> bool:
        try:
            return listen(pids)
        except HandoffError as error:
            self._remark(f"it is not known who listens ({error}): name a --pidfile")
            return False

    # --- what ends --------------------------------------------------------------------------------------------

    def _ended(self, process: Process) -> None:
        if process is not self._current and process not in self._older:
            return  # known already: a signal came first
        self._loop.forget(process.fileno())
        ended = process.wait(after(0.0)) or Exit()
        process.close()
        if process is not self._current:
            self._older.remove(process)
            self._say(f"process {process.pid}, which served before, {ended}")
            if self._last == Exit():
                self._last = ended
        else:
            self._current = None
            self._main_ended(process.pid, ended)
        self._look_round()

    def _catch_up(self) -> None:
        """Hears of the main processes that have ended since we last slept."""
        for process in self._mains():
            if not process.alive():
                self._ended(process)

    def _mains(self) -> list[Process]:
        return [*self._older, *([self._current] if self._current is not None else [])]

    def _main_ended(self, pid: int, ended: Exit) -> None:
        if ended != Exit() or self._last == Exit():
            self._last = ended
        if self._stop or self._leaving:
            return
        found = self._successor(ended)
        if found is not None:
            self._bad = Exit() if ended.status == 0 or not self._guessed else ended
            self._say(f"process {pid} {ended}")
            self._follow(*found)
        elif self._pidfile and _living_children():
            self._await_pidfile(pid, ended, time.monotonic() + PATIENCE_SECONDS)
        else:
            self._give_up(pid, ended)

    def _await_pidfile(self, pid: int, ended: Exit, until: float) -> None:
        """Something lives. Whether it is a successor, the pidfile alone can tell, and it may be about to be written."""
        self._patience = None
        if self._stop:
            return
        named = self._in_pidfile()
        if named is not None:
            self._say(f"process {pid} {ended}")
            self._follow(named, f"{self._pidfile} names it")
        elif time.monotonic() < until and _living_children():
            self._patience = self._loop.after(_LOOK_SECONDS, lambda: self._await_pidfile(pid, ended, until))
            return
        else:
            self._give_up(pid, ended)
        self._look_round()

    def _give_up(self, pid: int, ended: Exit) -> None:
        """The service is over, and nobody asked for that: what is left must not stand in the way of the next start."""
        self._leaving = True
        children = _living_children()
        rest = f"; what it left is ended: {', '.join(map(_named, children))}" if children else ""
        self._say(f"process {pid} {ended}, and has no successor{rest}")
        limit = LEFTOVER_SECONDS if self._kill_after is None else min(LEFTOVER_SECONDS, self._kill_after)
        self._loop.after(limit, lambda: self._kill_all(limit))

    def _look_round(self) -> None:
        """After every end: is anything left, and has it been told?"""
        if self._current is not None or self._patience is not None:
            return
        if not self._older and (self._stop or self._leaving):
            # An orphan, or a successor that was started in the moment of the stop.
            for pid in _living_children():
                self._tell(pid, self._stop or signal.SIGTERM)
        if not has_children():
            self._loop.stop()

    def _reap(self) -> None:
        self._catch_up()  # whose successors may be among the dead: they must not be reaped unseen
        reap_all({process.pid for process in self._mains()})
        if self._stop or self._leaving:
            self._look_round()

    def _kill_all(self, limit: float) -> None:
        """Until nothing new is found: what forks meanwhile is found in the next round."""
        living = _living_descendants()
        if living:
            self._say(f"not ended within {format_duration(limit)}, killed: {', '.join(map(_named, living))}")
        while living:
            for pid in living:
                process = _open(pid)
                if process is not None:
                    process.signal(signal.SIGKILL)
                    process.close()
            living = [pid for pid in _living_descendants() if pid not in living]

    # --- signals ----------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        self._catch_up()  # or the signal goes to nobody
        self._refresh()
        if number in STOPS and not self._stop:
            self._stop = number
            if self._kill_after is not None:
                limit = self._kill_after
                self._loop.after(limit, lambda: self._kill_all(limit))
        if self._patience is not None:
            if not self._stop:
                self._kept.append(number)
                return
            self._patience.cancel()
            self._patience = None
        if self._current is not None and not self._stop and state_of(self._current.pid) in ("Z", "X"):
            self._kept.append(
                number
            )  # its first thread has ended, and the others are about to: it is for the successor
        elif self._current is not None:
            self._pass_on(self._current, number, time.monotonic() + HELD_SECONDS)
        for process in self._older if number in self._to_all else ():
            self._pass_on(process, number, time.monotonic() + HELD_SECONDS)
        self._look_round()

    def _pass_on(self, process: Process, number: int, until: float) -> None:
        """One that the process would die of, as it has just been started, waits until it has a handler."""
        if number in STOPS or not would_die_of(process.pid, number):
            self._told.add(process.pid)
            process.signal(number)
        elif time.monotonic() < until:
            was_current = process is self._current
            self._loop.after(_LOOK_SECONDS, lambda: self._try_again(process, number, until, was_current))
        else:
            name = signal.Signals(number).name if number in set(signal.Signals) else number
            self._say(f"process {_named(process.pid)} does not handle {name} and would die of it: it was not sent")

    def _try_again(self, process: Process, number: int, until: float, was_current: bool) -> None:
        if process in self._mains():
            self._pass_on(process, number, until)
        elif was_current and self._current is not None:
            self._pass_on(self._current, number, until)  # it never got it: it is its successor's
        elif was_current:
            self._kept.append(number)

    def _tell(self, pid: int, number: int) -> None:
        if pid in self._told:
            return
        process = _open(pid)
        if process is not None:
            self._told.add(pid)
            process.signal(number)
            process.close()

    def _remark(self, sentence: str) -> None:
        """Says a thing once."""
        if sentence not in self._remarks:
            self._remarks.add(sentence)
            self._say(sentence)


def _open(pid: int) -> Process | None:
    try:
        return Process.from_pid(pid)
    except SystemCallError:
        return None


def _descends(pid: int) -> bool:
    while pid > 1:
        pid = parent_of(pid)
        if pid == os.getpid():
            return True
    return False


def _living_descendants() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if state_of(pid) not in ("", "Z", "X")]


def _living_children() -> list[int]:
    return [pid for pid in _living_descendants() if parent_of(pid) == os.getpid()]


def _children() -> list[int]:
    """Those that have ended and were not reaped included."""
    return [pid for pid in descendants(os.getpid()) if parent_of(pid) == os.getpid()]


def _age_of(pid: int) -> tuple[int, int]:
    process = _open(pid)
    if process is None:
        return 0, pid
    with process:
        return process.started, pid


def _first_words(pid: int) -> list[str]:
    """What a program and its successor have in common, wherever the new release lies: the program's name, and the script's."""
    return [os.path.basename(word) for word in words_of(pid)[:2]]


def _named(pid: int) -> str:
    name = command_name(pid)
    return f"{pid} ({name})" if name else str(pid)
