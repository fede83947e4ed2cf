"""``Service``: one program's whole life as a generation. It inherits, takes over or binds; says ready; hands over when asked;
drains; ends.

A worker owns what happens: signals, takers, upgrade and stop requests reach it as jobs, one after the other. Only two
things act across: the upgrader's ``interrupt`` ends a handoff that is under way, ``hurry`` ends a drain.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

from . import background, registry
from .deadline import FOREVER, after, format_duration, passed
from .errors import (
    NEW,
    OLD,
    Aborted,
    DeadlineExceeded,
    EnvironmentInvalid,
    HandoffError,
    InProgress,
    ListenerError,
    PathInUse,
    Unsupported,
    UpgradeError,
    Vetoed,
)
from .gate import Gate
from .generation import Generation
from .holdings import Files, Holdings, fileno
from .hooks import Hooks
from .incarnation import Interim
from .ledger import Ledger
from .listener import Listeners, check_name
from .moving import Crossing
from .service_verbs import Verbs, status
from .signals import DEFAULT, STOP, UPGRADE, Signals, StopRequests
from .successor import BLOCKED, own_command, start_directory
from .system import environment
from .system.channel import Woken, wait
from .system.fds import describe
from .system.memory import COUNTERS_MODE
from .system.notify import NOTIFY_SOCKET, WATCHDOG_USEC, Notifier
from .system.paths import default_path
from .system.pidfile import Pidfile
from .system.process import start_time
from .system.sockets import parse_bind
from .system.wake import Wake
from .takeover import Takeover, take
from .upgrade import Upgrader
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from .connection import CountedSocket
    from .control import Endpoint
    from .handoff import Handed
    from .hooks import Hook
    from .incarnation import Incarnation
    from .listener import Connection
    from .moving import Guest
    from .service_health import ServiceHealth

STARTING = "starting"
SERVING = "serving"
UPGRADING = "upgrading"
PROBATION = "probation"
DRAINING = "draining"
STOPPED = "stopped"

REPORT_SECONDS = 1.0
_NAMED = 10  # of those that were cut
# How often who drains looks for connections of a server that accepts by itself.
OBSERVE_SECONDS = 0.1
# How often who serves looks whether a closed gate was opened again: that is, after a rollback.
REOPEN_SECONDS = 0.05


class DrainReport:
    """How a drain ended: ``finished`` left by themselves since it began, ``moved`` of them for the generation that serves;
    ``forced`` were still inside, after ``seconds``: ``clients`` are the addresses of those, of as many as are known (TCP)."""

    __slots__ = ("clients", "finished", "forced", "moved", "seconds")

    def __init__(self, finished: int, forced: int, seconds: float, moved: int = 0, clients: Sequence[str] = ()) -> None:
        self.clients = list(clients)
        self.finished = finished
        self.forced = forced
        self.seconds = seconds
        self.moved = moved

    @property
    def named(self) -> str:
        """The first of the clients that were cut, in parentheses; empty where none is known."""
        if not self.clients:
            return ""
        more = len(self.clients) - _NAMED
        return f" ({', '.join(self.clients[:_NAMED])}{f' and {more} more' if more > 0 else ''})"

    def __str__(self) -> str:
        return f"{self.moved} connections moved on, {self.finished - self.moved} ended here"

    def __repr__(self) -> str:
        return f"DrainReport(finished={self.finished}, forced={self.forced}, seconds={self.seconds:.3f}, moved={self.moved})"


class GuessedName(str):
    """A service's name that nobody gave it, made of the program's: another program may have the same one."""

    __slots__ = ()


class Service:
    """A generation of the service ``name``.

    ``path``: the handoff path (default: ``NAME/handoff.sock`` in the runtime directory; ``None``: no path, and no upgrades).
    ``command``: what ``upgrade()`` starts (default: this program as it was started, looked up afresh). ``grace``: seconds that
    a drain may last (``None``: for ever). ``probation``: seconds after a handover in which this process takes the service back
    if the new one dies. ``ready_timeout``: seconds for the new one to become ready; ``takeover_timeout``: for us to get the
    service from a live owner. ``same_pid``: after an upgrade this very process goes on, as a generation of the new code: it
    drains, and then ``close()`` executes the command in its place and does not return. ``pidfile``: a path. ``signals``:
    signal name → ``upgrade``, ``stop`` or ``hooks``; ``{}`` installs none; the wakeup descriptor of the process
    (``signal.set_wakeup_fd``) is the service's with them. ``health``: an address, as for ``listen``, where
    ``/ready`` answers 200 while the service is to get traffic, else 503, and ``/live`` 200 (default: ``$FDHANDOFF_HEALTH``);
    ``health_file``: a file that is there while ``/ready`` would be 200 (default: ``$FDHANDOFF_HEALTH_FILE``).
    ``pre_stop_delay``: seconds between that turning false and the drain, in which connections are still accepted. ``log``:
    called with each line (default: standard error). ``on_event``: called with each step as a record, in whatever thread it
    happens: see docs/reference/events.md.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str | os.PathLike[str] | None = "",
        command: Sequence[str] | None = None,
        grace: float | None = 30.0,
        probation: float = 5.0,
        ready_timeout: float = 60.0,
        takeover_timeout: float = 60.0,
        pidfile: str | os.PathLike[str] | None = None,
        signals: Mapping[str, str] = DEFAULT,
        allow_uids: Iterable[int] = (),
        socket_mode: int = 0o600,
        socket_group: int | str | None = None,
        limit: int = 0,
        same_pid: bool = False,
        health: str = "",
        health_file: str | os.PathLike[str] = "",
        pre_stop_delay: float = 0.0,
        log: Callable[[str], object] | None = None,
        on_event: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.name = check_name(name)
        self._is_guessed = isinstance(name, GuessedName) and not path
        self.command = list(command) if command is not None else own_command()
        self.directory = start_directory()
        self.grace = grace
        self.probation = probation
        self.ready_timeout = ready_timeout
        self.takeover_timeout = takeover_timeout
        self.allow_uids = frozenset(allow_uids)
        self.socket_mode = socket_mode
        self.socket_group = socket_group
        self.same_pid = same_pid
        self.pre_stop_delay = pre_stop_delay
        self.incarnation: Incarnation | None = None
        self.gate = Gate(limit=limit)
        if self.gate.memory_fd >= 0:
            os.fchmod(self.gate.memory_fd, COUNTERS_MODE)
        self.ledger = Ledger(self.gate.memory_fd)
        self.hooks = Hooks()
        self.state_word = STARTING
        self.state = b""
        self.generation = Generation(1, os.getpid(), start_time(os.getpid()))
        self.orphaned = False
        self.verdict: str = ""
        self._log = log or self._to_stderr
        self._on_event = on_event
        self._observed: Callable[[], int] | None = None
        self._when_draining: list[Callable[[], object]] = []
        self._state_hook: Callable[[], bytes] | None = None
        self.since = time.time()
        self._lock = threading.Lock()
        self._giving_back = threading.Lock()
        self._hurry, self._ended = Wake(), Wake()
        self._stops = StopRequests()
        self.owner = False
        self._closed = False
        self._verbs = Verbs(self)
        self.once_served: Callable[[], None] | None = None  # for an operator who waits no longer than that
        self._is_child = False  # after a fork: a worker's copy
        self.endpoint: Endpoint | None = None
        self.takeover: Takeover | None = None
        self.inherited = False  # listeners came by the environment: whoever started us chose them
        self.holdings = Holdings()
        self._health: ServiceHealth | None = None
        self._leaving = False  # a stop was asked for: whoever asks for the service's health is told so already
        self._pidfile = Pidfile(pidfile) if pidfile is not None else None
        self.goes_back = False  # it ends in its probation: the generation before serves again, and takes connections
        self._drain_began = 0.0
        self._finished_before = 0

        self._was_started_by_us = environment.GENERATION in os.environ
        number = _number(os.environ.pop(environment.GENERATION, ""))
        named = os.environ.pop(environment.PATH, "")
        mastered = os.environ.pop(environment.CONNECTIONS, None)
        self.crossing = Crossing("", appoints=False)
        self._interim = Interim.from_environment(os.environ)
        kept = (NOTIFY_SOCKET, WATCHDOG_USEC, environment.HEALTH, environment.HEALTH_FILE)
        self.for_successor = {key: os.environ[key] for key in kept if key in os.environ}
        health = health or os.environ.pop(environment.HEALTH, "")
        health_file = os.fspath(health_file) or os.environ.pop(environment.HEALTH_FILE, "")
        self.notifier = Notifier.from_environment(os.environ)
        self.signals = Signals(signals, self._on_signal)
        self.upgrader = Upgrader(self)
        self.worker = Worker()
        try:
            # A master above us answers for all of its generations, and says which of them serves.
            self.path = self._choose_path(path, named) if mastered is None else None
            self.signals.install()
            self._acquire(number)
            self._open_health(health, health_file, mastered is not None)
            place = (
                mastered
                if mastered is not None
                else environment.connections_of(self.path)
                if self.path is not None
                else ""
            )
            self.crossing = Crossing(place, appoints=mastered is None)
        except BaseException:
            self.close()
            raise
        _services.append(self)

    # --- the beginning --------------------------------------------------------------------------------------

    def _choose_path(self, path: str | os.PathLike[str] | None, named: str) -> str | None:
        if path is None:
            return None
        # Whoever started us waits at the path that it named, whatever this release would choose.
        first, second = (named, os.fspath(path)) if self._was_started_by_us else (os.fspath(path), named)
        return os.path.abspath(first or second or default_path(self.name, os.environ))

    def _acquire(self, number: int) -> None:
        """Inherit from the environment, else take over from a live owner, else become the one who binds."""
        inherited = self.inherited = self._inherit()
        self._renumber(max(number, 1))
        if self.path is None:
            return
        while True:
            if not inherited:
                self.takeover = self._take(number)
                if self.takeover is not None:
                    self.holdings.arrive(self.takeover.listeners, self.takeover.health)
                    self.ledger.begin(self.takeover.counted, self.takeover.counters_fd)
                    self.takeover.health, self.takeover.counted = [], {}
                    self.holdings.files = Files(self.takeover.files)
                    self.state = self.takeover.state
                    self._renumber(self.takeover.generation.number)
                    return
            try:
                self.endpoint = registry.obtain(self.path, mode=self.socket_mode, group=self.socket_group)
            except PathInUse as error:
                if inherited:
                    self.say(f"{error}; this process can't be upgraded through it")
                    self.path = None
                    return
                continue  # somebody was quicker: it has the service, and we take it from there
            self.endpoint.generation = self.generation.number
            return

    def _inherit(self) -> bool:
        inherited = environment.take_sockets(os.environ, os.getpid())
        self.holdings.arrive(Listeners([name for name, _ in inherited], [sock for _, sock in inherited]), [])
        return bool(self.holdings.came)

    def _take(self, number: int) -> Takeover | None:
        """From a live owner, waiting until it can; ``None`` where there is none, also because it died meanwhile."""
        assert self.path is not None
        try:
            return take(
                self.path,
                timeout=self.takeover_timeout,
                allow_uids=self.allow_uids,
                generation=number,
                absent_ok=True,
                whole=True,
                wake_fd=self.upgrader.interrupt.fileno(),
            )
        except Woken:
            raise Aborted("a stop was asked for before this process had begun to take over", serving=OLD) from None

    def _renumber(self, number: int) -> None:
        self.generation = Generation(number, self.generation.pid, self.generation.started)

    def _open_health(self, address: str, path: str, mastered: bool) -> None:
        if mastered or not (address or path):
            if address or path:
                self.say("the master answers for the service's health, if it is told to: run --health, --health-file")
            return
        from .service_health import ServiceHealth  # late: most services have none

        if address:
            self.holdings.listen_for_health(parse_bind(address))
        self._health = ServiceHealth(self, path)
        if self.takeover is None:
            self._health.clear()
            for text in self._health.addresses:
                self.say(f"answering for the service's health on {text}")
        self._health.changed()

    @property
    def wants_traffic(self) -> bool:
        """Whether the service, this generation or the one that took over from it, answers new connections and is to get
        them: false from the first moment of a stop, and so while connections are still accepted."""
        if self._leaving:
            return False
        if self.goes_back and self.owner:
            return True  # until it is the other generation's to say
        return self.state_word in (SERVING, UPGRADING, PROBATION) or self.verdict == "handed over"

    @property
    def answers_for_health(self) -> bool:
        """Whether it is this process that says so to whoever asks."""
        if self.state_word == STARTING:
            return self.takeover is None
        return self.owner and self.state_word != PROBATION

    def listen(self, name: str, address: str) -> socket.socket:
        """The listener ``name``: the one that came, if it has this address, else bound now. ``address`` as in the CLI's
        ``--bind`` (``127.0.0.1:8000``, ``[::]:80``, ``udp:…``, ``unix:/run/x.sock``). ``ListenerError`` where the address
        stands for several sockets: those want ``listen_all``."""
        found = self.listen_all(name, address)
        if len(found) != 1:
            raise ListenerError(f"{address!r} stands for {len(found)} sockets: use listen_all()")
        return found[0]

    def listen_all(self, name: str, address: str) -> list[socket.socket]:
        """Every socket that ``address`` stands for; see ``listen``."""
        sockets = self.holdings.listen(
            check_name(name), parse_bind(address), may_bind=self.state_word == STARTING and not self._is_child
        )
        if not sockets:
            raise UpgradeError(f"{name!r} can't be bound after ready()", serving=OLD)
        return sockets

    @property
    def listeners(self) -> Listeners:
        """What was inherited or taken over; taking one out of it keeps it."""
        return self.holdings.came

    @property
    def files(self) -> Files:
        """The files that were taken over, as descriptors by name; taking one out keeps it."""
        return self.holdings.files

    def adopt(self, name: str, thing: Any) -> None:
        """Hands ``thing`` on, too: a bound socket, whoever bound it, as a listener; any other file (a pipe, a memfd, a log),
        or a descriptor of one, as a file. It is the service's from here on, which closes it at its end."""
        self.holdings.adopt(name, thing)

    # --- hooks ----------------------------------------------------------------------------------------------

    def before(self, step: str, hook: Hook | None = None) -> Any:
        """Registers a hook (also as a decorator) before a step (``ready``, ``upgrade``, ``offer``, ``commit``, ``rollback``,
        ``drain``, ``stop``) or a signal (``SIGHUP``). It may veto by raising."""
        return self._hook("before", step, hook)

    def after(self, step: str, hook: Hook | None = None) -> Any:
        return self._hook("after", step, hook)

    def _hook(self, when: str, step: str, hook: Hook | None) -> Any:
        if hook is not None:
            return self.hooks.add(when, step, hook)
        return lambda function: self.hooks.add(when, step, function)

    def on_state(self, function: Callable[[], bytes]) -> Callable[[], bytes]:
        """Registers what makes the state for the next generation; asked for when it is offered and again at the commit.
        Usable as a decorator."""
        self._state_hook = function
        return function

    # --- ready ----------------------------------------------------------------------------------------------

    def ready(self, timeout: float | None = 60.0) -> None:
        """Says that this process can serve; returns when it is the owner. Accept from here on, not before.

        Inherited listeners that nobody asked for are closed, the pidfile is written, the service manager is told, signals
        that were held back since the exec come in. Raises as ``Takeover.ready`` does.
        """
        if self.state_word != STARTING:
            raise UpgradeError(f"ready() was said already; the service is {self.state_word}", serving=NEW)
        self.hooks.before("ready")
        if self._stops.pending and self.wait(0):
            raise Aborted("a stop was asked for before this process was ready", serving=OLD)
        self._is_the_same()
        if self._pidfile is not None and self.takeover is None:
            self._pidfile.claim()
        if self.takeover is not None and self.path is not None:
            self.takeover.ready(timeout)
            self.state = self.takeover.state
            self.orphaned = self.takeover.orphaned
            self.endpoint = registry.find(self.path)
            if self._pidfile is not None:
                self._pidfile.take_over()
        self.holdings.settle()
        if self.takeover is not None:
            # Ours to close from here on, whatever becomes of the conversation.
            self.takeover.listeners, self.takeover.files = Listeners((), ()), {}
            self.ledger.past["upgrades"] += 1
        self.owner = True
        self.become(SERVING)
        if self.endpoint is not None:
            self.endpoint.generation = self.generation.number
            self.endpoint.verbs.update(self._verbs.all())
            self.endpoint.begin_offer(self.upgrader.greet, self.allow_uids)
        self._open_crossing()
        self.tell(lambda manager: manager.ready(f"generation {self.generation.number} serves"))
        self.unblock_signals()
        if self._interim is not None:
            self._interim.see_off()
        took = f", taken over from {self.takeover.peer}" if self.takeover is not None else ""
        self.say(f"generation {self.generation.number} serves{took}")
        self.event("generation.serves", since=self.since)
        background.told_ready()
        self.hooks.after("ready")
        if self.wait(0):  # it came while the commit was under way: too late to refuse the service
            self.worker.post(lambda: self.leave("asked for before ready"))

    def _is_the_same(self) -> None:
        """``UpgradeError`` where another program has the name that was made up for this one: it would end."""
        came = self.holdings.came
        if not self._is_guessed or self._was_started_by_us or self.takeover is None or not len(came) or came.claimed():
            return
        theirs = ", ".join(dict.fromkeys(str(describe(sock.fileno())) for _, sock in came.unclaimed()))
        raise UpgradeError(
            f"a service that is called {self.name!r}, too, serves {theirs}, and this program does not: it is another one. Give "
            f"one of them a name (--handoff-name, handoff_name=). If it is the same one at another address, stop that first",
            serving=OLD,
        )

    def _open_crossing(self) -> None:
        try:
            self.crossing.open(self.generation.number, self._verbs.of_who_drains(), self.allow_uids)
        except HandoffError as error:
            self.say(f"{error}; connections of an older generation drain there instead of moving here")

    # --- connections that move --------------------------------------------------------------------------------

    def receive_connections(
        self,
        take: Callable[[Iterable[Connection]], object],
        *,
        seat: Callable[[Guest], Callable[[], object]] | None = None,
    ) -> None:
        """Has ``take`` called, in a thread of its own, with connections that an older generation gives while it drains: each
        with its socket as ``target`` and the ``state`` that was given with it, to be iterated over once. They are ours then,
        and counted by nobody until ``take`` lets them enter the gate. The next ones come when it has returned. Say it before
        ``ready()``. ``seat``: for an event loop, see ``moving.Reception``."""
        if self.state_word != STARTING:
            raise UpgradeError("receive_connections() comes before ready()", serving=OLD)
        self.crossing.take = take
        self.crossing.seat = seat

    def drains_when_asked(self) -> None:
        """Under a master: it asks this process to drain as soon as the next generation has passed its probation, and does not
        wait until clients go by themselves. For a server that then says ``Connection: close``. Say it before ``ready()``;
        ``receive_connections`` implies it."""
        self.crossing.leaves = True

    def observes(self, count: Callable[[], int]) -> None:
        """For a server that accepts by itself: ``count()`` says how many connections it has now, for ``drain()`` and for the
        status, beside those in the gate. It is called in any thread. Say it before ``ready()``."""
        if self.state_word != STARTING:
            raise UpgradeError("observes() comes before ready()", serving=OLD)
        self._observed = count

    def when_draining(self, function: Callable[[], object]) -> None:
        """Has ``function()`` called when this process begins to drain, before ``wait()`` returns; at once, where it drains
        already. For what a connection needs only for its end. It is called in any thread, and others wait for it."""
        with self._lock:
            waits = self.state_word not in (DRAINING, STOPPED)
            if waits:
                self._when_draining.append(function)
        if not waits:
            function()

    @property
    def inside(self) -> int:
        """How many connections, or what else enters the gate, this generation has now."""
        return self.gate.active + (self._observed() if self._observed is not None else 0)

    @property
    def has_heir(self) -> bool:
        """Whether a generation that serves now takes connections of this one."""
        return self.crossing.has_heir(self.generation.number)

    def give_connections(self, connections: Sequence[Connection]) -> list[Connection]:
        """Gives them to the generation that serves, for which they go on as if they had always been there: call it while this
        process drains, for connections from which nothing is being read or written, and of which everything that was read
        and not used is in their ``state``. Returns those that stay, because nobody takes them; close the sockets of the
        others, without ``shutdown``. Blocks, a few seconds at most."""
        if not self.draining:
            raise UpgradeError("give_connections() is for a process that drains", serving=OLD)
        return self.crossing.give(connections, self.generation.number, self.allow_uids)

    def tell(self, what: Callable[[Notifier], None]) -> None:
        """Says something to the service manager. That it can't be told is no reason to fail: it is logged."""
        if self.notifier:
            try:
                what(self.notifier)
            except HandoffError as error:
                self.say(str(error))

    async def ready_async(self, timeout: float | None = 60.0) -> None:
        """``ready()`` for asyncio. From here on hooks run in this event loop and may be coroutine functions."""
        import asyncio

        from .awaiting import in_thread

        self.hooks.loop = asyncio.get_running_loop()
        await in_thread(lambda: self.ready(timeout), self._cancel_ready)
        self.unblock_signals()

    def unblock_signals(self) -> None:
        """In the main thread: has it take the signals that whoever started this process had blocked until it was ready.
        ``ready()`` and ``ready_async()`` do so. To be said where ``ready()`` is called in another thread, which can't."""
        if self._was_started_by_us and threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)

    def _cancel_ready(self) -> None:
        if self.takeover is not None:
            self.takeover.abort("the service's start was cancelled")

    # --- serving --------------------------------------------------------------------------------------------

    def serve(
        self,
        handler: Callable[[CountedSocket, Any], object],
        listeners: Iterable[socket.socket] | None = None,
        **options: Any,
    ) -> str:
        """Accepts from ``listeners`` (default: every stream listener of this service) through the gate and calls
        ``handler(connection, listener)`` for each, until this process shall end; returns why, as ``wait`` does. After a
        rollback it goes on. Several threads may serve. ``options`` as for ``AcceptLoop``."""
        from .accept import AcceptLoop

        with AcceptLoop(self._accepting(listeners), self.gate, handler, **options) as loop:
            while not self.draining:
                loop.run()
                while self.gate.closed and not self.wait(REOPEN_SECONDS):
                    pass  # until the end, or a rollback
        return self.wait(0)

    async def serve_async(
        self,
        handler: Callable[[CountedSocket, Any], object],
        listeners: Iterable[socket.socket] | None = None,
        **options: Any,
    ) -> str:
        """``serve()`` for asyncio: the handler may be a coroutine function, and runs as a task then."""
        import asyncio

        from .accept import AcceptLoop

        with AcceptLoop(self._accepting(listeners), self.gate, handler, **options) as loop:
            while not self.draining:
                await loop.run_async()
                while self.gate.closed and not self.draining:
                    await asyncio.sleep(REOPEN_SECONDS)
        return self.wait(0)

    @property
    def may_accept(self) -> bool:
        """Whether this process is the owner, or a worker that was forked by it."""
        return self.owner or self._is_child

    def _accepting(self, listeners: Iterable[socket.socket] | None) -> list[Any]:
        if not (self.may_accept or self.draining):
            raise UpgradeError("accept only after ready(): until then another generation may", serving=OLD)
        if listeners is not None:
            return list(listeners)
        return [sock for _, sock in self.holdings.listeners if (what := describe(fileno(sock))) and what.listening]

    # --- waiting and ending ---------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether this process shall end: say so in what it still answers (``Connection: close``)."""
        return self.state_word in (DRAINING, STOPPED) or (self._is_child and bool(self.wait(0)))

    def fileno(self) -> int:
        """Readable once this process shall drain and end: for any event loop. See ``wait``."""
        return self._ended.fileno()

    def wait(self, timeout: float | None = None) -> str:
        """Blocks until this process shall end; returns why: ``"handed over"`` or ``"stop"``, or ``""`` after ``timeout``
        seconds. In a forked worker it is always ``"stop"``."""
        if self._closed:
            return self.verdict or "stop"
        try:
            wait((self._ended.fileno(),), (), after(timeout))
        except DeadlineExceeded:
            return ""
        return self.verdict or "stop"

    async def wait_async(self) -> str:
        """``wait()`` for asyncio."""
        import asyncio

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        fd = os.dup(self._ended.fileno())  # a loop has one callback for one descriptor, and several may wait

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(fd, tell)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return self.verdict or "stop"

    def wait_old(self, timeout: float | None = None) -> bool:
        """Waits until the generation from which this one took over has ended; whether it has. True at once where there was
        none. After ``ready()``: before, what the other side says is for it."""
        if self.state_word == STARTING:
            raise UpgradeError("wait_old() comes after ready()", serving=OLD)
        return self.takeover is None or self.takeover.wait_old(timeout)

    def drain(self, grace: float | None = -1.0) -> DrainReport:
        """Closes the gate and waits until nobody is inside, at most ``grace`` seconds (default: the service's; ``None``: for
        ever), or until somebody hurries. What is inside then is the caller's to cut."""
        limit = self.grace if grace is not None and grace < 0 else grace
        self.hooks.before("drain")
        began = self._drain_began or time.monotonic()
        self.event("drain.begun", why=self.verdict)
        self.gate.close()
        observed = self._observed() if self._observed is not None else 0
        deadline = after(limit)
        while not self._drained_within(deadline):
            if self.upgrader.handoff is not None:
                left = None if limit is None else max(0.0, (deadline - time.monotonic_ns()) / 1e9)
                self.upgrader.handoff.report(self.inside, time.monotonic() - began, left)
        forced, seconds = self.inside, time.monotonic() - began
        finished = self.gate.counters.finished - self._finished_before
        finished += max(0, observed - (forced - self.gate.active))
        clients: list[str] = []
        if forced:
            from .system.connections import clients_of  # late: few are
            from .system.processes import descendants

            family = [os.getpid(), *descendants(os.getpid())]
            clients = clients_of([sock for _, sock in self.holdings.listeners], family)
        report = DrainReport(finished, forced, seconds, self.crossing.moved, clients)
        if self.upgrader.handoff is not None:
            self.upgrader.handoff.drained(report.finished, report.forced)
        self.say(
            f"drained in {format_duration(report.seconds)}: {report.finished} finished"
            + (f", {report.forced} cut at the deadline{report.named}" if report.forced else "")
        )
        self.event(
            "drain.ended", finished=report.finished, moved=report.moved, forced=report.forced, seconds=seconds,
            clients=report.clients[:_NAMED],
        )  # fmt: skip
        self.hooks.after("drain")
        return report

    def _drained_within(self, deadline: int) -> bool:
        """Whether the drain is over: empty, late, or hurried. Waits a second for it."""
        self.gate.settle()
        soon = min(deadline, after(REPORT_SECONDS))
        try:
            wait((self.gate.fileno(),), (), soon, self._hurry.fileno())
            while self._observed is not None and not self._gone():
                if passed(soon):
                    raise DeadlineExceeded("connections are left")
        except DeadlineExceeded:
            return deadline != FOREVER and time.monotonic_ns() >= deadline
        except Woken:
            return True
        return True

    def _gone(self) -> bool:
        """Whether what no descriptor tells of is gone: seen twice, as one may just be on its way from a queue."""
        for _ in range(2):
            if self.inside:
                break
            self._look_again()
        else:
            return True
        self._look_again()
        return False

    def _look_again(self) -> None:
        try:
            wait((), (), after(OBSERVE_SECONDS), self._hurry.fileno())
        except DeadlineExceeded:
            pass

    async def drain_async(self, grace: float | None = -1.0) -> DrainReport:
        """``drain()`` for asyncio."""
        from .awaiting import in_thread

        return await in_thread(lambda: self.drain(grace), self.hurry)

    def stop(self) -> None:
        """Asks this process to drain and end, as TERM does; an upgrade under way is aborted. A second call hurries."""
        self.ask_stop("stop was called")

    def hurry(self) -> None:
        """Ends a drain now."""
        if not self._closed:
            self._hurry.set()

    @property
    def hurried(self) -> bool:
        """Whether the drain was to end at once: what comes behind it has no time either."""
        if self._closed:
            return True
        poller = select.poll()
        poller.register(self._hurry.fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Ends the service in this process: closes its descriptors; the last owner removes its paths and the pidfile. Call it
        last; the context manager does."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.verdict == "handed over" and not self._is_child:
            self._verbs.wait()
            if self.incarnation is not None:
                self.incarnation.block()
        if self.owner:
            self.gate.close()
            self._give_back("it ended")
        final, unborn = self.owner, self.state_word == STARTING
        if self._interim is not None and not self._is_child:
            if self._stops.pending:
                self._interim.wait()
            self._interim.close()
        if not self._is_child:
            if self._health is not None:
                self._health.close(final=final)
            self.crossing.close(final=final)
            self._end_duties(unborn)
            if final or unborn:
                self.holdings.unlink(all=final)
            if self._pidfile is not None and final:
                self._pidfile.release()
            self._hurry.close()
        self.holdings.close()
        self.ledger.close()
        self.gate.release()
        self._ended.close()
        self.state_word = STOPPED
        if self in _services:
            _services.remove(self)
        if self.incarnation is not None and not self._is_child:
            try:
                self.incarnation.begin()
            finally:
                self.signals.restore()

    def _end_duties(self, unborn: bool) -> None:
        """Nobody is answered, heeded or handed anything from here on."""
        self.upgrader.interrupt.set()
        self.hooks.end()
        self.worker.end()
        if self.incarnation is None:
            self.signals.restore()
        if self.takeover is not None:
            if unborn:
                self.takeover.abort("the new side ended before it was ready")
                # What came is closed, by it.
                self.holdings.files = Files()
            self.takeover.close()
        self.upgrader.close()
        if self.endpoint is not None and self.path is not None:
            self.endpoint.end_offer()
            registry.remove(self.path) if self.owner or unborn else registry.forget(self.path)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- upgrade --------------------------------------------------------------------------------------------

    def upgrade(self) -> Handed:
        """Starts the next generation of this program and hands over to it; returns once probation is over, with this
        process about to drain (``wait()`` returns). Raises, with this process serving on: ``InProgress``, ``Vetoed``,
        ``SuccessorDied``, ``NotReady``, ``Aborted``, ``RolledBack``, ``SystemCallError`` (the command can't be started),
        ``UpgradeError``."""
        if self.worker.is_me() or self.hooks.is_loop_thread():
            raise UpgradeError(
                "upgrade() would wait for itself here: from a hook return, and let another thread call it; in an event "
                "loop await upgrade_async()",
                serving=OLD,
            )
        self.claim_turn()
        return self.upgrade_in_turn()

    def upgrade_in_turn(self) -> Handed:
        outcome: list[Handed | BaseException] = []
        done = threading.Event()

        def job() -> None:
            try:
                self.check_turn()
                outcome.append(self.upgrader.upgrade())
            except BaseException as error:
                outcome.append(error)
            finally:
                done.set()

        self.worker.post(job)
        done.wait()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    async def upgrade_async(self) -> Handed:
        """``upgrade()`` for asyncio; cancelling it aborts the upgrade."""
        from .awaiting import in_thread

        return await in_thread(self.upgrade, self.upgrader.interrupt.set)

    def claim_turn(self) -> None:
        """One upgrade at a time: from here on others are told so."""
        with self._lock:
            # In this order: a stop that is asked for from here on interrupts the upgrade, an earlier one is seen below.
            self.upgrader.interrupt.clear()
            if self._stops.pending:
                raise UpgradeError("this process is about to stop: it can't be upgraded any more", serving=OLD)
            if self.state_word == STARTING:
                raise UpgradeError("this process is not ready yet: it can't be upgraded before", serving=OLD)
            if self.state_word in (UPGRADING, PROBATION):
                raise InProgress(f"an upgrade from generation {self.generation.number} is under way already")
            if self.state_word != SERVING:
                raise UpgradeError(f"this process is {self.state_word}: it can't be upgraded any more", serving=NEW)
            if self.path is None or self.endpoint is None:
                raise Unsupported("this service has no handoff path, so it can't be upgraded", serving=OLD)
            self.state_word = UPGRADING

    def check_turn(self) -> None:
        """In the service's thread: whether the turn that was claimed still holds."""
        if self.state_word != UPGRADING:
            raise Aborted("a stop came before the upgrade had begun", serving=OLD)

    def make_state(self) -> bytes:
        if self._state_hook is None:
            return b""
        try:
            made = self.hooks.call(self._state_hook)
            if not isinstance(made, bytes):
                raise TypeError(f"it returned {type(made).__name__}, not bytes")
        except Exception as error:
            raise Vetoed(f"the state could not be made: {error or type(error).__name__}", serving=OLD) from error
        return made

    def take_back(self) -> None:
        """The service is ours again, after probation failed: what had changed hands at *ready* changes back."""
        if self._pidfile is not None:
            try:
                self._pidfile.take_over()
            except HandoffError as error:
                self.say(str(error))
        try:
            self.crossing.appoint(self.generation.number)
        except (HandoffError, OSError) as error:
            self.say(str(error))
        self.hooks.after("rollback")

    def offer_again(self) -> None:
        if self.endpoint is not None:
            self.endpoint.begin_offer(self.upgrader.greet, self.allow_uids)

    def status(self) -> dict[str, Any]:
        """What ``fdhandoff-cli status`` shows: see docs/reference/cli.md."""
        return status(self)

    @property
    def drain_seconds_left(self) -> float | None:
        """``None`` without a drain, or where it may last for ever."""
        if not self._drain_began or self.grace is None:
            return None
        return max(0.0, self._drain_began + self.grace - time.monotonic())

    # --- signals and stop ---------------------------------------------------------------------------------

    def _on_signal(self, name: str, action: str) -> None:
        """In the main thread, between two instructions: only passes it on."""
        if self._closed and self.incarnation is None:
            return
        if action == STOP:
            self.ask_stop(name, by_signal=True)
        else:
            self.worker.post(lambda: self._signalled(name, action))

    def _signalled(self, name: str, action: str) -> None:
        try:
            self.hooks.before(name)
            if action == UPGRADE:
                self.claim_turn()
                self.upgrader.upgrade()
        except HandoffError as error:
            self.say(f"{name}: {error}")
            return
        self.hooks.after(name)

    def ask_stop(self, why: str, *, by_signal: bool = False) -> None:
        for other in (self.incarnation, self._interim):
            if other is not None:
                other.stop()
        if self._closed:
            return
        verdict = self._stops.judge(by_signal=by_signal)
        if verdict == StopRequests.FIRST:
            self.upgrader.interrupt.set()
            self.worker.post(lambda: self.leave(why, by_signal=by_signal))
        elif verdict == StopRequests.HURRY:
            self._hurry.set()

    def leave(self, why: str, *, by_signal: bool = False) -> None:
        """In the service's thread: drains and ends, unless a hook vetoes it."""
        try:
            if by_signal:
                self.hooks.before(why)
            self.hooks.before("stop")
        except HandoffError as error:
            self._stops.forget()
            self.upgrader.interrupt.clear()
            self.say(f"stop ({why}) was vetoed: {error}")
            self.event("stop.vetoed", why=why, reason=str(error))
            return
        if self.state_word not in (DRAINING, STOPPED):
            self.event("stop.begun", why=why)
        if self.state_word == STARTING:
            self.say(f"stopping before it is ready: {why}")
            self.verdict = "stop"
            if self.takeover is not None:
                self.takeover.cancel()
            self._ended.set()
        elif self.state_word not in (DRAINING, STOPPED):
            self._leave(why)
            if self.endpoint is not None:
                self.endpoint.why_not = "stopping"
                self.endpoint.end_offer()
            self.goes_back = self.takeover is not None and self.takeover.in_probation
            self.finish("stop")
            self.gate.close()
            if self.owner and not self._give_back(f"it was stopped ({why})"):
                self.goes_back = False
                self.tell_health()
                self.tell(lambda manager: manager.stopping("draining"))
        if by_signal:
            self.hooks.after(why)
        self.hooks.after("stop")

    def _leave(self, why: str) -> None:
        """Load balancers learn it first, and get the time that they need for that."""
        given_back = self.takeover is not None and self.takeover.in_probation
        delay = self.pre_stop_delay if self.owner and not given_back else 0.0
        self.say(f"stopping{f' in {format_duration(delay)}' if delay else ''}: {why}")
        if not self.owner or given_back:
            return  # another generation serves on
        self._leaving = True
        self.tell_health()
        if delay:
            try:
                wait((), (), after(delay), self._hurry.fileno())
            except (DeadlineExceeded, Woken):
                pass  # the time is over, or somebody is in a hurry

    def tell_health(self) -> None:
        """Whoever asks for the service's health gets another answer from here on."""
        if self._health is not None:
            self._health.changed()

    def _give_back(self, why: str) -> bool:
        """A generation that ends in its probation leaves the service to the one before."""
        # One waits for the other: the service's thread may be at it, and our end is another one for who is not the owner.
        with self._giving_back:
            if not self.owner:
                return True
            takeover = self.takeover
            if takeover is None or not takeover.give_back(
                f"generation {self.generation.number} ends in its probation: {why}"
            ):
                return False
            self.owner = False
        self.tell_health()
        self.say(f"the service went back to {takeover.peer}")
        return True

    def finish(self, verdict: str) -> None:
        """From here on this process drains: whoever waits for it is told."""
        self.verdict = verdict
        self._drain_began = time.monotonic()
        self._finished_before = self.gate.counters.finished
        self.become(DRAINING)
        for function in self._when_draining:
            try:
                function()
            except Exception:
                # No reason not to drain: it is shown.
                sys.excepthook(*sys.exc_info())
        self._ended.set()

    def become(self, word: str) -> None:
        with self._lock:
            self.state_word = word
            tell, self.once_served = self.once_served, None
        self.tell_health()
        if tell is not None and word == PROBATION:
            tell()

    def say(self, line: str) -> None:
        self._log(f"{self.name}[{os.getpid()}]: {line}")

    def event(self, event: str, /, **fields: Any) -> None:
        """One of ``events.EVENTS``. What the application's function does wrong is shown, and changes nothing."""
        if self._on_event is None or self._is_child:
            return
        from .events import record

        try:
            self._on_event(record(event, self.name, self.generation.number, fields))
        except Exception:
            sys.excepthook(*sys.exc_info())

    @staticmethod
    def _to_stderr(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def forget_in_child(self) -> None:
        """After fork, in the child, which is a worker of ours: it has neither our thread nor our duties. It keeps the
        listeners, the gate, and the descriptor that tells the end."""
        self._is_child = True
        self.owner = False
        self.crossing.forget_in_child()
        self.ledger.forget_in_child()
        self._lock = threading.Lock()
        self._giving_back = threading.Lock()
        self.signals.forget_in_child()
        if self._health is not None:
            self._health.forget_in_child()
        self.worker.forget_in_child()
        self.upgrader.forget_in_child()
        if self.takeover is not None:
            self.takeover.forget_in_child()
        if self._pidfile is not None:
            self._pidfile.forget_in_child()
        self._hurry.close()


def _number(text: str) -> int:
    """The generation's number that our starter gave us; 0 for none."""
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise EnvironmentInvalid(f"{environment.GENERATION}={text!r} is not a number: unset it")
    return int(text or 0)


_services: list[Service] = []


def _after_fork_in_child() -> None:
    for service in _services:
        service.forget_in_child()
    _services.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
