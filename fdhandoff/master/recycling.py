"""Workers that are replaced one by one, within their generation: when they are old, or have become fat.

A server that knows nothing of us can't be asked how many requests it has served, so age and memory stand for that. The
replacement serves first; then the old worker is told to finish and end, and watched by the connections that it has.
"""

from __future__ import annotations

import os
import signal
import time

from ..deadline import format_duration
from ..errors import HandoffError, SystemCallError
from ..system.notify import NotifyListener
from ..system.processes import members, memory_of
from .drain import counted
from .readiness import Newcomer, await_joined
from .run import SERVING, kill_group
from .tasks import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..system.process import Process
    from .loop import Timer
    from .master import Master
    from .run import Run

# Workers that were started together do not go together: each lives between so much less and so much more.
_SPREAD = 0.1
# After a replacement that did not become ready.
_AGAIN_SECONDS = 60.0
_LOOK_FIRST, _LOOK_LAST = 0.02, 0.5
_MIB = 1 << 20


class Recycler:
    """One worker at a time, of the generation that serves, and none during an upgrade. ``count`` were replaced so far."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._timer: Timer | None = None
        self._busy = False
        self._not_before = 0.0
        self._blind = False
        self._spread: dict[int, float] = {}  # by pid

    def plan(self) -> None:
        """Sleeps until the next worker may be due. Where neither option was given, for ever."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        run = self._serving()
        if run is None or self._busy:
            return  # planned again when that is over
        moments = []
        if run.options.worker_lifetime is not None:
            moments += [self._due(process, run.options.worker_lifetime) for process in run.staying]
        if run.options.worker_memory is not None and not self._blind:
            moments.append(time.monotonic() + run.options.worker_memory.seconds)
        if moments:
            delay = max(min(moments), self._not_before) - time.monotonic()
            self._timer = self._master.loop.after(delay, self._begin)

    def _serving(self) -> Run | None:
        master = self._master
        return master.current if master.state == SERVING and master.rollout is None else None

    def _due(self, process: Process, lifetime: float) -> float:
        """The monotonic moment. A worker that another master started has lived since then."""
        spread = self._spread.get(process.pid)
        if spread is None:
            alive = {one.pid for run in self._master.runs for one in run.processes}
            self._spread = {pid: value for pid, value in self._spread.items() if pid in alive}
            spread = self._spread[process.pid] = 1 + _SPREAD * (os.urandom(1)[0] / 127.5 - 1)
        return time.monotonic() - age(process) + lifetime * spread

    def _begin(self) -> None:
        run = self._serving()
        if run is not None:
            self._busy = True
            self._master.spawn(self._turn(run))

    async def _turn(self, run: Run) -> None:
        try:
            process, why = self._next(run)
            if process is not None:
                await self._replace(run, process, why)
        finally:
            self._busy = False
            self.plan()

    def _next(self, run: Run) -> tuple[Process | None, str]:
        """A worker that is due, and why."""
        lifetime, memory = run.options.worker_lifetime, run.options.worker_memory
        for process in run.staying:
            if lifetime is not None and time.monotonic() >= self._due(process, lifetime):
                return process, f"it has lived for {format_duration(round(age(process)))}"
        for process in run.staying if memory is not None and not self._blind else ():
            assert memory is not None
            try:
                size = memory_of(members(process.pid))
            except SystemCallError as error:
                self._blind = True
                self._master.say(f"--worker-memory has no effect: {error}")
                break
            if size > memory.size:
                return process, f"it uses {size / _MIB:.0f} MiB of memory, more than {memory.size / _MIB:.0f}"
        return None, ""

    async def _replace(self, run: Run, old: Process, why: str) -> None:
        master = self._master
        began = time.monotonic()
        listener = NotifyListener() if run.options.ready.kind == "notify" else None
        new: Process | None = None
        try:
            new = run.start_another(listener.address if listener is not None else "")
            master.say(f"{run}: worker {new.pid} is to replace {old.pid}, since {why}")
            outlets = [outlet for outlet in master.outlets if outlet.only in (-1, run.slot)]
            await await_joined(master.loop, Newcomer(run, new), outlets, listener)
        except (HandoffError, OSError, ValueError) as error:
            self._not_before = time.monotonic() + _AGAIN_SECONDS
            master.say(f"{run}: worker {old.pid} is not replaced: {error}")
            if new is not None and new.alive():
                run.dismiss(new, signal.SIGKILL)
            return
        finally:
            if listener is not None:
                listener.close()
        if old not in run.staying:
            return  # it has ended meanwhile, or was told to
        run.dismiss(old)
        master.recycled += 1
        master.changed()
        await see_off(master, run, old)
        took = format_duration(round(time.monotonic() - began, 3))
        master.say(f"{run}: worker {new.pid} has replaced {old.pid} in {took}")


async def see_off(master: Master, run: Run, process: Process) -> None:
    """Watches a worker that was told to end, while its generation goes on: killed when its grace period is over, or when it has
    no connection left and does not end all the same."""
    options, began = run.options, time.monotonic()
    ended, seconds, left, idle_since = run.end_of(process), _LOOK_FIRST, 0, began
    while process.alive():
        left = master.connections_of(members(process.pid))
        now = time.monotonic()
        # Without a listener nothing is to be seen of what it has left, and its grace period alone counts.
        idle_since = now if left or not master.outlets else idle_since
        late = options.grace is not None and now - began >= options.grace
        if late or now - idle_since >= options.kill_after:
            took = format_duration(round(now - began, 1))
            cut = f"with {counted(left)}" if left else "with no connection left"
            master.say(f"{run}: worker {process.pid} did not end within {took} of being told to; it is killed, {cut}")
            kill_group(process)
            return
        await pause(master.loop, seconds, ended)
        seconds = min(seconds * 2, _LOOK_LAST)
    if left:
        master.say(f"{run}: worker {process.pid} ended with {counted(left)}, as last looked at")


def age(process: Process) -> float:
    """Seconds since it was started."""
    ticks: int = os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - process.started / ticks)
