"""What the master tells whoever supervises it: systemd through ``NOTIFY_SOCKET``, s6 and its like by a readiness descriptor.

Nothing is said in place of a generation, and no generation hears of it: their own readiness is between them and the master.
"""

from __future__ import annotations

import os
import time

from ..errors import HandoffError
from ..system.fds import is_open, set_cloexec
from ..system.notify import NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC, Notifier
from ..system.process import command_name
from ..system.processes import cgroup_of
from .readiness import answers, run_command
from .run import DRAINING, SERVING, STARTING, STOPPING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from .loop import Timer
    from .master import Master
    from .tasks import Task

# systemd sets it for what it starts itself: the pid that it starts, and will listen to.
_STARTED_PID = "SYSTEMD_EXEC_PID"
# While something takes its time the manager is asked for so much more of it, that often: a master that hangs gets none.
_EXTEND_SECONDS, _EXTEND_EVERY = 30.0, 10.0


class Announcer:
    """One supervisor's ear. ``environ`` is read once, and what is meant for this process alone is taken out of it.

    That the supervisor can't be told is no reason not to serve: it is said once, and again when it has changed.
    """

    def __init__(self, master: Master, environ: MutableMapping[str, str]) -> None:
        """``EnvironmentInvalid`` for a ``NOTIFY_SOCKET`` that makes no sense."""
        self._master = master
        self._ready_fd = -1
        self._environment = {
            name: environ[name] for name in (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID) if name in environ
        }
        self.notifier = Notifier.from_environment(environ)
        self._hint = _hint(self.notifier, environ.get(_STARTED_PID, ""))
        self._said = ""
        self._trouble = ""
        self._reloading = False
        self._extension: Timer | None = None
        self._watchdog: Timer | None = None
        self._look: Task[None] | None = None

    # --- the story ------------------------------------------------------------------------------------------

    def begin(self, ready_fd: int) -> None:
        """The start has begun. ``ready_fd``: a descriptor to which a newline is written when the service is ready, or -1."""
        if ready_fd >= 0:
            if not is_open(ready_fd):
                raise HandoffError(f"--ready-fd {ready_fd}: whoever starts us has not opened that descriptor")
            set_cloexec([ready_fd])
            self._ready_fd = ready_fd
        if self._hint:
            self._master.say(self._hint)
        if self.notifier:
            self._extend()
            self._watch()

    def ready(self) -> None:
        """A generation serves; also when it was found again."""
        self._reloading = False
        self._tell("READY=1", f"STATUS={self._text()}")
        fd, self._ready_fd = self._ready_fd, -1
        if fd >= 0:
            try:
                os.write(fd, b"\n")
            except OSError as error:
                self._master.say(f"nobody reads at --ready-fd {fd}: {error.strerror}")
            os.close(fd)

    def failed(self, why: str) -> None:
        """No generation could be started: the service ends before it began."""
        self._tell(f"STATUS={_line(why)}")

    def reloading(self) -> None:
        """An upgrade begins."""
        self._reloading = True
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", f"STATUS={self._text()}")
        self._extend()

    def reloaded(self) -> None:
        """It is over, whatever became of it: the status says it."""
        if self._reloading and self._master.state == SERVING:
            self._reloading = False
            self._tell("READY=1", f"STATUS={self._text()}")

    def stopping(self) -> None:
        """The service ends; not said where another process goes on with it."""
        self._tell("STOPPING=1", f"STATUS={self._text()}")
        self._extend()

    def changed(self) -> None:
        """Something may be worth a new status."""
        if self.notifier and self._text() != self._said:
            self._tell(f"STATUS={self._text()}")

    def close(self) -> None:
        for timer in (self._extension, self._watchdog):
            if timer is not None:
                timer.cancel()
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1

    def for_exec(self) -> dict[str, str]:
        """The variables for the master that takes this one's place: it has the same pid, and the same supervisor."""
        return self._environment

    # --- saying it ------------------------------------------------------------------------------------------

    def _tell(self, *lines: str) -> None:
        if not self.notifier:
            return
        self._said = next((line[len("STATUS=") :] for line in lines if line.startswith("STATUS=")), self._said)
        self.attempt(lambda: self.notifier.send(*lines))

    def attempt(self, what: Callable[[], None]) -> bool:
        """Whether the manager could be told; where not, that is said, once."""
        try:
            what()
        except HandoffError as error:
            trouble = f"{error}: it does not know how this service is, and keeps no listener for it"
            if trouble != self._trouble:
                self._master.say(trouble)
            self._trouble = trouble
            return False
        self._trouble = ""
        return True

    def _text(self) -> str:
        return _line(describe(self._master))

    # --- time -----------------------------------------------------------------------------------------------

    def _extend(self) -> None:
        """As long as something is under way that has limits of its own, those count, and not the manager's."""
        if self._extension is not None:
            self._extension.cancel()
            self._extension = None
        master = self._master
        if self.notifier and (master.state != SERVING or self._reloading):
            self._tell(f"EXTEND_TIMEOUT_USEC={int(_EXTEND_SECONDS * 1e6)}")
            self._extension = master.loop.after(_EXTEND_EVERY, self._extend)

    def _watch(self) -> None:
        """A sign of life twice in the time that the watchdog allows: it comes out of the loop that does everything else."""
        interval, master = self.notifier.watchdog_interval, self._master
        if interval is None:
            return
        self._watchdog = master.loop.after(interval / 2, self._watch)
        # During an upgrade the new generation is asked already, by the same connection.
        if master.options.watchdog == SERVING and master.state == SERVING and master.rollout is None:
            if self._look is None or self._look.done:
                self._look = master.spawn(self._vouch())
        else:
            self._tell("WATCHDOG=1")

    async def _vouch(self) -> None:
        """The sign of life only if the serving generation gives one, too."""
        master = self._master
        run = master.current
        if run is None or not run.alive:
            return
        ready = run.options.ready
        if ready.kind == "http" and not await answers(master.loop, run, master.outlets, ready.argument):
            return
        if ready.kind == "command" and await run_command(master.loop, ready.argument, run, run.options.ready_timeout):
            return
        self._tell("WATCHDOG=1")


def describe(master: Master) -> str:
    """How the service is, in a line for who looks at its unit."""
    rollout, current = master.rollout, master.current
    number = current.number if current is not None else 0
    if master.state == STARTING or current is None:
        return f"Starting generation {number}" if number else "Starting"
    if master.state == STOPPING:
        return f"Stopping: {_numbers(master, DRAINING, STOPPING, SERVING) or f'generation {number}'} finishes"
    if master.state == DRAINING:
        return f"Draining: generation {number} finishes what it has, and then the service ends"
    parts = [f"Generation {number} serves"]
    if rollout is not None:
        step = rollout.step or ("ends" if rollout.result else "begins")
        parts.append(f"upgrade from {rollout.old.number} to {rollout.new.number}: {step}")
    elif master.last_upgrade is not None and master.last_upgrade["result"] != "done":
        last = master.last_upgrade
        how = "was rolled back" if last["result"] == "rolled back" else "failed"
        parts.append(f"the upgrade to {last['to']} {how}: {last['reason']}")
    if rollout is None and (draining := _numbers(master, DRAINING, STOPPING)):
        parts.append(f"{draining} drains")
    return "; ".join(parts)


def _line(text: str) -> str:
    return " ".join(text.split())


def _numbers(master: Master, *states: str) -> str:
    found = [str(run.number) for run in master.runs if run.state in states]
    return f"generation {', '.join(found)}" if found else ""


def _hint(notifier: Notifier, started: str) -> str:
    """What keeps systemd from hearing us, where that can be known."""
    known = started.isascii() and started.isdigit()
    systemd = (notifier.address or "").endswith("/systemd/notify")  # else another is between it and us
    if systemd and known and int(started) != os.getpid():
        return (
            f"systemd started process {started} and listens to it alone, while this one is {os.getpid()}: it will not hear "
            "that the service is ready; let the wrapper exec this program, or set NotifyAccess=all in the unit"
        )
    if not notifier and (int(started) == os.getpid() if known else _started_by_systemd()):
        return (
            "systemd can't hear when this service is ready, as NOTIFY_SOCKET is not set: say Type=notify in the unit; where it "
            "says so, let no wrapper take the variable away (env -i, sudo)"
        )
    return ""


def _started_by_systemd() -> bool:
    """Also where nothing of its environment has come through."""
    return cgroup_of(os.getpid()).endswith(".service") and command_name(os.getppid()) == "systemd"
