"""One generation under the master: its processes, how they are started, and what became of them."""

from __future__ import annotations

import os
import signal
import time

from ..deadline import after
from ..errors import SystemCallError
from ..system import environment
from ..system.access import find_account
from ..system.fds import describe
from ..system.process import Exit, Identity, Process, spawn
from . import conventions
from .options import assignments, read_env_file
from .splitting import split_words
from .tasks import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import Any

    from .loop import Loop, Timer
    from .options import Options
    from .output import Output

STARTING = "starting"
CANARY = "canary"
SERVING = "serving"
PROBATION = "probation"
DRAINING = "draining"
STOPPING = "stopping"
ENDED = "ended"

_PLACEHOLDER = "{fd:"
# A worker that lived shorter than this is restarted later and later.
STABLE_SECONDS = 10.0
BACKOFF_FIRST, BACKOFF_LAST = 0.1, 10.0


class Run:
    """Generation ``number``: ``options`` as they were when it started, ``sockets`` (name and socket) that it is given.

    ``died`` is known when a process ends that was not asked to, before the generation was told to stop: its value says how.
    ``ended`` is known when the last process is gone.
    """

    def __init__(
        self,
        loop: Loop,
        number: int,
        slot: int,
        options: Options,
        sockets: Sequence[tuple[str, socket.socket]],
        say: Callable[[str], object],
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        """``on_change`` is called when a process was started or has ended."""
        self._on_change = on_change
        self.number = number
        self.slot = slot
        self.options = options
        self.state = STARTING
        self.since = time.time()
        self.share = 0.0
        self.counted: set[int] = set()  # where its processes count, by inode, if they do
        self.accepted: int | None = None  # as of the last look there
        self.release = ""  # what it is called, where anybody said
        self.accepted_before = 0
        self.deadline: float | None = None
        self.seen: tuple[int, float] | None = None  # its connections when they were last counted, and when that was
        self.rescued = 0  # of those that waited for it when it died
        self.processes: list[Process] = []
        self.exit: Exit | None = None
        self.died: Future[str] = Future()
        self.ended: Future[Exit] = Future()
        self.deaf: Future[str] = Future()  # known once it shut a listener down, as what it did
        self.restarts = False  # whether a dead process is replaced: once the generation serves
        self._loop = loop
        self.sockets = list(sockets)
        self._say = say
        self._born: dict[int, float] = {}
        self._backoff = BACKOFF_FIRST
        self.workers = options.workers
        self._leaving: set[int] = set()
        self._ends: dict[int, Future[str]] = {}  # of single processes, by pid, for whom somebody waits
        self._pending: list[Timer] = []
        self._notify_address = ""
        self.output: Output | None = None  # ``None``: it writes where we do

    def __str__(self) -> str:
        return f"generation {self.number}"

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    @property
    def binds_itself(self) -> bool:
        """Whether it is passed no listener, because it binds the addresses itself."""
        return conventions.REUSEPORT in self.options.conventions

    @property
    def passed(self) -> list[tuple[str, socket.socket]]:
        """What its processes find from descriptor 3 on."""
        return [] if self.binds_itself else self.sockets

    @property
    def leaving(self) -> list[int]:
        """Those of its processes that were told to end while the generation goes on."""
        return sorted(self._leaving)

    @property
    def staying(self) -> list[Process]:
        """The others, in the order in which they were started."""
        return [process for process in self.processes if process.pid not in self._leaving]

    @property
    def alive(self) -> bool:
        return bool(self.processes)

    def time_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    # --- starting -------------------------------------------------------------------------------------------

    def environ(self) -> dict[str, str]:
        """The environment, made afresh: ours, the file's, the command line's, and what is meant for this generation alone."""
        environ = dict(os.environ)
        environment.strip(environ)
        account = find_account(self.options.user, self.options.group)
        if account is not None:
            environ.update(account.environ)
        if self.options.env_file:
            environ.update(read_env_file(self.options.env_file))
        conventions.strip(environ)
        environ.update(assignments(self.options.env))
        if self.passed:
            environ.update(environment.compose([name for name, _ in self.passed]))
        environ.update(conventions.variables(self.options.conventions, self._addresses(), self.number))
        if self.passed:
            for name, value in self.options.defused.items():
                environ.setdefault(name, value)
        environ[environment.GENERATION] = str(self.number)
        if self.options.path is not None:
            environ[environment.CONNECTIONS] = environment.connections_of(self.options.path)
        if self.options.directory:
            environ["PWD"] = self.options.directory
        if self._notify_address:
            environ["NOTIFY_SOCKET"] = self._notify_address
        return environ

    def has_instead(self, old: socket.socket, new: socket.socket) -> None:
        """Its processes to come get another socket."""
        self.sockets = [(name, new if sock is old else sock) for name, sock in self.sockets]
        self._on_change()

    def surroundings(self) -> dict[str, Any]:
        """What ``spawn`` is to make of each process of the generation: whom, with what, and where."""
        options = self.options
        account = find_account(options.user, options.group)
        return {
            "cwd": options.directory or None,
            "identity": None if account is None else Identity(account.uid, account.gid, account.groups),
            "limits": {limit.resource: (limit.soft, limit.hard) for limit in options.limits},
            "root": options.chroot,
            "umask": options.umask,
            "no_new_privileges": options.no_new_privileges,
        }

    def start(self, notify_address: str = "") -> None:
        """Starts every process. ``SystemCallError`` when the command can't be started; then none is left."""
        self._notify_address = notify_address
        for _ in range(self.workers):
            self._start_one()

    def _start_one(self) -> None:
        table = {0: 0, 1: 1, 2: 2} if self.output is None else {0: 0, **self.output.streams()}
        table.update({environment.FIRST_FD + i: sock.fileno() for i, (_, sock) in enumerate(self.passed)})
        process = spawn(
            self.command(),
            fds=table,
            env=self.environ(),
            **self.surroundings(),
            own_group=1,
            # Of the thread that called, and that is the loop's: it lives as long as the master, also over an exec in place.
            death_signal=getattr(signal, self.options.death_signal) if self.options.death_signal else 0,
        )
        self.adopt(process)
        self._on_change()

    def adopt(self, process: Process, *, leaving: bool = False) -> None:
        """A process that another master started, and may have told to end. It need not be our child: then how it ends is not
        known, only that."""
        self.processes.append(process)
        if leaving:
            self._leaving.add(process.pid)
        self._born[process.pid] = time.monotonic()
        self._loop.on_readable(process.fileno(), lambda: self._process_ended(process))

    def _addresses(self) -> list[str]:
        # Of a generation that has failed they are closed by the time when a command is told of it.
        fds = [sock.fileno() for _, sock in self.passed]
        descriptions = [describe(fd) if fd >= 0 else None for fd in fds]
        addresses = [what.address if what is not None else "" for what in descriptions]
        # Under the rename switch the socket has a name of its own beside the public one.
        return [text.removesuffix(f".{self.slot}") if text.startswith("unix:/") else text for text in addresses]

    def command(self) -> list[str]:
        """The command, ``{fd:NAME}`` replaced by the number that the listener has in the child."""
        numbers = {name: environment.FIRST_FD + i for i, (name, _) in reversed(list(enumerate(self.passed)))}

        def replaced(word: str) -> str:
            text, *parts = word.split(_PLACEHOLDER)
            for part in parts:
                name, closed, rest = part.partition("}")
                if not closed or not name or "{" in name or ":" in name:
                    text += f"{_PLACEHOLDER}{part}"  # it only looks like one
                elif name not in numbers:
                    listeners = ", ".join(numbers) or "none"
                    raise ValueError(f"the command names {_PLACEHOLDER}{name}}}, but the listeners are {listeners}")
                else:
                    text += f"{numbers[name]}{rest}"
            return text

        return [replaced(word) for word in self.options.command]

    # --- ending ---------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.signal(number)

    def stop(self) -> None:
        """Asks every process to finish and end."""
        self.state = STOPPING
        self.restarts = False
        self._cancel_restarts()
        for process in self.staying:  # the others were told already, and may take a second time for a hurry
            process.signal(getattr(signal, self.options.stop_signal))

    def kill(self) -> None:
        """Ends every process, and whatever it left in its group."""
        self.state = STOPPING
        self.restarts = False
        self._cancel_restarts()
        for process in list(self.processes):
            kill_group(process)

    def _cancel_restarts(self) -> None:
        for timer in self._pending:
            timer.cancel()
        self._pending = []
        if not self.processes:
            self._finish()

    def _process_ended(self, process: Process) -> None:
        self._loop.forget(process.fileno())
        # Children that a dead server left behind would hold its listeners open. Before the reaping, which frees the number.
        kill_group(process)
        ended = process.wait(after(1.0)) or Exit()
        self.processes.remove(process)
        process.close()
        self.exit = ended
        asked = self.state == STOPPING or process.pid in self._leaving
        self._leaving.discard(process.pid)
        if not asked:
            self._say(f"{self} (pid {process.pid}) {ended}")
            self.died.set(f"pid {process.pid} {ended}")
        if process.pid in self._ends:
            self._ends.pop(process.pid).set(f"pid {process.pid} {ended}")
        if self.restarts and not asked:
            self._restart_later(self._born.pop(process.pid))
        elif not self.processes:
            self._finish()
        self._on_change()

    def add_worker(self) -> None:
        """One more joins, as soon as it is started."""
        if self.binds_itself:
            raise ValueError(f"{self} binds its addresses itself, and each worker would have a queue of its own")
        self._start_one()
        self.workers += 1

    def remove_worker(self) -> Process:
        """The youngest is told to finish and end. The last one stays."""
        if self.workers <= 1 or len(self.staying) <= 1:
            raise ValueError(f"{self} has one worker only")
        self.workers -= 1
        return self.dismiss(self.staying[-1])

    def dismiss(self, process: Process, number: int = 0) -> Process:
        """Tells one of the processes to end, by signal ``number`` instead of the configured one; it is not replaced."""
        self._leaving.add(process.pid)
        process.signal(number or getattr(signal, self.options.stop_signal))
        return process

    def start_another(self, notify_address: str = "") -> Process:
        """One more than there shall be, for a while."""
        self._notify_address = notify_address
        try:
            self._start_one()
        finally:
            self._notify_address = ""
        return self.processes[-1]

    def end_of(self, process: Process) -> Future[str]:
        """Known when this process has ended: how."""
        if process not in self.processes:
            over: Future[str] = Future()
            over.set("ended")
            return over
        return self._ends.setdefault(process.pid, Future())

    def watch_over(self) -> None:
        """The generation serves: from here on a process that dies is replaced, also one that died just now."""
        self.restarts = True
        self._notify_address = ""  # nobody listens there any more
        for _ in range(self.workers - len(self.processes) + len(self._leaving)):
            self._restart_later(time.monotonic())

    def _restart_later(self, born: float) -> None:
        if self.binds_itself:
            # Another process would have another listener: that is another generation, which gets what waits for this one.
            self.deaf.set("died, and with it whoever accepted what it had bound itself")
            return
        if time.monotonic() - born >= STABLE_SECONDS:
            self._backoff = BACKOFF_FIRST
        delay, self._backoff = self._backoff, min(self._backoff * 2, BACKOFF_LAST)

        def restart() -> None:
            if not self.restarts or len(self.processes) - len(self._leaving) >= self.workers:
                return
            try:
                self._start_one()
            except (SystemCallError, ValueError) as error:
                self._say(f"{self} could not be restarted: {error}")
                self._restart_later(time.monotonic())
            else:
                self._say(f"{self} was restarted (pid {self.processes[-1].pid})")

        self._pending = [timer for timer in self._pending if timer.pending]
        self._pending.append(self._loop.after(delay, restart))

    def _finish(self) -> None:
        self.state = ENDED
        if self.output is not None:
            self.output.finish()
        self.ended.set(self.exit or Exit())


def kill_group(process: Process) -> None:
    """The process leads a group of its own, so its pid is the group's number until it is reaped and the last member gone."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def split_command(text: str) -> list[str]:
    """A command in one option, split as a shell splits words; no shell runs it."""
    words = split_words(text)
    if not words:
        raise ValueError("the command is empty")
    return words
