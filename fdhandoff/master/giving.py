"""The master as the old side: whoever came for the service gets it, with the same two-phase commit as everywhere. The master's
generations drain when the new owner has lived through its probation, and then it ends.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from threading import Event, Thread

from .. import registry
from ..deadline import after, format_duration
from ..errors import OLD, Aborted, HandoffError, RolledBack
from ..handoff import Handoff, Offering
from ..inventory import collect
from ..listener import File, Listener
from ..offer import internal_items
from ..system.wake import Wake
from . import journal
from .drain import relays, rescue, serve_stranded
from .options import SHARED
from .resume import with_descriptors
from .run import DRAINING, SERVING, STOPPING
from .strangers import Strangers, holders_of
from .tasks import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..conversation import Conversation
    from ..protocol.messages import Hello
    from .master import Master

#: How a master calls itself when it takes over: it gets all that we have, and not only a listener of each address.
SOFTWARE = "fdhandoff run"
#: The file of our state, and what the names of the descriptors in it begin with.
STATE_FILE, FD_FILE = "fdhandoff.master", "fdhandoff.member."
_SERVING_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_BARRIER_SECONDS = 2.0
_RELAYS_SECONDS = 30.0


class Handover:
    """One attempt, begun at once: the conversation in a thread of its own, what changes the master in the master's loop."""

    def __init__(self, master: Master, conversation: Conversation, hello: Hello) -> None:
        self._master = master
        self._giver = master.giver
        self._handoff: Handoff | None = None
        self._interrupt: Wake | None = Wake()
        self._began = time.monotonic()
        Thread(target=self._run, args=(conversation, hello), name="fdhandoff-giver", daemon=True).start()

    def interrupt(self) -> None:
        """Gives up before the commit; after it, does not wait for the end of probation."""
        if self._interrupt is not None:
            self._interrupt.set()

    # --- in a thread of its own -----------------------------------------------------------------------------

    def _run(self, conversation: Conversation, hello: Hello) -> None:
        assert self._interrupt is not None
        conversation.wake_fd = self._interrupt.fileno()
        files: list[int] = []
        try:
            handoff = self._handoff = Handoff(conversation, self._in_loop(lambda: self._offering(files)))
            handoff.offer(hello)
            self._in_loop(lambda: self._master.say(f"{conversation.peer} takes over, and is not ready yet"))
            handoff.await_ready()
            handoff.commit()
            self._in_loop(lambda: self._committed(handoff))
            handoff.watch()
        except BaseException as error:
            if not conversation.session.final:
                conversation.abort("failed", str(error))
            conversation.close()
            failure = error
            dead = conversation.dead
            if conversation.session.owns:
                self._in_loop(lambda: self._failed(failure, dead))
            else:
                self._in_loop(lambda: self._gave(f"given away, but unconfirmed: {failure}"))
            if not isinstance(error, (HandoffError, OSError, ValueError)):
                raise
        else:
            self._in_loop(lambda: self._gave(f"{handoff.handed.generation} has the service for good"))
        finally:
            for fd in files:
                os.close(fd)

    def _in_loop(self, what: Callable[[], Any]) -> Any:
        """Has the loop do it: the state is the loop's."""
        done = Event()
        result: deque[Any] = deque()

        def call() -> None:
            try:
                result.append((what(), None))
            except BaseException as error:
                result.append((None, error))
            done.set()

        self._master.loop.call(call)
        done.wait()
        value, error = result.pop()
        if error is not None:
            raise error
        return value

    # --- in the loop ----------------------------------------------------------------------------------------

    def _offering(self, files: list[int]) -> Offering:
        master, endpoint = self._master, self._master.endpoint
        assert endpoint is not None
        assert master.current is not None
        items: list[Listener] = []
        for outlet in master.outlets:
            outlet.mend(self._giver.slot)
            items.append(Listener(outlet.name, outlet.successor(self._giver.slot, self._giver.whole)))
        if self._giver.whole:
            state, kept = with_descriptors(master)
            state["successor"] = self._giver.slot
            memory = os.memfd_create("fdhandoff-master")
            files.append(memory)
            journal.write_whole(memory, journal.encode(state))
            items += [File(STATE_FILE, memory), *(File(f"{FD_FILE}{fd}", fd) for fd in kept)]
        return Offering(
            [*collect(items), *internal_items(endpoint, None)],
            generation=master.numbers + 1,
            ready_timeout=master.options.ready_timeout,
            serving_timeout=_SERVING_SECONDS,
            probation=master.options.probation,
            strict=all(outlet.mode != SHARED for outlet in master.outlets),
            close_gate=lambda: self._in_loop(self._close_gate),
            reopen_gate=lambda: self._in_loop(self._reopen_gate),
            release_control=lambda: registry.release(endpoint),
            resume_control=lambda: registry.resume(endpoint),
        )

    def _close_gate(self) -> bytes | None:
        if self._master.state != SERVING:
            raise Aborted(f"the service is {self._master.state}", serving=OLD)
        self._giver.committed = True  # from here on the journal is theirs
        for outlet in self._master.outlets:
            outlet.succeed(self._giver.slot, self._giver.whole)
        return None

    def _reopen_gate(self) -> None:
        master = self._master
        assert master.current is not None
        for outlet in master.outlets:
            outlet.choose(master.current.slot)
        self._giver.committed = False

    def _committed(self, handoff: Handoff) -> None:
        master = self._master
        master.say(
            f"switched: {handoff.handed.generation} serves; {master.current} stays for "
            f"{format_duration(master.options.probation)}, in case that fails"
        )

    def _failed(self, error: BaseException, dead: bool) -> None:
        """The service is ours, as before. ``dead``: who was to take it is."""
        master = self._master
        self._end()
        self._giver.handover = None
        what = "rolled back" if isinstance(error, RolledBack) else "failed"
        master.failures += 1
        master.last_upgrade = {
            "result": what,
            "reason": str(error),
            "asked": "",
            "step": "",
            "from": master.numbers,
            "to": master.numbers + 1,
            "seconds": time.monotonic() - self._began,
            "steps": [{"step": "handover", "seconds": time.monotonic() - self._began}],
            "at": time.time(),
            "held": False,
            "lost": None,
            "release": None,
            "last_lines": [],
        }
        master.say(f"the service was not handed over: {error}; {master.current} serves")
        self._giver.cleaning.add(self._giver.slot)
        master.spawn(self._clean_up(self._giver.slot, dead and self._giver.whole))
        self._giver.offer()
        master.changed()

    def _end(self) -> None:
        if self._interrupt is not None:
            self._interrupt.close()
            self._interrupt = None

    async def _clean_up(self, slot: int, orphans: bool) -> None:
        """The queues that were offered are ours again: what waits there is served. A master that died has left its generation
        with them, of which nobody else knows."""
        master = self._master
        inodes = {os.fstat(outlet.give(slot).fileno()).st_ino for outlet in master.outlets if outlet.mode != SHARED}
        left = holders_of(inodes) if orphans and inodes else []
        if left:
            name = f"process {', '.join(str(process.pid) for process in left)}, which a dead master left,"
            await Strangers(master, name, left, signal.SIGTERM).retire(master.options.grace, master.options.kill_after)
        await serve_stranded(master)
        rescue(master, slot)
        for outlet in master.outlets:
            outlet.leave(slot)
        self._giver.cleaning.discard(slot)

    def _gave(self, how: str) -> None:
        """Somebody else has the service. What is ours finishes, and then so do we."""
        master = self._master
        self._giver.given = True
        self._end()
        master.say(f"{how}: what this one has begun is finished")
        if master.endpoint is not None:
            registry.forget(master.endpoint.path)
        master.endpoint = None
        if master.state == SERVING:
            master.state = DRAINING
        self._forget_stored()
        master.changed()
        master.announcer.stopping()
        master.plan_no_restart()
        master.keeper.release()
        for run in list(master.runs):
            if run.state not in (DRAINING, STOPPING):
                master.retire_now(run)
        if master.state == DRAINING:
            master.spawn(self._finish())

    def _forget_stored(self) -> None:
        """What the service manager keeps must be closed before we end: as a member of the group it would stay, and move."""
        master = self._master
        if master.store.kept:
            master.store.forget()
            master.announcer.attempt(lambda: master.announcer.notifier.barrier(after(_BARRIER_SECONDS)))

    async def _finish(self) -> None:
        master = self._master
        while master.runs and master.state == DRAINING:
            await sleep(master.loop, _LOOK_SECONDS)
        if master.state == DRAINING:
            until = time.monotonic() + _RELAYS_SECONDS
            while time.monotonic() < until and relays():
                await sleep(master.loop, _LOOK_SECONDS)
            if master.teller is not None:
                await master.teller.finish()
            master.say("all is finished here")
            master.loop.stop()

    def close(self) -> None:
        """Ends the conversation."""
        if self._handoff is not None:
            self._handoff.close()
        self._end()
