"""The master itself: what it owns, what it is asked, and what it answers."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
from collections import deque
from functools import partial

from .. import __version__, control, registry
from ..deadline import after, format_duration
from ..errors import (
    OLD,
    HandoffError,
    InProgress,
    PidfileLocked,
    RolledBack,
    SystemCallError,
    UpgradeError,
    sentence,
)
from ..signals import StopRequests
from ..system.environment import GENERATION, connections_of
from ..system.fds import close_all
from ..system.memory import open_counters
from ..system.paths import connect_control
from ..system.processes import adopted, become_subreaper, members, reap_all, variable_of
from . import journal, resume
from .announce import Announcer
from .drain import bury, relays, rescue, retire, serve_stranded
from .ears import Ears, in_words
from .ending import Ending
from .giver import Giver
from .keeping import Keeper
from .listeners import Change, forbid_canary_on, open_all
from .loop import Loop, Timer
from .options import NEVER, forbid_canary, release_of
from .outlet import Outlet
from .output import Output, end_all
from .readiness import run_command
from .report import describe
from .rights import give_up
from .rollout import Rollout
from .room import memory_shortage
from .run import DRAINING, ENDED, PROBATION, SERVING, STARTING, STOPPING, Run
from .store import Store
from .tasks import Cancelled, Task, sleep
from .verbs import install

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Coroutine, Sequence
    from typing import Any

    from ..control import Endpoint
    from ..ledger import Ledger
    from ..system.pidfile import Pidfile
    from ..system.process import Process
    from .adopting import Adopting
    from .health import MasterHealth
    from .options import CanaryStep, Options
    from .recycling import Recycler
    from .taking import Taking
    from .telling import Teller
    from .watching import Release, Watcher

_HISTORY = 10
_REAP_SECONDS = 30.0
# How long our end may wait for whoever takes what was written last.
_OUTPUT_SECONDS = 5.0


class Master:
    """``configure()`` returns the options as they are now: it is asked at the start and again at each upgrade."""

    def __init__(
        self,
        configure: Callable[[], Options],
        say: Callable[[str], object],
        given: Sequence[tuple[str, socket.socket]] = (),
    ) -> None:
        """``given``: listeners that somebody passed to us, by name; ours from here on."""
        self._given = list(given)
        self.configure = configure
        self.options = configure()
        self.tells_events = self.options.log_format == "json"
        self.say = say if not self.tells_events else lambda text: self.event("message", text=str(text))
        self.loop = Loop()
        self.outlets: list[Outlet] = []
        self.current: Run | None = None
        self.runs: list[Run] = []
        self.outputs: set[Output] = set()  # those with a relay, also of generations that have ended
        self.history: deque[dict[str, Any]] = deque(maxlen=_HISTORY)
        self.rollout: Rollout | None = None
        self.last_upgrade: dict[str, Any] | None = None
        self.state = STARTING
        self.since = time.time()
        self.endpoint: Endpoint | None = None
        self._ear: control.Loop | None = None
        self.health: MasterHealth | None = None
        self.numbers = 0
        self._upgrade_wanted = False
        self.coalesced = 0
        self.more_workers = 0  # than the configuration says: TTIN and TTOU
        self.keeper = Keeper(self)
        self.ears = Ears(self)
        self._next_restart: Timer | None = None
        self.recycler: Recycler | None = None  # once it is wanted
        self.recycled = 0
        self.watcher: Watcher | None = None  # of where new releases appear
        self.teller: Teller | None = None  # of what became of upgrades
        self.upgrades = 0
        self.failures = 0
        self.ledger: Ledger | None = None  # once a generation counts
        self._stops = StopRequests()
        self.ending = Ending(self)
        self.giver = Giver(self)
        self.taking: Taking | Adopting | None = None
        self.announcer = Announcer(self, os.environ)
        self.store = Store(self, self._given)
        self.slots = self.options.max_draining + 2
        self._before: dict[int, Any] = {}
        self._gave_back = False
        self._pidfile: Pidfile | None = None
        self._pidfile_to_take: Pidfile | None = None
        self.shortage = ""  # of memory for a second generation, at the last look
        self._journal_fails = False
        self._journal_is_ours = False  # until then it is that of a master that died: a start that fails leaves it

    # --- life -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """From the first bind to the last connection; returns the exit status."""
        state = resume.inherited(os.environ)
        if state is not None and resume.is_dry_run(os.environ):
            return resume.rehearse(self, state)
        try:
            self._open(state)
            give_up(self)
            if self.current is None:
                self.spawn(self._begin())
            else:
                self._go_on(state)
            self.loop.run()
        finally:
            self._close()
        return self.ending.exit_status

    def _open(self, state: dict[str, Any] | None) -> None:
        self.announcer.begin(self.options.ready_fd if state is None else -1)
        locked = self._claim_pidfile()
        become_subreaper()
        if self.options.watch:
            from .watching import Watcher  # late: most services are told

            self.watcher = Watcher(self)
        if self.options.path is not None:
            self._listen_to_operators()
        if state is not None:
            resume.resume(self, state)
        else:
            self._take_the_path()
            if locked is not None and self.taking is None:
                raise locked
            if not self.outlets:
                options = self.options
                kept = self.store.reopen(options.binds, self._given)
                self.outlets = open_all(
                    self._given, options.binds, switch=options.switch, slots=self.slots, say=self.say, kept=kept
                )
            for outlet in self.outlets:
                self.say(f"listening on {outlet.name} {outlet.address} ({outlet.origin}, switch: {outlet.mode})")
            forbid_canary_on(self.outlets, self.options)
        self._open_health(state)
        self._answer()
        self.loop.heed_signals()
        for name in ("SIGHUP", "SIGUSR2", "SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGTTIN", "SIGTTOU", "SIGWINCH"):
            number = getattr(signal, name)
            self._before[number] = signal.signal(
                number, lambda number, _: self.loop.call(lambda: self._signalled(number))
            )
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: self.loop.call(self._reap))

    def _claim_pidfile(self) -> PidfileLocked | None:
        """Ours from here on; or why not, where it may be that of an owner from whom we are about to take over."""
        if not self.options.pidfile:
            return None
        from ..system.pidfile import Pidfile  # late: most services have none

        pidfile = Pidfile(self.options.pidfile)
        try:
            pidfile.claim()
        except PidfileLocked as error:
            if self.options.takeover == NEVER:
                raise
            self._pidfile_to_take = pidfile
            return error
        self._pidfile = pidfile
        return None

    def _take_pidfile(self) -> None:
        """The service is ours, and so is the file."""
        pidfile, self._pidfile_to_take = self._pidfile_to_take, None
        if pidfile is None:
            return
        try:
            pidfile.take_over()
            self._pidfile = pidfile
        except HandoffError as error:
            self.say(f"the pidfile stays what it was: {error}")

    def _answer(self) -> None:
        """From here on the handoff path, if it is ours, answers operators."""
        if self.endpoint is not None:
            self.endpoint.allow_uids = frozenset(self.options.allow_uids)
            self.endpoint.why_not = "starting"
            self.endpoint.generation = self.numbers
            install(self)

    def _open_health(self, state: dict[str, Any] | None) -> None:
        address, path = self.options.health, self.options.health_file
        if not address and not path:
            return
        from .health import MasterHealth  # late: most services have none

        self.health = MasterHealth(self, address, path, resume.health_sockets(state) if state is not None else None)
        if state is None:
            for text in self.health.addresses:
                self.say(f"answering for the service's health on {text}")

    def _listen_to_operators(self) -> None:
        """In this loop: a thread for it would cost more than all that it says."""
        ear = self._ear = control.Loop(own_thread=False)
        registry.answer_by(ear)
        timer: Timer | None = None

        def heard() -> None:
            nonlocal timer
            ear.turn()
            if timer is not None:
                timer.cancel()
            patience = ear.patience()
            timer = None if patience is None else self.loop.after(patience, heard)

        self.loop.on_readable(ear.fileno(), heard)

    def _take_the_path(self) -> None:
        """Ours, or its owner's until we take over. If a master died there, what it left is ours."""
        options = self.options
        if options.path is None:
            return
        if not options.source and not options.adopt and self._take_over(options.path):
            return
        mode, group = options.socket_mode, options.socket_group or None
        self.endpoint = registry.obtain(options.path, mode=mode, group=group)
        left = resume.read_journal(self, journal.path_of(self.endpoint.path))
        if options.adopt and (left is None or not resume.readopt(self, left, self._given)):
            from .adopting import Adopting

            self.taking = Adopting(self, options.adopt)
            self.outlets = self.taking.open(self._given)
        elif (left is None or not resume.readopt(self, left, self._given)) and options.source:
            self._take_over(options.source)

    def _take_over(self, source: str) -> bool:
        """Whether there is an owner, from whom we are to take."""
        if self.options.takeover == NEVER:
            return False
        if not self.options.source:
            owner = connect_control(source, after(self.options.ready_timeout)).sock
            if owner is None:
                return False
            owner.close()
        from .taking import take_over  # late: most masters begin afresh, and need not carry it

        taking = self.taking = take_over(self, source)
        if taking is None:
            return False
        self.numbers = taking.number - 1
        self.outlets = taking.open(self._given)
        return True

    def _go_on(self, state: dict[str, Any] | None) -> None:
        """With generations that serve already."""
        assert self.current is not None
        self.state = SERVING
        self.current.state, self.current.share, self.current.deadline = SERVING, 1.0, None
        run = self.current
        while len(run.staying) > run.workers:
            run.dismiss(run.staying[-1])  # the master died while this was to replace another
        for process in run.processes:
            if process not in run.staying:
                self.see_off(run, process)
        self.current.watch_over()
        self._plan_restart()
        self.changed()
        self.ears.attend(self.current)
        self.say(f"{self.current} goes on serving")
        self.spawn(serve_stranded(self))
        self.giver.offer()
        self.announcer.ready()
        if self.watcher is not None:
            self.watcher.serve(self.current)
        if state is not None:
            resume.answer(state, {"state": self.state, "version": __version__})
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ear is not None:
            self.loop.forget(self._ear.fileno())
        if self.watcher is not None:
            self.watcher.close()
        # First, so that what follows has descriptors, if it was for want of them that nothing could be started.
        self.giver.close()
        self.store.close()
        if self.ledger is not None:
            self.ledger.close()
        self._close_outlets()
        if self.endpoint is not None and self.options.path is not None:
            if self._journal_is_ours:
                self._undo(partial(journal.remove, journal.path_of(self.endpoint.path)))
            self._undo(partial(registry.remove, self.options.path))
            if os.path.isdir(connections_of(self.options.path)):
                from ..heir import remove_directory

                self._undo(partial(remove_directory, connections_of(self.options.path)))
        if self.health is not None:
            self._undo(self.health.close)
        self.announcer.close()
        self.ears.close()
        end_all(self.outputs, _OUTPUT_SECONDS)
        if self._ear is not None:
            registry.answer_by(None)
            self._ear.stop()
        if self._pidfile is not None:
            self._undo(self._pidfile.release)
        self.loop.close()

    def _undo(self, what: Callable[[], object]) -> None:
        """At the end nothing is left to be saved: what can't be removed is said, and the rest is."""
        try:
            what()
        except (HandoffError, OSError) as error:
            self.say(f"something is left behind: {sentence(error)}")

    def _close_outlets(self) -> None:
        if self.taking is not None and (self._gave_back or not self.taking.committed):
            self._undo(partial(self.taking.refuse, self.outlets))
        else:
            for outlet in self.outlets:
                given = partial(outlet.part, self.giver.slot, self.giver.whole)
                self._undo(given if self.giver.given else partial(outlet.close, unlink=True))
        if self.taking is not None:
            self._undo(self.taking.close)

    def _remark(self, options: Options) -> None:
        """What is to be known of the server that it starts."""
        for remark in options.remarks:
            self.say(remark)

    async def _begin(self) -> None:
        """The first generation: if it can't serve, its exit status is ours."""
        if self.watcher is not None:
            try:
                self.options = await self.watcher.begin()
            except (HandoffError, OSError, ValueError) as error:
                self._refuse_to_start(sentence(error), 125)
                return
            if self.state != STARTING:
                return  # told to stop meanwhile
        self._remark(self.options)
        run = self._new_run(self.options, self.outlets, self.store.fullest(self.outlets))
        self.current = run
        try:
            if self.taking is None:
                for outlet in self.outlets:
                    outlet.choose(run.slot)
                self.changed()
            await Rollout(self, run, run).start()
            if self.taking is not None and self.state == STARTING:
                await self.taking.commit(run)
                self._answer()
        except (HandoffError, OSError, ValueError) as error:
            how = "could not be started" if self.taking is None else "does not serve"
            why = f"{run} {how}: {sentence(error)}"
            if self.watcher is not None and self.state == STARTING:
                self.watcher.did_not_start(run, sentence(error))
            status = _status_of(run, error)  # before we kill it
            run.kill()
            await run.ended
            self.end_strays(run)
            self._refuse_to_start(why, status)
            return
        if self.state != STARTING:
            return  # told to stop meanwhile
        run.state, run.share = SERVING, 1.0
        run.watch_over()
        self.state = SERVING
        self._plan_restart()
        self.changed()
        self.say(f"{run} serves")
        self.spawn(serve_stranded(self))
        self.switched_to(run)
        self.giver.offer()
        self._take_pidfile()
        self.announcer.ready()
        self._upgrade_if_wanted()
        if self.watcher is not None:
            self.watcher.serve(run)

    def _refuse_to_start(self, why: str, status: int) -> None:
        self.say(why)
        self.announcer.failed(why)
        self.ending.exit_status = status
        self.loop.stop()

    def gave_back(self, run: Run) -> None:
        """Whom we had taken the service from has it again, as our first generation died."""
        self._gave_back = True
        if self.taking is not None and self.taking.gives_path:
            self.endpoint = None
        self.ending.exit_status = _status_of(run, RolledBack("", serving=OLD))
        self.state = STOPPING
        self.spawn(self._end_after_giving_back())

    async def _end_after_giving_back(self) -> None:
        """What waited for our generation is with the old owner now, through us."""
        for run in list(self.runs):
            rescue(self, run.slot)
            run.kill()
            await run.ended
        until = time.monotonic() + (self.options.grace or _REAP_SECONDS)
        while time.monotonic() < until and relays():
            await sleep(self.loop, 0.05)
        self.loop.stop()

    def spawn(self, coroutine: Coroutine[Any, None, Any]) -> Task[Any]:
        """Runs it; what it fails with unexpectedly is shown."""
        task: Task[Any] = Task(self.loop, coroutine)

        def look() -> None:
            error = task.error
            if error is not None and not isinstance(error, (HandoffError, OSError, ValueError, Cancelled)):
                sys.excepthook(type(error), error, error.__traceback__)

        task.when_done(look)
        return task

    def _new_run(self, options: Options, outlets: Sequence[Outlet], slot: int = -1) -> Run:
        taken = {run.slot for run in self.runs} | self.store.orphans | self.giver.cleaning
        if self.taking is not None:
            taken |= self.taking.reserved
            slot = self.taking.slot if not self.taking.committed else -1
        if slot < 0:
            slot = next((slot for slot in range(self.slots) if slot not in taken), -1)
        if slot < 0:
            raise UpgradeError("too many generations have not ended yet: wait a moment", serving=OLD)
        release = release_of(options.release)
        self.numbers += 1
        sockets = []
        for outlet in outlets:
            if wrong := outlet.mend(slot):
                self.say(f"{outlet.name}: {in_words(wrong)} by an earlier generation; repaired")
            sockets.append((outlet.name, outlet.give(slot)))
        run = Run(self.loop, self.numbers, slot, options, sockets, self.say, self.changed)
        run.release = release
        run.output = self.output_of(run)
        run.workers = max(1, run.workers + self.more_workers)
        self.runs.append(run)
        return run

    def output_of(self, run: Run) -> Output:
        return Output(self.loop, run.number, run.options, self.say, self.outputs)

    def changed(self) -> None:
        """Something has changed that a new master must know, should this one die, or the supervisor."""
        self.announcer.changed()
        if not self.giver.given:
            self.store.sync()
        if self.health is not None:
            self.health.changed()
        if self.endpoint is None or self.giver.committed:
            return
        path = journal.path_of(self.endpoint.path)
        self._journal_is_ours = True
        try:
            journal.write(path, resume.snapshot(self))
        except OSError as error:
            if not self._journal_fails:  # said once, not at every change
                self.say(
                    f"the journal {path} can't be written ({error.strerror}): if this master dies, the next one does not "
                    "find the generations that were started since"
                )
            self._journal_fails = True
        else:
            if self._journal_fails:
                self.say(f"the journal {path} is written again")
            self._journal_fails = False

    def configured(self, release: Release | None = None) -> Options:
        """As the configuration is now: for a generation of ``release``, where releases are watched for."""
        options = self.configure()
        return options if self.watcher is None else self.watcher.pinned(options, release)

    def event(self, event: str, number: int | None = None, /, **fields: Any) -> None:
        """One of ``events.EVENTS``, of generation ``number`` (default: the one that serves)."""
        if not self.tells_events:
            return
        from ..events import record, write  # late: most masters speak in sentences

        if number is None:
            number = self.current.number if self.current is not None else 0
        write(record(event, self.options.name, number, fields))

    @property
    def wants_traffic(self) -> bool:
        """Whether new connections are answered, and welcome."""
        return self.state == SERVING and self.current is not None and self.current.alive

    def count(self, run: Run) -> None:
        """From here on what the generation counts is known, if it does, however it ends."""
        for pid in run.pids:
            if self.ledger is None:
                found = open_counters(pid, lambda _: True)
                if not found:
                    continue
                close_all(found)
                self.restore_counted({})
            if self.ledger is not None:
                run.counted.update(self.ledger.watch_process(pid))

    def restore_counted(self, past: dict[str, int]) -> None:
        from ..ledger import Ledger  # late: most programs do not count

        self.ledger = Ledger()
        self.ledger.restore(past)

    # --- upgrade --------------------------------------------------------------------------------------------

    def refusal(self) -> str:
        """Why no upgrade can begin now; empty when one can."""
        if self.rollout is not None:
            return f"an upgrade to {self.rollout.new} is under way (step {self.rollout.step})"
        if self.state != SERVING or self.current is None:
            return f"the service is {self.state}: it can't be upgraded now"
        if self.giver.busy:
            return "somebody is taking the service over: wait for the outcome"
        if self.taking is not None and self.taking.in_probation:
            return (
                "the service was taken over a moment ago, and may have to be given back: wait for the end of probation"
            )
        draining = [run for run in self.runs if run.state in (DRAINING, STOPPING)]
        if len(draining) >= self.options.max_draining:
            return (
                f"{len(draining)} old generations still drain ({', '.join(str(run.number) for run in draining)}), "
                "as many as --max-draining allows: wait, or end their drain with hurry"
            )
        return ""

    def upgrade(
        self,
        watcher: Callable[[dict[str, Any]], object] | None = None,
        *,
        asked: str = "",
        canary: list[CanaryStep] | None = None,
        release: str = "",
        to: Release | None = None,
    ) -> Task[None]:
        """Begins one, or raises why not. ``asked``: by whom, or why; ``canary`` and ``release`` instead of the configured ones,
        this time; ``to``: one of those that are watched for."""
        refusal = self.refusal()
        if refusal and self.rollout is not None:
            raise InProgress(refusal)
        if refusal or self.current is None:
            raise UpgradeError(refusal, serving=OLD)
        options = self.configured(to)
        if canary is not None:
            forbid_canary(canary, options)
        change = Change(self, options.binds)
        try:
            forbid_canary_on(change.given(), options if canary is None else options.replaced({"canary": canary}))
            new = self._new_run(options if canary is None else options.replaced({"canary": canary}), change.given())
        except BaseException:
            change.undo()
            raise
        new.release = release or new.release
        self.shortage = memory_shortage(self)
        if self.shortage:
            self.say(self.shortage)
        if options.remarks != self.options.remarks:
            self._remark(options)
        before, self.options = self.options, options
        change.begin(self.current, new)
        rollout = Rollout(self, self.current, new, asked)
        rollout.watchers.append(lambda _: self.announcer.changed())
        if watcher is not None:
            rollout.watchers.append(watcher)
        self.rollout = rollout
        if self.watcher is not None:
            self.watcher.trying(new)
        self.announcer.reloading()
        told = {"from": rollout.old.number, "to": new.number}
        self.event("upgrade.begun", **told, asked=asked)
        rollout.watchers.append(
            lambda one: (
                self.event("upgrade.step", to=new.number, step=one["step"], seconds=one["seconds"])
                if one["event"] == "step" and one["step"]
                else None
            )
        )
        self.say(f"upgrade from {rollout.old} to {new} begins: {asked}")
        return self.spawn(self._upgrade(rollout, change, before))

    async def _upgrade(self, rollout: Rollout, change: Change, before: Options) -> None:
        self.upgrades += 1
        failure: BaseException | None = None
        try:
            await rollout.run()
        except BaseException as error:
            failure = error
            change.undo()
            self.options = before
            if isinstance(error, (HandoffError, OSError, ValueError)):
                self.failures += 1
                serves = "" if isinstance(error, RolledBack) else f"; {rollout.old} serves"  # it says so itself
                took = format_duration(round(time.monotonic() - rollout.began, 3))
                self.say(f"upgrade to {rollout.new} failed after {took}: {sentence(error)}{serves}")
            raise
        else:
            change.done()
        finally:
            last = self.last_upgrade = rollout.summary()
            ended = {name: last[name] for name in ("from", "to", "seconds")}
            if last["result"] == "done":
                self.event("upgrade.done", **ended)
            else:
                self.event("upgrade.failed", **ended, result=last["result"], reason=last["reason"])
            self.rollout = None
            if self.watcher is not None:
                self.watcher.decided(rollout, failure)
            self.tell(rollout.new, last, rollout.new.release)
            self.announcer.reloaded()
            self.changed()
            self._plan_restart()
            if self.current is not None:
                self.ears.attend(self.current)
                if self.current.deaf.done:
                    self.ears.replace_again()
            self._upgrade_if_wanted()
        took = format_duration(round(time.monotonic() - rollout.began, 3))
        self.say(f"upgraded from {rollout.old} to {rollout.new} in {took}")

    def plan_no_restart(self) -> None:
        if self._next_restart is not None:
            self._next_restart.cancel()

    def _plan_restart(self) -> None:
        """The next upgrade that nobody asks for (``--restart-every``), counted from the last one, and what workers need."""
        if self._next_restart is not None:
            self._next_restart.cancel()
        every = self.options.restart_every
        self._next_restart = (
            None
            if not every
            else self.loop.after(every, lambda: self.upgrade_unasked(f"--restart-every {format_duration(every)}"))
        )
        self.plan_recycling()

    def _upgrade_if_wanted(self) -> None:
        """By a signal that came while the last one, or the start, was under way."""
        if self._upgrade_wanted and self.state == SERVING:
            self._upgrade_wanted = False
            self.loop.call(lambda: self.upgrade_unasked("asked for before it could begin"))

    def upgrade_unasked(self, why: str) -> None:
        """One that nobody waits for. While another, or the start, is under way all of them together lead to one more after
        it."""
        if self.rollout is not None or self.state == STARTING:
            if not self._upgrade_wanted:
                after = f"the one to {self.rollout.new}" if self.rollout is not None else "the start"
                self.say(f"one more upgrade follows {after}: {why}")
            self._upgrade_wanted = True
            self.coalesced += 1
            self.changed()
            return
        try:
            self.upgrade(asked=why)
        except HandoffError as error:
            self.say(f"no upgrade ({why}): {error}")
        except (OSError, ValueError) as error:
            self.say(f"no upgrade ({why}): the configuration can't be read: {sentence(error)}")

    def switched_to(self, run: Run) -> None:
        """New connections go to another generation from now on: whoever asked to be told is. What becomes of that changes
        nothing."""
        self.event("generation.serves", run.number, since=run.since)
        self.count(run)
        if run.options.post_switch:
            self.spawn(self._post_switch(run))

    async def _post_switch(self, run: Run) -> None:
        failure = await run_command(self.loop, run.options.post_switch, run, run.options.ready_timeout)
        if failure:
            self.say(f"the post-switch command for {run} failed: {failure}")

    def tell(self, run: Run, upgrade: dict[str, Any], release: str) -> None:
        """Whoever asked to be told what becomes of each release is told of this one, by the options of ``run``. ``upgrade``:
        as in ``last_upgrade``. What the end of the service cut short has become of nothing."""
        options = run.options
        if self.state != SERVING or not (options.on_success or options.on_failure or options.webhooks):
            return
        if self.teller is None:
            from .telling import Teller  # late: most services tell nobody

            self.teller = Teller(self)
        self.teller.tell(run, upgrade, release)

    def retire(self, run: Run, *, settled: bool) -> None:
        """It is the old generation now: it drains and ends, unless it is to be kept for a while. ``settled``: nothing is on its
        way to its queue any more."""
        if self.options.keep_old and run.alive and self.state == SERVING:
            self.keeper.keep(run, self.options.keep_old)
        else:
            self.retire_now(run, settled=settled)

    def retire_now(self, run: Run, *, settled: bool = False) -> None:
        self.spawn(retire(self, run, settled=settled))

    def discard(self, run: Run, buried: Callable[[], object] = lambda: None, *, settled: bool = False) -> None:
        """The generation is over; once its last process is gone its slot is free, and it is ``buried``."""

        def gone() -> None:
            buried()
            if run in self.runs:
                self.runs.remove(run)
                for outlet in self.outlets if not self.giver.committed else ():
                    outlet.leave(run.slot)
                self.history.append(describe(self, run))
                how = run.exit
                self.event(
                    "generation.ended",
                    run.number,
                    status=how.status if how is not None else None,
                    signal=how.signal if how is not None else None,
                )
                self.changed()
                # An upgrade's tasks and whoever watched it know each other. Python would let that pile up for a long time in a
                # process that does nothing for days, and memory that is given back late is given back in holes.
                gc.collect()

        if not run.alive and run.state != ENDED:
            run.kill()  # nothing lives: only what was still to be restarted is given up
        run.ended.when_done(lambda: self.spawn(bury(self, run, gone, settled=settled)))

    def connections(self, run: Run) -> int:
        """How many established connections the generation still has, as the kernel says."""
        count = self.connections_of(members(*run.pids, *self._strayed(run)))
        if all(process.alive() for process in run.processes):  # else some may have gone with one that died just now
            run.seen = count, time.monotonic()
        return count

    def _strayed(self, run: Run) -> list[int]:
        """Processes of the generation that left its group and lost their parent: they have become ours."""
        known = {pid for each in self.runs for pid in each.pids} | self.loop.waited
        number = str(run.number)
        return [pid for pid in adopted() if pid not in known and variable_of(pid, GENERATION) == number]

    def end_strays(self, run: Run) -> None:
        """A generation that never served leaves nobody behind, whatever its processes did to get away."""
        for pid in members(*self._strayed(run)):
            self.say(f"process {pid} of {run} had left its group: it is killed, too")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def connections_of(self, pids: Collection[int]) -> int:
        return sum(outlet.connections(pids) for outlet in self.outlets)

    def see_off(self, run: Run, process: Process) -> None:
        """It was told to end, and its generation goes on."""
        from .recycling import see_off

        self.spawn(see_off(self, run, process))

    def plan_recycling(self) -> None:
        """Of the workers of the generation that serves, if it is wanted."""
        run = self.current
        if run is None or (run.options.worker_lifetime is None and run.options.worker_memory is None):
            return
        if self.recycler is None:
            from .recycling import Recycler  # late: most want none

            self.recycler = Recycler(self)
        self.recycler.plan()

    # --- signals --------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGHUP, signal.SIGUSR2):
            self.upgrade_unasked(signal.Signals(number).name)
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            verdict = self._stops.judge(by_signal=True)
            if verdict == StopRequests.FIRST:
                name = signal.Signals(number).name
                if self.state == SERVING:
                    self.ending.drain(name, None)
                elif self.state == DRAINING:
                    # Asked for by the verb: an orchestrator's TERM follows its hook, and must not cut short what that began.
                    self.say(f"{name}: the service drains already; a second signal hurries")
                else:
                    self.ending.stop(name)
            elif verdict == StopRequests.HURRY:
                self.ending.hurry()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._resize(1 if number == signal.SIGTTIN else -1)
        else:
            if number == signal.SIGUSR1:
                self._reopen_log()
            for run in self.runs:
                run.signal(number)

    def _reopen_log(self) -> None:
        if not self.options.log:
            return
        from ..system.logfile import reopen

        try:
            reopen(self.options.log)
        except SystemCallError as error:
            self.say(f"the log stays what it was: {error}")
            return
        for output in list(self.outputs):
            output.go_elsewhere()

    def _resize(self, more: int) -> None:
        """One worker more or less, also in the generations to come."""
        run = self.current
        if run is None or run.state not in (STARTING, SERVING, PROBATION):
            return
        try:
            if more > 0:
                run.add_worker()
            else:
                self.see_off(run, run.remove_worker())
        except (HandoffError, OSError, ValueError) as error:
            self.say(f"the number of workers stays: {sentence(error)}")
            return
        self.more_workers += more
        self.changed()
        self.say(f"{run} has {run.workers} worker{'s' if run.workers > 1 else ''} from now on")

    def _reap(self) -> None:
        """Orphans that became ours. Our own processes are waited for by their pidfds."""
        ours = {process.pid for run in self.runs for process in run.processes}
        reap_all(ours | self.loop.waited)


def _status_of(run: Run, error: Exception) -> int:
    """Of a first generation that can't serve: the command's own, where it has ended, as a shell would say it."""
    if isinstance(error, SystemCallError) and error.call == "execve":
        return 127 if error.errno == errno.ENOENT else 126
    if run.exit is None or (run.exit.status is None and not run.exit.signal):
        return 125
    return 128 + run.exit.signal if run.exit.signal else run.exit.status or 1
