"""The master as the new side: it takes the service over from whoever answers at the handoff path, with a first generation that
is ready before the old owner stops.
"""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

from .. import registry
from ..client import ask
from ..deadline import format_duration
from ..errors import OLD, HandoffError, PathError, PathInUse, PeerRefused
from ..listener import Listeners
from ..system.fds import describe
from ..takeover import take
from . import journal
from .drain import rescue, serve_stranded
from .giving import FD_FILE, SOFTWARE, STATE_FILE
from .listeners import match, open_all
from .options import AUTO, NEVER
from .outlet import INHERITED, TAKEN
from .outlets import open_outlets
from .resume import find, outlet_of
from .run import DRAINING, SERVING
from .strangers import Strangers
from .tasks import Future, pause, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from ..takeover import Takeover
    from .loop import Loop
    from .master import Master
    from .outlet import Outlet
    from .run import Run

_ASK_SECONDS = 5.0
_LOOK_SECONDS = 0.05
# A queue that somebody else is to empty, and does not, is emptied by us after so long.
_PATIENCE = 1.0


def take_over(master: Master, source: str) -> Taking | None:
    """From the live owner at ``source``; ``None`` where there is none. Nothing is changed by it yet: the owner serves on."""
    options = master.options
    if options.takeover == NEVER:
        return None
    if options.takeover == AUTO and not options.source:
        _not_from_a_master(source)
    takeover = take(
        source,
        timeout=options.ready_timeout,
        allow_uids=options.allow_uids,
        absent_ok=not options.source,
        software=SOFTWARE,
    )
    if takeover is None:
        return None
    try:
        if options.takeover == AUTO and not options.source and STATE_FILE in takeover.files:
            raise _is_a_masters(source, takeover.peer.pid)  # it became one a moment ago
        return Taking(master, takeover, source)
    except BaseException as error:
        takeover.abort(str(error))
        raise


def _not_from_a_master(path: str) -> None:
    try:
        facts = ask(path, "status", timeout=_ASK_SECONDS)
    except (PathError, PeerRefused, HandoffError):
        return  # nobody, or who answers in another way: to take over will tell
    if facts.get("master"):
        raise _is_a_masters(path, facts.get("pid", 0))


def _is_a_masters(path: str, pid: int) -> PathInUse:
    return PathInUse(
        f"a master (pid {pid}) serves at {path} already: ask it to upgrade, or say --takeover always to take the service "
        "over from it, which ends it",
        path=path,
        serving=OLD,
    )


class Taking:
    """A takeover, until whoever had the service before has ended. ``number``: of our first generation, ``slot``: which it is
    to have, or -1."""

    def __init__(self, master: Master, takeover: Takeover, source: str) -> None:
        self._master = master
        self._takeover = takeover
        self.source = source
        self.number = takeover.generation.number
        self.slot = -1
        self.reserved: set[int] = set()  # slots of the old owner's generations
        self.committed = False
        self.gives_path = source == master.options.path
        self.over = False  # the conversation
        self._came: list[Outlet] = []
        self._until = 0.0
        self._state: dict[str, Any] | None = None
        self._thread: Thread | None = None
        if not takeover.path_comes and source == master.options.path:
            raise PathInUse(
                f"{takeover.peer} holds listeners at {source} and keeps that path: say --from {source}, and give this service "
                "a path or a name of its own",
                path=source,
                serving=OLD,
            )
        if takeover.connections:
            raise HandoffError(
                f"{takeover.peer} hands over {len(takeover.connections)} established connections, which no command can take",
                serving=OLD,
            )
        if takeover.state:
            master.say(f"{len(takeover.state)} bytes of state came along, which no command can take")

    @property
    def in_probation(self) -> bool:
        """Whether the old owner still takes the service back if we fail."""
        return not self.committed or time.monotonic() < self._until

    # --- what came ------------------------------------------------------------------------------------------

    def open(self, given: list[tuple[str, socket.socket]]) -> list[Outlet]:
        """The listeners that came, those that were passed to us besides, and what is to be bound. All or nothing."""
        master, takeover = self._master, self._takeover
        options = master.options
        if STATE_FILE in takeover.files:
            outlets = self._whole()
        else:
            pairs = [(name, sock) for name, sock in takeover.listeners.unclaimed()]
            held = not takeover.path_comes
            outlets = open_all(
                pairs, (), switch=options.switch, slots=master.slots, say=master.say, origin=TAKEN, live=not held
            )
        self._came = list(outlets)
        for outlet in outlets:
            outlet.stays = True
        for name in list(takeover.files):
            os.close(takeover.files.pop(name))
            if not name.startswith(FD_FILE):
                master.say(f"the file {name} came along, which no command can take: it is closed")
        try:
            cookies = {seen for outlet in outlets for seen in _cookies(outlet)}
            for pair in list(given):
                if _cookie(pair[1]) in cookies:
                    given.remove(pair)  # it came with the rest
                    pair[1].close()
            others = open_all(given, (), switch=options.switch, slots=master.slots, say=master.say)
            outlets += others
            pairs_of, _ = match(outlets, options.binds)
            for place, (text, known) in enumerate(pairs_of, len(outlets)):
                if not known:
                    outlets += open_outlets(text, switch=options.switch, slots=master.slots, position=place)
        except BaseException:
            self.refuse(outlets)
            raise
        return outlets

    def refuse(self, outlets: list[Outlet]) -> None:
        """Closes them: what came stays with whoever had it."""
        for outlet in outlets:
            outlet.decline() if outlet in self._came else outlet.close(unlink=True)

    def _whole(self) -> list[Outlet]:
        """From another master: all of its sockets, in their order. Nothing joins or leaves, only the choice will be ours."""
        master, takeover = self._master, self._takeover
        with os.fdopen(takeover.files.pop(STATE_FILE), "rb") as file:
            file.seek(0)
            data = file.read()
        try:
            state = journal.decode(data)
            self.slot = state["successor"]
        except (ValueError, KeyError) as error:
            raise HandoffError(
                f"{takeover.peer} speaks of itself in a way that this release does not know ({error}): upgrade that master "
                "first (upgrade --master)",
                serving=OLD,
            ) from None
        fds = {name: takeover.files.pop(name) for name in list(takeover.files) if name.startswith(FD_FILE)}
        self._state = state
        master.slots = max(master.slots, state["slots"])
        self.reserved = {run["slot"] for run in state["runs"]} - {self.slot}
        current = next(run["slot"] for run in state["runs"] if run["number"] == state["current"])
        outlets: list[Outlet] = []
        try:
            for entry in state["outlets"]:
                for key in ("members", "fds"):
                    numbers = entry.get(key)
                    if isinstance(numbers, list):
                        entry[key] = [fds.pop(f"{FD_FILE}{fd}") for fd in numbers]
                    elif numbers is not None:
                        entry[key] = {slot: fds.pop(f"{FD_FILE}{fd}") for slot, fd in numbers.items()}
                outlet = outlet_of(entry, master.slots)
                outlet.taken_from(current)
                if outlet.origin != INHERITED:
                    outlet.origin = TAKEN
                outlets.append(outlet)
        except BaseException:
            for outlet in outlets:
                outlet.decline()
            for fd in fds.values():
                os.close(fd)
            raise
        for _, sock in takeover.listeners.unclaimed():
            sock.close()  # it is among the others
        return outlets

    # --- the turning point ----------------------------------------------------------------------------------

    async def commit(self, run: Run) -> None:
        """The first generation is ready: from here on it serves. ``HandoffError`` when the old owner serves on."""
        master, takeover = self._master, self._takeover
        await _in_thread(master.loop, lambda: takeover.ready(master.options.ready_timeout))
        self.committed = True
        self._until = time.monotonic() + takeover.probation
        takeover.listeners = Listeners((), ())  # the outlets' own
        for outlet in master.outlets:
            outlet.choose(run.slot)
            outlet.settled()
        left = self._remains()
        if master.options.path == self.source:
            master.endpoint = registry.find(self.source)
        how = "died before it could commit, and is succeeded" if takeover.orphaned else "has given the service away"
        master.say(f"{takeover.peer} {how}")
        master.spawn(self._afterwards(run, left))

    def _remains(self) -> list[list[int]]:
        """Processes of a master that died, of which the journal at the path still tells."""
        try:
            state = journal.read(journal.path_of(self.source))
        except (HandoffError, ValueError):
            return []
        if state is None or state["pid"] == self._takeover.peer.pid or _alive(state["pid"]):
            return []
        return [named for run in state["runs"] for named in run["processes"]]

    async def _afterwards(self, run: Run, left: list[list[int]]) -> None:
        master = self._master
        emptied = master.spawn(self._empty_the_queue())
        await pause(master.loop, max(0.0, self._until - time.monotonic()), run.died)
        died = run.died.done and time.monotonic() < self._until and master.state == SERVING
        if died and await self._give_back(run):
            return
        self._thread = Thread(target=self._wait_old, name="fdhandoff-old", daemon=True)
        self._thread.start()
        await self._end_what_is_left(left)
        await emptied

    def _wait_old(self) -> None:
        if self._takeover.wait_old():
            self._master.loop.call(self._old_ended)

    def _old_ended(self) -> None:
        master = self._master
        self.over = True
        master.say(f"{self._takeover.peer} has ended")
        self._takeover.close()
        if self.source != master.options.path:
            registry.remove(self.source)
        master.spawn(self._inherit_slots())

    async def _inherit_slots(self) -> None:
        """Those of another master's generations are ours once these have ended, with all that waits in them."""
        master = self._master
        if self._state is not None:
            await self._end_what_is_left([pair for entry in self._state["runs"] for pair in entry["processes"]])
        for slot in self.reserved:
            rescue(master, slot)
            for outlet in master.outlets:
                if slot in outlet.sockets():
                    outlet.leave(slot)
        self.reserved.clear()

    async def _end_what_is_left(self, named: list[list[int]]) -> None:
        """Generations of a master that is no more: nobody else ends them."""
        master = self._master
        processes = [process for process in map(find, named) if process is not None]
        if processes:
            names = ", ".join(str(process.pid) for process in processes)
            master.say(f"process {names} of the master before is alive: it finishes what it has")
            await Strangers(master, f"process {names}", processes, self._stop_signal()).retire(
                master.options.grace, master.options.kill_after
            )

    def _stop_signal(self) -> int:
        """The one that the old master would have sent."""
        names = [run.get("options", {}).get("drain_signal") for run in (self._state or {"runs": []})["runs"]]
        return int(getattr(signal, next(filter(None, names), self._master.options.stop_signal)))

    async def _empty_the_queue(self) -> None:
        """What waits where the old owner accepted is served by it; or by us, when it does not accept any more."""
        master, takeover = self._master, self._takeover
        if takeover.strict or takeover.orphaned:
            await serve_stranded(master)
        since = 0.0
        while not self.over and master.state in (SERVING, DRAINING):
            queued = any(outlet.stranded_count() for outlet in master.outlets)
            since = (since or time.monotonic()) if queued else 0.0
            if since and time.monotonic() - since >= _PATIENCE:
                await serve_stranded(master)
                since = 0.0
            await sleep(master.loop, _LOOK_SECONDS if queued else _LOOK_SECONDS * 5)
        await serve_stranded(master)

    # --- the way back ---------------------------------------------------------------------------------------

    async def _give_back(self, run: Run) -> bool:
        """The first generation died in the old owner's probation: whether that has the service again."""
        master, takeover = self._master, self._takeover
        reason = f"{run} died ({run.died.result()})"
        run.kill()
        await run.ended
        for outlet in master.outlets:
            outlet.go_back()
        if master.options.path == self.source:
            journal.remove(journal.path_of(self.source))  # the next one there is the old owner's
        if not await _in_thread(master.loop, lambda: takeover.give_back(reason)):
            for outlet in master.outlets:
                outlet.choose(run.slot)
            master.changed()
            return False
        master.say(
            f"{reason} {format_duration(round(takeover.probation, 1))} or less after it got the service: "
            f"{takeover.peer} serves again"
        )
        master.gave_back(run)
        return True

    def close(self) -> None:
        """Ends the conversation; before the commit the old owner serves on."""
        if not self.committed:
            self._takeover.abort("the master was told to stop before it had the service")
            self._takeover.close()
        elif not self.over:
            self._takeover.cancel()
            if self._thread is not None:
                self._thread.join(1.0)
            self._takeover.close()
            if self.source != self._master.options.path:
                registry.remove(self.source)


def _cookies(outlet: Outlet) -> list[int]:
    return [_cookie(sock) for sock in [*outlet.sockets().values(), *outlet.lent_sockets()]]


def _cookie(sock: socket.socket) -> int:
    description = describe(sock.fileno())
    return description.cookie if description is not None else 0


def _alive(pid: int) -> bool:
    process = find([pid, 0])
    if process is None:
        return False
    process.close()
    return True


def _in_thread(loop: Loop, what: Callable[[], Any]) -> Future[Any]:
    """What blocks, somewhere else."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            value = what()
        except BaseException as error:
            failure = error
            loop.call(lambda: future.fail(failure))
        else:
            loop.call(lambda: future.set(value))

    Thread(target=run, name="fdhandoff-taking", daemon=True).start()
    return future
