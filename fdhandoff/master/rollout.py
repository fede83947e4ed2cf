"""An upgrade, step by step: check, start, ready, canary, switch, settle, probation; and the way back from each of them."""

from __future__ import annotations

import time

from ..deadline import format_duration
from ..errors import OLD, Aborted, HandoffError, NotReady, RolledBack, SuccessorDied, UpgradeError, sentence
from ..system.notify import NotifyListener
from .drain import HALF_OPEN_SECONDS, counted, serve_waiting
from .options import SHARED
from .readiness import answers, await_ready, run_command
from .run import CANARY, DRAINING, PROBATION, SERVING, Run
from .tasks import Cancelled, Future, first, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .master import Master
    from .outlet import Outlet

#: In this order; ``check``, ``pre-start`` and ``canary`` only where they are asked for.
STEPS = ("check", "pre-start", "start", "ready", "canary", "switch", "settle", "probation")
# From this step on the new generation serves.
SERVED_STEPS = STEPS[STEPS.index("settle") :]

_LOOK_SECONDS = 0.02
_WATCH_SECONDS = 0.5
_PROBES_MAX = 3
_LOOK_SHARE = 20  # at most one part in so many of our time goes into counting connections


class Rollout:
    """One upgrade of ``master`` from the generation that serves to a new one. ``steps`` are (name, seconds) as they end;
    ``watchers`` are called with every event. ``hold`` and ``promote`` steer a canary. ``asked``: by whom, or why."""

    def __init__(self, master: Master, old: Run, new: Run, asked: str = "") -> None:
        self.master = master
        self.asked = asked
        self.old = old
        self.new = new
        self.step = ""
        self.began = time.monotonic()
        self.steps: list[tuple[str, float]] = []
        self.watchers: list[Callable[[dict[str, Any]], object]] = []
        self.held = False
        self.promoted: Future[None] = Future()
        self.aborted: Future[str] = Future()
        self.tried = False  # by some users: a canary has begun
        self.switched = False
        self.settled = False  # after the switch nothing was on its way to the old generation any more
        self.result = ""
        self.reason = ""
        self._step_began = self.began
        self.last_lines: list[str] | None = []  # of a new generation that failed; ``None`` where none are kept
        self.lost: dict[str, Any] | None = None  # with a new generation that died with users
        self._probes_failed = 0
        self._next_look = 0.0
        self.at: float | None = None  # when it ended
        self.took: float | None = None

    def hold(self) -> None:
        """The canary stays at its share, or the one to come at the first of its shares, until it is promoted or taken back."""
        if not self.held:
            self.held = True
            self.master.say("canary: held at its present share, until it is promoted or taken back")

    # --- the story ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """To the end of probation. Raises what went wrong, with the old generation serving."""
        master, old, new = self.master, self.old, self.new
        options = new.options
        try:
            if options.check:
                self.enter("check")
                failure = await self._unless_aborted(
                    run_command(master.loop, options.check, new, options.ready_timeout, told=True)
                )
                if failure:
                    raise UpgradeError(f"the check of the new release failed: {failure}", serving=OLD)
                self._passed("the check", options.check)
            await self.start()
            if options.canary:
                await self._canary()
            self.enter("switch")
            self._switch()
            await self._settle()
            settled = self._so_far()
            self.enter("probation")
            if options.probation:
                master.say(
                    f"{new} is on probation for {format_duration(options.probation)}, {old} settled in {settled}"
                )
            await self._probation()
        except (Exception, Cancelled) as error:
            self._go_back(error)
            if new.output is not None:
                self.last_lines = await new.output.last_lines()
            raise
        new.state = SERVING
        new.watch_over()
        self._end("done", "")
        master.retire(old, settled=self.settled)

    async def start(self) -> None:
        """Starts the new generation; returns when it is ready."""
        new, loop = self.new, self.master.loop
        if new.options.pre_start:
            self.enter("pre-start")
            failure = await self._unless_aborted(
                run_command(loop, new.options.pre_start, new, new.options.ready_timeout, told=True)
            )
            if failure:
                raise UpgradeError(f"the pre-start command did not let {new} start: {failure}", serving=OLD)
            self._passed("the pre-start command", new.options.pre_start)
        self.enter("start")
        listener = NotifyListener() if new.options.ready.kind == "notify" else None
        try:
            new.start(listener.address if listener is not None else "")
            self.master.say(f"{new} started (pid {', '.join(map(str, new.pids))})")
            self.enter("ready")
            how = await self._unless_aborted(await_ready(loop, new, self._outlets(), listener))
        finally:
            if listener is not None:
                listener.close()
        self.master.say(f"{new} is ready after {self._so_far()}: it {how}")
        self.master.ears.attend(*dict.fromkeys((self.old, new)))
        if new.deaf.done:
            raise NotReady(f"{new} {new.deaf.result()} before it served", serving=OLD)

    def _outlets(self) -> list[Outlet]:
        """Those that the new generation was given."""
        return [outlet for outlet in self.master.outlets if outlet.only in (-1, self.new.slot)]

    async def _canary(self) -> None:
        new = self.new
        new.state = CANARY
        self.master.changed()
        for step in new.options.canary:
            self.enter(f"canary {100 * step.share:.3g}%")
            self._check_new()
            self.tried = True
            new.share, self.old.share = step.share, 1 - step.share
            for outlet in self.master.outlets:
                outlet.choose(self.old.slot, new.slot, step.share)
            self.master.say(
                f"canary: {100 * step.share:.3g}% of new connections go to {new} for {format_duration(step.seconds)}"
            )
            self._probes_failed = 0
            until = time.monotonic() + step.seconds
            while (time.monotonic() < until or self.held) and not self.promoted.done:
                left = until - time.monotonic()
                await self._watch(min(left, _WATCH_SECONDS) if left > 0 else _WATCH_SECONDS)
            if self.promoted.done:
                self.master.say(f"canary: promoted after {self._so_far()}")
                return

    def _switch(self) -> None:
        self._check_new()
        self.switched = True
        self.new.state, self.new.share, self.old.share = PROBATION, 1.0, 0.0
        self.old.state = DRAINING  # but it is still replaced when it dies: it may have to serve again
        self.master.current = self.new
        # In this order: a master that dies in between must not leave users at a generation that the next one ends.
        self.master.changed()
        for outlet in self.master.outlets:
            outlet.choose(self.new.slot)
        new = "all new connections go to" if self.master.outlets else "what comes from now on is for"
        self.master.say(f"switched: {new} {self.new}")
        self.master.switched_to(self.new)

    async def _settle(self) -> None:
        """The old queue is emptied, and what was half open at the switch has had its time. A generation that is stuck does not
        hold up the upgrade: what it leaves is served when it has ended."""
        self.enter("settle")
        now = time.monotonic()
        until, patience = now + self.new.options.settle, now + self.new.options.settle + HALF_OPEN_SECONDS
        before = [(outlet, outlet.half_open()) for outlet in self.master.outlets]
        while True:
            self._check_new()
            if self.old.deaf.done:
                serve_waiting(self.master, self.old)
            before = [(outlet, outlet.half_open() & half_open) for outlet, half_open in before if half_open]
            coming = any(half_open for _, half_open in before) or any(
                outlet.waiting(self.old.slot) for outlet in self.master.outlets if outlet.mode != SHARED
            )
            now = time.monotonic()
            if now >= patience or (now >= until and not coming):
                self.settled = not coming
                return
            await pause(self.master.loop, _LOOK_SECONDS, self.new.died, self.new.deaf, self.aborted)

    async def _probation(self) -> None:
        self._probes_failed = 0
        until = time.monotonic() + self.new.options.probation
        while (left := until - time.monotonic()) > 0:
            await self._watch(min(left, _WATCH_SECONDS))
        self._check_new()

    async def _watch(self, seconds: float) -> None:
        """Looks after the new generation, which has users, for so long or until something happens to it."""
        self._check_new()
        self._look()
        # A promotion is over once it has led to the switch: to wait for it then would be not to wait.
        steering = [] if self.switched else [self.promoted]
        await pause(self.master.loop, seconds, self.new.died, self.new.deaf, self.aborted, *steering)
        self._check_new()
        ready = self.new.options.ready
        if ready.kind == "http":
            probe = answers(self.master.loop, self.new, self._outlets(), ready.argument, self.new.died, self.new.deaf)
            self._probes_failed = 0 if await self._unless_aborted(probe) else self._probes_failed + 1
            self._check_new()
            if self._probes_failed >= _PROBES_MAX:
                raise RolledBack(
                    f"{self.new} failed its probe of {ready.argument} {_PROBES_MAX} times; {self.old} serves again",
                    serving=OLD,
                )
        elif ready.kind == "command":
            failure = await self._unless_aborted(
                run_command(self.master.loop, ready.argument, self.new, self.new.options.ready_timeout, self.new.died)
            )
            self._check_new()
            if failure:
                raise RolledBack(f"{self.new} is no longer ready: {failure}; {self.old} serves again", serving=OLD)

    def _look(self) -> None:
        """Counts the new generation's connections now and then, so that it is known what goes with it if it dies. To count ten
        thousand takes a while, in which nothing else is done."""
        now = time.monotonic()
        if now >= self._next_look:
            self.master.connections(self.new)
            took = time.monotonic() - now
            self._next_look = now + max(_WATCH_SECONDS, _LOOK_SHARE * took)

    def _check_new(self) -> None:
        if self.aborted.done:
            raise Aborted(f"the upgrade was aborted: {self.aborted.result()}", serving=OLD)
        if self.new.deaf.done and not self.new.died.done:
            what = f"{self.new} {self.new.deaf.result()}"
            if self.switched or self.tried:
                raise RolledBack(f"{what} {self._when()}; {self.old} serves again", serving=OLD)
            raise NotReady(f"{what} before it served", serving=OLD)
        if self.new.died.done:
            how = self.new.died.result()
            if self.switched or self.tried:
                raise RolledBack(
                    f"{self.new} died {self._when()} ({how}){self._loss()}; {self.old} serves again", serving=OLD
                )
            raise SuccessorDied(f"{self.new} died before it served: {how}", serving=OLD)

    def _when(self) -> str:
        return "in probation" if self.switched else "as a canary"

    def _loss(self) -> str:
        """What went with a new generation that died with users, as far as it was seen."""
        if self.new.seen is None:
            self.lost = {"connections": None, "seen": None, "rescued": 0}
            return ", before its connections were counted"
        count, moment = self.new.seen
        self.lost = {"connections": count, "seen": time.monotonic() - moment, "rescued": 0}
        ago = format_duration(round(self.lost["seen"], 3))
        return f", and {counted(count)} with it, as seen {ago} before"

    async def _unless_aborted(self, coroutine: Any) -> Any:
        task = self.master.spawn(coroutine)
        await first(task, self.aborted)
        if not task.done:
            over: Future[None] = Future()
            task.when_done(lambda: over.set(None))
            task.cancel()
            await over  # what it has open is closed now
            self._check_new()
        return task.result()

    # --- the way back ---------------------------------------------------------------------------------------

    def _go_back(self, error: BaseException) -> None:
        """Everything to the old generation, at once; the new one is ended."""
        old, new, master = self.old, self.new, self.master
        if isinstance(error, HandoffError):
            error.serving = OLD
        had_users = self.switched or self.tried
        for outlet in master.outlets:
            outlet.choose(old.slot)
        old.state, old.share, new.share = SERVING, 1.0, 0.0
        old.watch_over()
        master.current = old
        if self.switched:
            master.switched_to(old)
        reason = sentence(error) if isinstance(error, (HandoffError, OSError, ValueError)) else type(error).__name__
        self._end("rolled back" if had_users else "failed", reason)
        if had_users and new.alive and not new.died.done:
            master.retire_now(new)
            return
        new.kill()
        if not had_users:
            new.ended.when_done(lambda: master.end_strays(new))
        master.discard(new, self._buried)

    def _buried(self) -> None:
        """What waited for the new generation when it died is with the old one now."""
        if self.lost is not None:
            self.lost["rescued"] = self.new.rescued  # the same object is in ``last_upgrade``

    # --- telling --------------------------------------------------------------------------------------------

    def enter(self, step: str) -> None:
        """One of ``STEPS``, which may have a word more; empty at the end."""
        assert not step or step.split()[0] in STEPS
        now = time.monotonic()
        if self.step:
            self.steps.append((self.step, now - self._step_began))
        self.step, self._step_began = step, now
        self.tell({"event": "step", "step": step, "generation": self.new.number, "seconds": now - self.began})

    def _so_far(self) -> str:
        """How long the step under way has taken."""
        return format_duration(round(time.monotonic() - self._step_began, 3))

    def _passed(self, what: str, command: str) -> None:
        self.master.say(f"{what} of {self.new} passed in {self._so_far()}: {command}")

    def tell(self, event: dict[str, Any]) -> None:
        for watcher in self.watchers:
            watcher(event)

    def _end(self, result: str, reason: str) -> None:
        self.enter("")
        self.result, self.reason = result, reason
        self.at = time.time()
        self.took = time.monotonic() - self.began

    def progress(self) -> dict[str, Any]:
        """Where it is, for who watches: ``in_flight`` connections of the old generation, seconds until ``deadline``."""
        return {
            "step": self.step,
            "generation": self.new.number,
            "seconds": time.monotonic() - self.began,
            "in_flight": self.master.connections(self.old),
            "deadline": self._time_left(),
        }

    def _time_left(self) -> float | None:
        options, since = self.new.options, time.monotonic() - self._step_began
        limit = {"ready": options.ready_timeout, "settle": options.settle, "probation": options.probation}.get(
            self.step
        )
        return None if limit is None else max(0.0, limit - since)

    def summary(self) -> dict[str, Any]:
        """``last_upgrade`` of the status."""
        return {
            "result": self.result or "under way",
            "reason": self.reason,
            "asked": self.asked,
            "step": self.step,
            "held": self.held and not self.result and not self.promoted.done,
            "from": self.old.number,
            "to": self.new.number,
            "seconds": self.took if self.took is not None else time.monotonic() - self.began,
            "steps": [{"step": step, "seconds": seconds} for step, seconds in self.steps if step],
            "at": self.at,
            "lost": self.lost,
            "release": self.new.release or None,
            "last_lines": self.last_lines,
        }
