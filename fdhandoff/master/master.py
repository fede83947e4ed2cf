"""The master itself: what it owns, what it is asked, and what it answers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque

from .. import __version__, registry
from ..deadline import format_duration
from ..errors import OLD, HandoffError, InProgress, UpgradeError
from ..signals import StopRequests
from ..system.processes import become_subreaper, members, reap_all
from . import journal, resume
from .loop import Loop
from .outlets import Outlet, open_outlets
from .rollout import Rollout, retire
from .run import DRAINING, ENDED, SERVING, STARTING, STOPPING, Run
from .tasks import Cancelled, Task, first, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from ..control import Endpoint, Reply
    from .options import Options

VERBS = ("status", "upgrade", "upgrade-master", "rollback", "stop", "hurry", "abort", "hold", "promote")
_HISTORY = 10
_REAP_SECONDS = 30.0


class Master:
    """``configure()`` returns the options as they are now: it is asked at the start and again at each upgrade."""

    def __init__(self, configure: Callable[[], Options], say: Callable[[str], object]) -> None:
        self.configure = configure
        self.options = configure()
        self.say = say
        self.loop = Loop()
        self.outlets: list[Outlet] = []
        self.current: Run | None = None
        self.runs: list[Run] = []
        self.history: deque[dict[str, Any]] = deque(maxlen=_HISTORY)
        self.rollout: Rollout | None = None
        self.last_upgrade: dict[str, Any] | None = None
        self.state = STARTING
        self.since = time.time()
        self.endpoint: Endpoint | None = None
        self.numbers = 0
        self._upgrade_wanted = False
        self._coalesced = 0
        self.upgrades = 0
        self.failures = 0
        self._stops = StopRequests()
        self._exit_status = 0
        self.slots = self.options.max_draining + 2
        self._before: dict[int, Any] = {}

    # --- life -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """From the first bind to the last connection; returns the exit status."""
        state = resume.inherited(os.environ)
        if state is not None and resume.is_dry_run(os.environ):
            return resume.rehearse(self, state)
        try:
            self._open(state)
            if self.current is None:
                self.spawn(self._begin())
            else:
                self._go_on(state)
            self.loop.run()
        finally:
            self._close()
        return self._exit_status

    def _open(self, state: dict[str, Any] | None) -> None:
        become_subreaper()
        if state is not None:
            resume.resume(self, state)
        else:
            self._take_the_path()
            if not self.outlets:
                for position, text in enumerate(self.options.binds):
                    self.outlets += open_outlets(text, switch=self.options.switch, slots=self.slots, position=position)
            for outlet in self.outlets:
                self.say(f"listening on {outlet.name} {outlet.address} (switch: {outlet.mode})")
        if self.endpoint is not None:
            self.endpoint.why_not = "a master serves here: ask it to upgrade"
            for verb in VERBS:
                self.endpoint.verbs[verb] = self._in_loop(getattr(self, f"_verb_{verb.replace('-', '_')}"))
        for name in ("SIGHUP", "SIGUSR2", "SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGTTIN", "SIGTTOU", "SIGWINCH"):
            number = getattr(signal, name)
            self._before[number] = signal.signal(
                number, lambda number, _: self.loop.call(lambda: self._signalled(number))
            )
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: self.loop.call(self._reap))

    def _take_the_path(self) -> None:
        """Nobody else answers there now. If a master died there, what it left is ours."""
        if self.options.path is None:
            return
        self.endpoint = registry.obtain(self.options.path)
        left = journal.read(journal.path_of(self.endpoint.path))
        if left is not None:
            resume.readopt(self, left)

    def _go_on(self, state: dict[str, Any] | None) -> None:
        """With generations that serve already."""
        assert self.current is not None
        self.state = SERVING
        self.current.state, self.current.share = SERVING, 1.0
        self.current.watch_over()
        self.changed()
        self.say(f"{self.current} goes on serving")
        if state is not None:
            resume.answer(state, {"state": self.state, "version": __version__})
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.endpoint is not None and self.options.path is not None:
            journal.remove(journal.path_of(self.endpoint.path))
            registry.remove(self.options.path)
        for outlet in self.outlets:
            outlet.close(unlink=True)
        self.loop.close()

    async def _begin(self) -> None:
        """The first generation: if it can't serve, its exit status is ours."""
        run = self._new_run(self.options)
        self.current = run
        try:
            for outlet in self.outlets:
                outlet.choose(run.slot)
            rollout = Rollout(self, run, run)
            await rollout._start()
        except (HandoffError, OSError, ValueError) as error:
            self.say(f"{run} could not be started: {error}")
            ended = run.exit
            run.kill()
            self._exit_status = 1 if ended is None else 128 + ended.signal if ended.signal else ended.status or 1
            self.loop.stop()
            return
        run.state, run.share = SERVING, 1.0
        run.watch_over()
        self.state = SERVING
        self.changed()
        self.say(f"{run} serves")

    def spawn(self, coroutine: Coroutine[Any, None, Any]) -> Task[Any]:
        """Runs it; what it fails with unexpectedly is shown."""
        task: Task[Any] = Task(self.loop, coroutine)

        def look() -> None:
            error = task.error
            if error is not None and not isinstance(error, (HandoffError, OSError, ValueError, Cancelled)):
                sys.excepthook(type(error), error, error.__traceback__)

        task.when_done(look)
        return task

    def _new_run(self, options: Options) -> Run:
        taken = {run.slot for run in self.runs}
        slot = next(slot for slot in range(self.slots) if slot not in taken)
        self.numbers += 1
        sockets = []
        for outlet in self.outlets:
            for wrong in outlet.mend(slot):
                self.say(f"{outlet.name}: {wrong} (repaired)")
            sockets.append((outlet.name, outlet.give(slot)))
        run = Run(self.loop, self.numbers, slot, options, sockets, self.say)
        self.runs.append(run)
        return run

    def changed(self) -> None:
        """Something has changed that a new master must know, should this one die."""
        if self.endpoint is None:
            return
        try:
            journal.write(journal.path_of(self.endpoint.path), resume.snapshot(self))
        except OSError as error:
            self.say(
                f"the journal can't be written ({error}): if this master dies now, its generations are not found again"
            )

    # --- upgrade --------------------------------------------------------------------------------------------

    def upgrade(self, watcher: Callable[[dict[str, Any]], object] | None = None) -> Task[None]:
        """Begins one, or raises why not."""
        if self.rollout is not None:
            raise InProgress(f"an upgrade to {self.rollout.new} is under way (step {self.rollout.step})")
        if self.state != SERVING or self.current is None:
            raise UpgradeError(f"the service is {self.state}: it can't be upgraded now", serving=OLD)
        draining = [run for run in self.runs if run.state in (DRAINING, STOPPING)]
        if len(draining) >= self.options.max_draining:
            raise UpgradeError(
                f"{len(draining)} old generations still drain ({', '.join(str(run.number) for run in draining)}), "
                "as many as --max-draining allows: wait, or end their drain with hurry",
                serving=OLD,
            )
        self.options = self.configure()
        rollout = Rollout(self, self.current, self._new_run(self.options))
        if watcher is not None:
            rollout.watchers.append(watcher)
        self.rollout = rollout
        return self.spawn(self._upgrade(rollout))

    async def _upgrade(self, rollout: Rollout) -> None:
        self.upgrades += 1
        try:
            await rollout.run()
        except (HandoffError, OSError, ValueError) as error:
            self.failures += 1
            self.say(f"upgrade to {rollout.new} failed: {error}; {rollout.old} serves")
            raise
        finally:
            self.last_upgrade = rollout.summary()
            self.rollout = None
            self.changed()
            if self._upgrade_wanted and self.state == SERVING:
                self._upgrade_wanted = False
                self.loop.call(self._upgrade_by_signal)
        took = format_duration(time.monotonic() - rollout.began)
        self.say(f"upgraded from {rollout.old} to {rollout.new} in {took}")

    def _upgrade_by_signal(self) -> None:
        if self.rollout is not None:
            self._upgrade_wanted = True
            self._coalesced += 1
            return
        try:
            self.upgrade()
        except HandoffError as error:
            self.say(f"no upgrade: {error}")
        except (OSError, ValueError) as error:
            self.say(f"no upgrade: the configuration can't be read: {error}")

    def retire(self, run: Run) -> None:
        self.spawn(retire(self, run))

    def discard(self, run: Run) -> None:
        """The generation is over; once its last process is gone its slot is free."""

        def gone() -> None:
            if run in self.runs:
                self.runs.remove(run)
                for outlet in self.outlets:
                    outlet.leave(run.slot)
                self.history.append(self._describe(run))
                self.changed()

        if not run.alive and run.state != ENDED:
            run.kill()  # nothing lives: only what was still to be restarted is given up
        run.ended.when_done(gone)

    def connections(self, run: Run) -> int:
        """How many established connections the generation still has, as the kernel says."""
        pids = {pid for leader in run.pids for pid in members(leader)}
        return sum(outlet.connections(pids) for outlet in self.outlets)

    # --- stop -----------------------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """Drains everything and ends. A second call hurries."""
        if self.state == STOPPING:
            self.hurry()
            return
        self.state = STOPPING
        self.say(f"stopping: {why}")
        self.spawn(self._stop())

    async def _stop(self) -> None:
        if self.rollout is not None:
            self.rollout.aborted.set("the service is stopped")
            while self.rollout is not None:
                await sleep(self.loop, 0.02)
        options = self.options
        if options.pre_stop_delay:
            await sleep(self.loop, options.pre_stop_delay)
        runs = list(self.runs)
        for run in runs:
            if run.state != STOPPING:
                run.stop()
        late = None if options.grace is None else sleep(self.loop, options.grace)
        for run in runs:
            if late is None:
                await run.ended
            else:
                await first(run.ended, late)
        for run in runs:
            if not run.ended.done:
                self.say(f"{run} did not end within {format_duration(options.grace or 0)}; it is killed")
                run.kill()
                await run.ended
        last = self.current.exit if self.current is not None else None
        if last is not None and last.signal not in (0, None):
            asked = last.signal in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
            self._exit_status = 0 if asked else 128 + last.signal
        elif last is not None and last.status is not None:
            self._exit_status = last.status
        self.say("stopped")
        self.loop.stop()

    def hurry(self) -> None:
        """Ends every drain now."""
        for run in self.runs:
            if run.state in (DRAINING, STOPPING):
                run.kill()

    # --- signals --------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGHUP, signal.SIGUSR2):
            self._upgrade_by_signal()
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            verdict = self._stops.judge(by_signal=True)
            if verdict == StopRequests.FIRST:
                self.stop(signal.Signals(number).name)
            elif verdict == StopRequests.HURRY:
                self.hurry()
        elif self.current is not None:
            self.current.signal(number)

    def _reap(self) -> None:
        """Orphans that became ours. Our own processes are waited for by their pidfds."""
        ours = {process.pid for run in self.runs for process in run.processes}
        reap_all(ours | self.loop.waited)

    # --- verbs ----------------------------------------------------------------------------------------------

    def _in_loop(self, verb: Callable[[dict[str, Any], Reply], None]) -> Callable[[dict[str, Any], Reply], None]:
        """The control thread asks, the loop's thread answers."""

        def ask(body: dict[str, Any], reply: Reply) -> None:
            def answer() -> None:
                try:
                    verb(body, reply)
                except HandoffError as error:
                    reply.fail(type(error).__name__, str(error), serving=error.serving)
                except (OSError, ValueError) as error:
                    reply.fail("refused", str(error), serving=OLD)

            self.loop.call(answer)

        return ask

    def _verb_status(self, _: dict[str, Any], reply: Reply) -> None:
        reply.done(self.status())

    def _verb_upgrade(self, body: dict[str, Any], reply: Reply) -> None:
        task = self.upgrade(reply.event)
        rollout = self.rollout
        assert rollout is not None
        if body.get("wait", True) is False:
            reply.done({"upgrade": rollout.summary()})
            return

        def finished() -> None:
            if task.error is None:
                reply.done({"upgrade": rollout.summary()})
            else:
                reply.fail("failed", str(task.error), serving=OLD, upgrade=rollout.summary())

        task.when_done(finished)

    def _verb_rollback(self, _: dict[str, Any], reply: Reply) -> None:
        self._verb_abort({"reason": "rolled back by the operator"}, reply)

    def _verb_abort(self, body: dict[str, Any], reply: Reply) -> None:
        if self.rollout is None:
            raise UpgradeError("no upgrade is under way, so there is nothing to take back", serving=OLD)
        self.rollout.aborted.set(str(body.get("reason", "aborted by the operator")))
        reply.done()

    def _verb_hold(self, _: dict[str, Any], reply: Reply) -> None:
        if self.rollout is None:
            raise UpgradeError("no canary is under way", serving=OLD)
        self.rollout.held = True
        reply.done()

    def _verb_promote(self, _: dict[str, Any], reply: Reply) -> None:
        if self.rollout is None:
            raise UpgradeError("no canary is under way", serving=OLD)
        self.rollout.promoted.set(None)
        reply.done()

    def _verb_upgrade_master(self, _: dict[str, Any], reply: Reply) -> None:
        if self.rollout is not None or self.state != SERVING:
            raise InProgress("the master is not upgraded while a generation is: wait for its outcome")
        self.spawn(resume.replace_master(self, reply))

    def _verb_stop(self, _: dict[str, Any], reply: Reply) -> None:
        self.stop(f"{reply.asker} asked for it")
        reply.done({"state": self.state})

    def _verb_hurry(self, _: dict[str, Any], reply: Reply) -> None:
        self.hurry()
        reply.done()

    # --- status ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """See docs/reference/cli.md."""
        slot = self.current.slot if self.current is not None else 0
        return {
            "service": self.options.name,
            "master": {"pid": os.getpid(), "since": self.since, "version": __version__},
            "state": "upgrading" if self.rollout is not None and self.state == SERVING else self.state,
            "listeners": [
                {
                    "name": outlet.name,
                    "address": outlet.address,
                    "switch": outlet.mode,
                    "queue": outlet.waiting(slot),
                    "backlog": outlet.backlog(slot),
                }
                for outlet in self.outlets
            ],
            "generations": [*self.history, *(self._describe(run) for run in self.runs)],
            "last_upgrade": self.rollout.summary() if self.rollout is not None else self.last_upgrade,
            "counters": {
                "upgrades": self.upgrades,
                "failed": self.failures,
                "coalesced": self._coalesced,
            },
        }

    def _describe(self, run: Run) -> dict[str, Any]:
        left = None if run.deadline is None else max(0.0, run.deadline - time.monotonic())
        return {
            "number": run.number,
            "pids": run.pids,
            "state": run.state,
            "since": run.since,
            "active": self.connections(run) if run.alive else 0,
            "share": run.share,
            "deadline": left,
            "exit": None if run.exit is None else {"status": run.exit.status, "signal": run.exit.signal},
        }
