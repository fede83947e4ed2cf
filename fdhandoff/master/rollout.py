"""An upgrade, step by step: check, start, ready, canary, switch, settle, probation; and the way back from each of them."""

from __future__ import annotations

import contextlib
import time

from ..deadline import format_duration
from ..errors import OLD, Aborted, HandoffError, RolledBack, SuccessorDied, UpgradeError
from ..system.notify import NotifyListener
from .readiness import Probe, await_ready, run_command
from .run import CANARY, DRAINING, ENDED, PROBATION, SERVING, Run
from .tasks import Cancelled, Future, first, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .master import Master

_LOOK_SECONDS = 0.02
_DRAIN_LOOK_FIRST, _DRAIN_LOOK_LAST = 0.02, 0.5


class Rollout:
    """One upgrade of ``master`` from the generation that serves to a new one. ``steps`` are (name, seconds) as they end;
    ``watchers`` are called with every event. ``hold`` and ``promote`` steer a canary."""

    def __init__(self, master: Master, old: Run, new: Run) -> None:
        self.master = master
        self.old = old
        self.new = new
        self.step = ""
        self.began = time.monotonic()
        self.steps: list[tuple[str, float]] = []
        self.watchers: list[Callable[[dict[str, Any]], object]] = []
        self.held = False
        self.promoted: Future[None] = Future()
        self.aborted: Future[str] = Future()
        self.switched = False
        self.result = ""
        self.reason = ""
        self._step_began = self.began

    # --- the story ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """To the end of probation. Raises what went wrong, with the old generation serving."""
        master, old, new = self.master, self.old, self.new
        options = new.options
        try:
            if options.check:
                self.enter("check")
                failure = await run_command(master.loop, options.check, new, options.ready_timeout)
                if failure:
                    raise UpgradeError(f"the check of the new release failed: {failure}", serving=OLD)
            self.enter("start")
            await self._start()
            if options.canary:
                await self._canary()
            self.enter("switch")
            self._switch()
            await self._settle()
            self.enter("probation")
            await self._probation()
        except (Exception, Cancelled) as error:
            self._go_back(error)
            raise
        new.state = SERVING
        new.watch_over()
        self._end("done", "")
        master.retire(old)

    async def _start(self) -> None:
        new, loop = self.new, self.master.loop
        listener = NotifyListener() if new.options.ready.kind == "notify" else None
        try:
            new.start(listener.address if listener is not None else "")
            self.master.say(f"{new} started (pid {', '.join(map(str, new.pids))})")
            self.enter("ready")
            how = await self._unless_aborted(await_ready(loop, new, self.master.outlets, listener))
        finally:
            if listener is not None:
                listener.close()
        self.master.say(f"{new} is ready: it {how}")

    async def _canary(self) -> None:
        new = self.new
        new.state = CANARY
        for step in new.options.canary:
            self.enter(f"canary {step.share:.3g}")
            new.share, self.old.share = step.share, 1 - step.share
            for outlet in self.master.outlets:
                outlet.choose(self.old.slot, new.slot, step.share)
            self.master.say(
                f"canary: {step.share:.3%} of new connections go to {new} for {format_duration(step.seconds)}"
            )
            until = time.monotonic() + step.seconds
            while (time.monotonic() < until or self.held) and not self.promoted.done:
                self._check_new()
                await first(sleep(self.master.loop, min(0.2, max(0.0, until - time.monotonic()) or 0.2)), self.promoted)
            if self.promoted.done:
                return

    def _switch(self) -> None:
        self._check_new()
        for outlet in self.master.outlets:
            outlet.choose(self.new.slot)
        self.switched = True
        self.new.state, self.new.share, self.old.share = PROBATION, 1.0, 0.0
        self.old.state = DRAINING
        self.old.restarts = False
        self.master.current = self.new
        self.master.changed()
        self.master.say(f"switched: all new connections go to {self.new}")

    async def _settle(self) -> None:
        """The old queue is emptied, and what was half open at the switch has had its time."""
        self.enter("settle")
        until = time.monotonic() + self.new.options.settle
        while time.monotonic() < until or any(outlet.waiting(self.old.slot) for outlet in self.master.outlets):
            self._check_new()
            if not self.old.alive:
                break
            await sleep(self.master.loop, _LOOK_SECONDS)

    async def _probation(self) -> None:
        until = time.monotonic() + self.new.options.probation
        kind, path = self.new.options.ready.kind, self.new.options.ready.argument
        failures = 0
        while time.monotonic() < until:
            self._check_new()
            await first(sleep(self.master.loop, min(0.5, max(0.0, until - time.monotonic()))), self.new.died)
            if kind == "http":
                failures = 0 if await self._probe(path) else failures + 1
                if failures >= 3:
                    raise RolledBack(f"{self.new} failed its probe of {path} three times within probation", serving=OLD)
        self._check_new()

    async def _probe(self, path: str) -> bool:
        outlet = next((outlet for outlet in self.master.outlets if outlet.probed), None)
        if outlet is None:
            return True
        probe = Probe(self.master.loop, outlet, self.new.slot)
        try:
            return 200 <= await probe.get(path, 5.0) < 400
        except OSError:
            return False
        finally:
            probe.close()

    def _check_new(self) -> None:
        if self.aborted.done:
            raise Aborted(f"the upgrade was aborted: {self.aborted.result()}", serving=OLD)
        if self.new.died.done:
            how = self.new.died.result()
            if self.switched:
                raise RolledBack(f"{self.new} died in probation ({how}); {self.old} serves again", serving=OLD)
            raise SuccessorDied(f"{self.new} died before it served: {how}", serving=OLD)

    async def _unless_aborted(self, coroutine: Any) -> Any:
        task = self.master.spawn(coroutine)
        await first(task, self.aborted)
        if not task.done:
            task.cancel()
            self._check_new()
        return task.result()

    # --- the way back ---------------------------------------------------------------------------------------

    def _go_back(self, error: BaseException) -> None:
        """Everything to the old generation, at once; the new one is ended."""
        old, new, master = self.old, self.new, self.master
        with contextlib.suppress(AttributeError):
            error.serving = OLD  # type: ignore[attr-defined]
        if old.state != ENDED:
            for outlet in master.outlets:
                outlet.choose(old.slot)
            old.state, old.share = SERVING, 1.0
            old.watch_over()
            master.current = old
        new.share = 0.0
        reason = str(error) if isinstance(error, (HandoffError, OSError, ValueError)) else type(error).__name__
        self._end("rolled back" if self.switched or new.state == CANARY else "failed", reason)
        if new.alive:
            new.stop() if new.state == CANARY or self.switched else new.kill()
        master.discard(new)

    # --- telling --------------------------------------------------------------------------------------------

    def enter(self, step: str) -> None:
        now = time.monotonic()
        if self.step:
            self.steps.append((self.step, now - self._step_began))
        self.step, self._step_began = step, now
        self.tell({"event": "step", "step": step, "generation": self.new.number, "seconds": now - self.began})

    def tell(self, event: dict[str, Any]) -> None:
        for watcher in self.watchers:
            watcher(event)

    def _end(self, result: str, reason: str) -> None:
        self.enter("")
        self.result, self.reason = result, reason

    def summary(self) -> dict[str, Any]:
        """``last_upgrade`` of the status."""
        return {
            "result": self.result or "under way",
            "reason": self.reason,
            "step": self.step,
            "from": self.old.number,
            "to": self.new.number,
            "seconds": time.monotonic() - self.began,
            "steps": [{"step": step, "seconds": seconds} for step, seconds in self.steps if step],
        }


async def retire(master: Master, old: Run) -> None:
    """Drain by observation: the old generation is told to stop only when none of its connections is left, or its grace period
    is over; killed when that does not end it."""
    options = old.options
    began = time.monotonic()
    old.state = DRAINING
    if options.pre_stop_delay:
        await sleep(master.loop, options.pre_stop_delay)
    deadline = None if options.grace is None else began + options.grace
    old.deadline = deadline
    pause = _DRAIN_LOOK_FIRST
    left = master.connections(old)
    while old.alive and left:
        if deadline is not None and time.monotonic() >= deadline:
            break
        await first(sleep(master.loop, pause), old.ended)
        pause = min(pause * 2, _DRAIN_LOOK_LAST)
        left = master.connections(old)
    if old.alive:
        old.stop()
        await first(old.ended, sleep(master.loop, options.kill_after))
    if not old.ended.done:
        master.say(f"{old} did not end within {format_duration(options.kill_after)} of being told to; it is killed")
        old.kill()
        await old.ended
    cut = f", {left} connections cut at the deadline" if left else ""
    master.say(f"{old} has drained in {format_duration(time.monotonic() - began)}{cut}, and ended")
    master.discard(old)
