"""How the master ends: told to stop, it has every generation finish; told to drain, it waits before that until nobody is
connected."""

from __future__ import annotations

import signal
import time

from ..deadline import format_duration
from ..errors import OLD, UpgradeError
from .drain import HALF_OPEN_SECONDS
from .keeping import KEPT
from .run import DRAINING, SERVING, STOPPING
from .tasks import first, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .master import Master
    from .run import Run

_LOOK_FIRST, _LOOK_LAST = 0.02, 0.5


class Ending:
    """``exit_status`` is the master's own, once it has ended: the command's."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self.exit_status = 0

    # --- stop -----------------------------------------------------------------------------------------------

    def stop(self, why: str, *, limit: float | None = -1.0) -> None:
        """Tells every generation to finish and end. A second call hurries. ``limit``: seconds until they are killed, ``None``
        for as long as it takes; below 0, their grace period, which begins only now."""
        master = self._master
        if master.state == STOPPING:
            self.hurry()
            return
        master.state = STOPPING
        master.changed()
        master.event("stop.begun", why=why)
        master.say(f"stopping: {why}")
        master.announcer.stopping()
        master.spawn(self._stop(limit))

    async def _stop(self, limit: float | None) -> None:
        master, began = self._master, time.monotonic()
        await self._no_rollout("the service is stopped")
        options = master.options
        if limit is not None and limit < 0:
            limit = options.grace
            if options.pre_stop_delay:
                await sleep(master.loop, options.pre_stop_delay)
        for outlet in master.outlets if not master.giver.given else ():
            outlet.give_back()
        runs = list(master.runs)
        deadline = None if limit is None else time.monotonic() + limit
        for run in runs:
            run.deadline = deadline
            if run.state != STOPPING:
                run.stop()
        late = None if limit is None else sleep(master.loop, limit)
        for run in runs:
            if late is None:
                await run.ended
            else:
                await first(run.ended, late)
        for run in runs:
            if not run.ended.done:
                master.say(f"{run} did not end within {format_duration(limit or 0)}; it is killed")
                run.kill()
                await run.ended
        if master.teller is not None:
            await master.teller.finish()
        self._take_the_status()
        master.say(f"stopped in {format_duration(round(time.monotonic() - began, 3))}")
        master.loop.stop()

    def _take_the_status(self) -> None:
        last = self._master.current.exit if self._master.current is not None else None
        if last is not None and last.signal not in (0, None):
            asked = last.signal in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
            self.exit_status = 0 if asked else 128 + last.signal
        elif last is not None and last.status is not None:
            self.exit_status = last.status

    async def _no_rollout(self, why: str) -> None:
        await self._master.giver.over()
        if self._master.rollout is not None:
            self._master.rollout.aborted.set(why)
            while self._master.rollout is not None:
                await sleep(self._master.loop, _LOOK_FIRST)

    # --- drain ----------------------------------------------------------------------------------------------

    def drain(self, why: str, grace: float | None) -> None:
        """As ``stop``, but the generations are told only when nobody is connected to them any more, or after ``grace`` seconds
        (default: the configured ones). Where the listeners have a switch, new connections wait meanwhile, unanswered."""
        master = self._master
        if master.state != SERVING:
            raise UpgradeError(f"the service is {master.state} already", serving=OLD)
        master.state = DRAINING
        master.changed()
        limit = master.options.grace if grace is None else grace
        until = f"for at most {format_duration(limit)}" if limit is not None else "as long as it takes"
        master.event("drain.begun", why=why)
        master.say(f"draining, {until}: {why}")
        master.announcer.stopping()
        master.spawn(self._drain(limit))

    async def _drain(self, limit: float | None) -> None:
        master, began = self._master, time.monotonic()
        kill_after = master.options.kill_after
        await self._no_rollout("the service is drained")
        if master.giver.given:
            return  # somebody has taken it at this very moment
        if master.options.pre_stop_delay:
            await sleep(master.loop, master.options.pre_stop_delay)
        served = {run.slot for run in master.runs}
        self._turn_away()
        coming = [(outlet, outlet.half_open()) for outlet in master.outlets]
        patience = time.monotonic() + HALF_OPEN_SECONDS
        deadline = None if limit is None else time.monotonic() + limit
        for run in master.runs:
            run.deadline = deadline
        pause = _LOOK_FIRST
        while master.state == DRAINING and (
            self._inside(served)
            # A handshake that had begun ends in a queue that is served.
            or (time.monotonic() < patience and any(outlet.half_open() & before for outlet, before in coming if before))
        ):
            if deadline is not None and time.monotonic() >= deadline:
                break
            await sleep(master.loop, pause)
            pause = min(pause * 2, _LOOK_LAST)
        if master.state == DRAINING:
            late = deadline is not None and time.monotonic() >= deadline
            took = format_duration(round(time.monotonic() - began, 3))
            left: float | None = kill_after
            if not master.outlets:  # what a worker is busy with, it alone knows
                left = None if deadline is None else max(kill_after, deadline - time.monotonic())
            self.stop("the grace period is over" if late else f"drained in {took}", limit=left)

    def _inside(self, slots: set[int]) -> bool:
        """Whether anybody is connected, or waits in a queue that is still served."""
        master = self._master
        return any(
            outlet.waiting(slot) for outlet in master.outlets for slot in slots if outlet.mode != "shared"
        ) or any(master.connections(run) for run in master.runs if run.alive)

    def _turn_away(self) -> None:
        """Whoever connects from now on reaches no generation."""
        for outlet in self._master.outlets:
            outlet.turn_away()

    # --- hurry ----------------------------------------------------------------------------------------------

    def hurry(self) -> list[Run]:
        """Ends every drain now: of which generations. One that serves is left alone, unless the whole service drains."""
        master = self._master
        if master.state == DRAINING:
            self.stop("hurried", limit=master.options.kill_after)
            return list(master.runs)
        late = [run for run in master.runs if run.state in (DRAINING, STOPPING, KEPT)]
        for run in late:
            run.kill()
        return late
