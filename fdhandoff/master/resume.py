"""A new master for what an old one left: after a SIGKILL, from the journal and from the processes that serve on; after an
exec in place, from the same state and the descriptors that were kept open.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time

from .. import registry
from ..control import Reply
from ..deadline import after
from ..errors import OLD, HandoffError, SystemCallError, UpgradeError
from ..successor import own_command, start_directory
from ..system.adoption import sockets_of
from ..system.channel import Channel
from ..system.connections import LISTEN, bound, inodes_of, unix_connections
from ..system.fds import describe, socket_from_fd
from ..system.process import Peer, Process, find_program, spawn
from ..system.processes import members
from ..system.sockets import parse_bind
from ..system.switch import Group
from . import journal
from .conventions import REUSEPORT
from .keeping import KEPT
from .options import KERNEL, for_release, origin_of
from .outlet import BOUND, RENAME, Outlet
from .outlets import KernelOutlet, reopen_outlet, spread
from .renaming import private_name
from .run import CANARY, SERVING, STARTING, Run, kill_group
from .tasks import Future, first, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    from .master import Master

STATE = "FDHANDOFF_MASTER_STATE"  # the descriptor of the state, for the master that an exec makes
DRY_RUN = "FDHANDOFF_MASTER_DRY_RUN"
REHEARSAL_SECONDS = 30.0

# What a generation was started with holds for it to its end, whatever the next master's configuration says: how it drains,
# and what one of its processes is restarted as. The environment is not among them: there may be secrets in it.
_KEPT_OPTIONS = ("directory", "conventions", "drain_signal", "grace", "kill_after", "pre_stop_delay", "settle")


def snapshot(master: Master) -> dict[str, Any]:
    """All that a successor must know, as JSON has it; descriptors only by their sockets' cookies, moments as the monotonic
    clock has them: it goes on as long as the processes do."""
    taking = master.taking
    # Those of whoever had the service before us: they are not ours to end, nor to accept from.
    foreign = taking.reserved if taking is not None else set()
    return {
        "uncommitted": taking is not None and not taking.committed,
        "pid": os.getpid(),
        "number": master.numbers,
        "current": master.current.number if master.current is not None else 0,
        "since": master.since,
        "slots": master.slots,
        "upgrades": master.upgrades,
        "failures": master.failures,
        "coalesced": master.coalesced,
        "recycled": master.recycled,
        "counted": master.ledger.summary() if master.ledger is not None else None,
        "more_workers": master.more_workers,
        "last_upgrade": master.rollout.summary() if master.rollout is not None else master.last_upgrade,
        "history": list(master.history),
        "outlets": [
            {
                "mode": outlet.mode,
                "name": outlet.name,
                "text": outlet.text,
                "address": outlet.address,
                "origin": outlet.origin,
                "stays": outlet.stays,
                "cookies": {str(slot): _cookie(sock) for slot, sock in outlet.sockets().items() if slot not in foreign},
                "lent": [_cookie(sock) for sock in outlet.lent_sockets() if outlet.home >= 0],
                "foreign": [
                    *(_cookie(sock) for sock in outlet.lent_sockets() if outlet.home < 0),
                    *(_cookie(sock) for slot, sock in outlet.sockets().items() if slot in foreign),
                ],
            }
            for outlet in master.outlets
        ],
        "runs": [
            {
                "number": run.number,
                "slot": run.slot,
                "state": run.state,
                "since": run.since,
                "command": run.options.command,
                "processes": [[process.pid, process.started] for process in run.processes],
                "options": {name: getattr(run.options, name) for name in _KEPT_OPTIONS},
                "workers": run.workers,
                "release": run.release,
                "place": run.options.place,
                "leaving": run.leaving,
                "deadline": run.deadline,
            }
            for run in master.runs
        ],
    }


def _cookie(sock: socket.socket) -> int:
    description = describe(sock.fileno())
    return description.cookie if description is not None else 0


# --- after a crash --------------------------------------------------------------------------------------------


def read_journal(master: Master, path: str) -> dict[str, Any] | None:
    """What the last master left; ``None`` where that is nothing that lives. ``HandoffError`` where something does, and this
    release can't go on with it."""
    try:
        return journal.read(path)
    except ValueError as error:
        alive = _named_alive(path)
        if alive:
            raise HandoffError(
                f"the journal {path} makes no sense to this release ({error}), and process {alive[0]}, which it names, is "
                "alive: stop that, or start the release that wrote it",
                serving=OLD,
            ) from None
        master.say(f"the journal {path} makes no sense ({error}), and nothing that it names is alive: starting afresh")
        return None


def _named_alive(path: str) -> list[int]:
    """Processes that look like those of generations, in a journal that makes no sense otherwise, and that are alive."""
    found = []
    with open(path, "rb") as file:
        # All that is certain of a process is its pair of numbers: [pid, started].
        import re  # late: only what makes no sense is searched so

        for pid, started in re.findall(rb"\[\s*(\d{1,7})\s*,\s*(\d{1,18})\s*\]", file.read()):
            process = find([int(pid), int(started)]) if int(started) else None
            if process is not None:
                found.append(process.pid)
                process.close()
    return found


def readopt(master: Master, state: dict[str, Any], given: list[tuple[str, socket.socket]]) -> bool:
    """Takes over what a dead master left, if any of it lives: whether it did. The listeners are found in the processes that
    still hold them, and among those that were ``given`` to us, from where they are taken out."""
    alive = living(state)
    if state.get("uncommitted"):
        # Whoever had the service before that master has it still.
        for number, processes in alive.items():
            master.say(f"generation {number} was not ready when the master died: it is ended")
            _end(processes)
        return False
    _end_strays(master, state, {process.pid for processes in alive.values() for process in processes})
    if not alive:
        return False
    master.slots = max(master.slots, state["slots"])  # --max-draining may have been another then
    master.say(
        f"generation {', '.join(map(str, alive))} of a master that died (pid {state['pid']}) is alive: it goes on"
    )
    wanted = {cookie for outlet in state["outlets"] for cookie in outlet["cookies"].values() if cookie}
    found = master.store.found(wanted)
    stored = frozenset(found)
    for processes in alive.values():
        for process in processes:
            for cookie, sock in sockets_of(process, wanted - found.keys()).items():
                found[cookie] = sock
    _find_what_they_bound(state, alive, wanted, found)
    for entry in state["outlets"]:
        mine = {int(slot): found.pop(cookie) for slot, cookie in entry["cookies"].items() if cookie in found}
        if not mine:
            continue
        master.store.orphans |= {int(slot) for slot, cookie in entry["cookies"].items() if cookie in stored}
        lent = [pair for pair in given if _of_address(pair[1], entry, mine)]
        for pair in lent:
            given.remove(pair)
        known = entry.get("lent", [])
        socks = sorted((sock for _, sock in lent), key=lambda sock: _cookie(sock) not in known[:1])
        elsewhere = _in_other_hands([*mine.values(), *socks]) if entry["mode"] == KERNEL else {}
        socks += [elsewhere.pop(cookie) for cookie in known if cookie in elsewhere]
        outlet = reopen_outlet(
            entry["mode"], entry["name"], entry["text"], master.slots, mine, socks, list(elsewhere.values())
        )
        outlet.origin, outlet.stays = entry.get("origin", BOUND), entry.get("stays", False)
        master.outlets.append(outlet)
    for name, sock in given:
        master.say(f"{name} was passed, but no generation that lives has it: it is left alone until the next start")
        sock.close()
    given.clear()
    first = next((entry for entry in state["runs"] if entry["number"] == state["current"]), None)
    if first is not None and first["state"] == STARTING and first["number"] in alive:
        # Whether it was about to be ready nobody knows any more. Its listeners stay, and whoever waits there.
        master.say(f"generation {first['number']} was not ready when the master died: it is started again")
        _end(alive.pop(first["number"]))
    _restore(master, state, alive)
    master.store.orphans -= {run.slot for run in master.runs}
    return True


def _find_what_they_bound(
    state: dict[str, Any], alive: dict[int, list[Process]], wanted: set[int], found: dict[int, socket.socket]
) -> None:
    """What a generation bound itself need not be in the process that was started: a child of it may have it alone."""
    for entry in state["runs"]:
        leaders = [process.pid for process in alive.get(entry["number"], ())]
        if REUSEPORT not in entry.get("options", {}).get("conventions", ()):
            continue
        for pid in set(members(*leaders)) - set(leaders):
            try:
                with Process.from_pid(pid) as process:
                    found.update(sockets_of(process, wanted - found.keys()))
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.ENOENT):
                    raise  # else it has ended meanwhile


def _in_other_hands(ours: list[socket.socket]) -> dict[int, socket.socket]:
    """The other members of the group, by cookie, which somebody still has: a service manager, or a master that gave the service
    away and has not ended, with its spares. Without them the group's order is not to be found out."""
    from .strangers import holders_of  # late: this happens after a crash

    known = {_cookie(sock) for sock in ours}
    host, port = ours[0].getsockname()[:2]
    rows = [
        row
        for row in bound(port, ours[0].type, ours[0].family)
        if row.local == (host.partition("%")[0], port) and row.cookie not in known
    ]
    wanted, inodes = {row.cookie for row in rows}, {row.inode for row in rows}
    found: dict[int, socket.socket] = {}
    for process in holders_of(inodes, anybody=True) if inodes else ():
        with process:
            try:
                found.update(sockets_of(process, wanted - found.keys()))
            except SystemCallError:
                continue  # another may have it, too
    return found


def _of_address(sock: socket.socket, entry: dict[str, Any], mine: dict[int, socket.socket]) -> bool:
    """Whether it is of the same group as what was found, or the very same."""
    description = describe(sock.fileno())
    if description is None:
        return False
    like = next(iter(mine.values()))
    return description.cookie in entry["cookies"].values() or (
        entry["mode"] == KERNEL and description.address == entry["address"] and sock.type == like.type
    )


def _end_strays(master: Master, state: dict[str, Any], known: set[int]) -> None:
    """A generation that was started in the moment in which the master died is not in the journal. It would accept, and
    nobody would know of it: it is found by the queue that it was given."""
    from .strangers import is_of_a_master  # late, as above

    queues = _queues(state)
    family = set(members(*known))
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()] if queues else []:
        if pid in family or pid == os.getpid():
            continue
        try:
            # A service manager may hold them, too, and rightly.
            stray = is_of_a_master(pid) and bool(queues & inodes_of([pid]))
        except SystemCallError:
            continue  # another user's: none that we started
        if stray:
            master.say(f"process {pid} was started as the master died, and is in no generation: it is ended")
            _end([process for process in [find([pid, 0])] if process is not None])


def _queues(state: dict[str, Any]) -> set[int]:
    """The inodes of the sockets that generations alone were given. What others hold they hold rightly: it proves nothing."""
    kernel = [entry for entry in state["outlets"] if entry["mode"] == KERNEL]
    cookies = {
        cookie for entry in kernel for cookie in entry["cookies"].values() if cookie not in entry.get("lent", ())
    }
    found = {
        seen.inode
        for port in {int(entry["address"].rpartition(":")[2]) for entry in kernel}
        for type in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        for seen in bound(port, type)
        if seen.cookie in cookies
    }
    for entry in state["outlets"]:
        if entry["mode"] == RENAME:
            public = entry["address"].removeprefix("unix:")
            for slot in range(state["slots"]):
                name = os.fsencode(private_name(public, slot))
                found.update(seen.inode for seen in unix_connections(name, (LISTEN,)))
    return found


def living(state: dict[str, Any]) -> dict[int, list[Process]]:
    """Of each generation in the state, by its number, the processes that are alive; none without any."""
    found = {}
    for entry in state["runs"]:
        processes = [process for process in map(find, entry["processes"]) if process is not None]
        if processes:
            found[entry["number"]] = processes
    return found


def _end(processes: list[Process]) -> None:
    for process in processes:
        kill_group(process)
        process.wait(after(5.0))
        process.close()


def find(named: list[int]) -> Process | None:
    """The process of this pid and start time (0: any), while it lives."""
    pid, started = named
    try:
        process = Process.from_pid(pid, started)
    except SystemCallError:
        return None  # it has ended, or another has its number
    if not process.alive():
        process.close()
        return None
    return process


def _restore(master: Master, state: dict[str, Any], alive: dict[int, list[Process]]) -> None:
    """The generations, as they were, in the states that make sense now."""
    master.numbers = state["number"]
    master.since = state["since"]
    master.upgrades, master.failures = state["upgrades"], state["failures"]
    master.recycled = state.get("recycled", 0)
    if state.get("counted") is not None:
        master.restore_counted(state["counted"])
    master.coalesced, master.more_workers = state.get("coalesced", 0), state.get("more_workers", 0)
    master.last_upgrade = state["last_upgrade"]
    master.history.extend(state["history"])
    for entry in state["runs"]:
        processes = alive.get(entry["number"])
        if not processes:
            continue
        options = master.options
        if entry.get("place"):
            options = for_release(options, entry["release"], entry["place"], origin_of(options.watch))
        options = options.replaced({**entry.get("options", {}), "command": entry["command"]})
        sockets = [(outlet.name, outlet.give(entry["slot"])) for outlet in master.outlets]
        run = Run(master.loop, entry["number"], entry["slot"], options, sockets, master.say, master.changed)
        run.state, run.since, run.deadline = entry["state"], entry["since"], entry.get("deadline")
        run.workers = entry.get("workers", run.workers)
        run.release = entry.get("release", "")
        run.output = master.output_of(run)
        for process in processes:
            run.adopt(process, leaving=process.pid in entry.get("leaving", ()))
        master.runs.append(run)
        master.count(run)
    if not master.runs:
        return
    current = next((run for run in master.runs if run.number == state["current"]), None)
    serving = [run for run in master.runs if run.state not in (STARTING, CANARY)]
    master.current = current or max(serving or master.runs, key=lambda run: run.number)
    _judge_the_upgrade(master, master.current)
    for outlet in master.outlets:
        outlet.choose(master.current.slot)
    for run in list(master.runs):
        if run is master.current:
            continue
        if run.state in (STARTING, CANARY):
            # It may have users: a canary has, and as a master dies the kernel may give some to one that was not ready.
            was = "a canary" if run.state == CANARY else "not serving yet"
            master.say(f"{run} was {was} when the master died: it finishes what it has, and ends")
            if run.state == STARTING:
                run.deaf.set("may never accept")
            master.retire_now(run)
        elif run.state == KEPT and run.deadline is not None:
            master.keeper.keep(run, max(0.0, run.deadline - time.monotonic()))
        else:
            master.retire_now(run)


def _judge_the_upgrade(master: Master, current: Run) -> None:
    """What has become of the one that was under way when the master died: whoever looks shall not find it gone."""
    last = master.last_upgrade
    if last is None or last["result"] != "under way":
        return
    served = current.number == last["to"]
    step = last.get("step") or "start"
    how = "serves on, out of probation" if served else "serves on, as before"
    last.update(
        result="done" if served else "failed",
        reason=f"the master died at the step {step}: {current} {how}",
        step="",
        held=False,
        at=time.time(),
    )
    if not served:
        master.failures += 1


# --- an exec in place: the state travels in a memfd, the descriptors stay open ---------------------------------


def inherited(environ: MutableMapping[str, str]) -> dict[str, Any] | None:
    """What the master that we were before the exec has left us; ``None`` where there was none."""
    number = environ.pop(STATE, None)
    if number is None:
        return None
    try:
        with os.fdopen(int(number), "rb") as file:
            file.seek(0)
            return journal.decode(file.read())
    except (OSError, ValueError) as error:
        raise HandoffError(f"{STATE}={number!r} leads to no state of a master: {error}", serving=OLD) from None


def is_dry_run(environ: MutableMapping[str, str]) -> bool:
    return environ.pop(DRY_RUN, None) is not None


def rehearse(master: Master, state: dict[str, Any]) -> int:
    """The new master, started beside the old one, which lives: can it read the state, and its own configuration?"""
    for entry in state["outlets"]:
        if entry["text"]:
            parse_bind(entry["text"])
    for entry in state["runs"]:
        master.options.replaced({**entry.get("options", {}), "command": entry["command"]})
    return 0


async def replace_master(master: Master, reply: Reply) -> None:
    """``upgrade --master``: the new release of this program is tried on the state; if that goes well it takes our place by an
    exec. After that there is no way back, so everything that can fail comes before."""
    memory = os.memfd_create("fdhandoff-master")
    command = own_command()
    master.announcer.reloading()
    try:
        journal.write_whole(memory, journal.encode(exec_state(master)[0]))
        failure = await _rehearsed(master, command, memory)
        if failure:
            raise UpgradeError(f"the new master failed its rehearsal ({failure}); this one goes on", serving=OLD)
        if master.teller is not None:
            await master.teller.finish()
        # What arrives from here on waits for the new master's handlers; what came before is done.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        master.loop.catch_up()
        if master.rollout is not None or master.state != SERVING:
            raise UpgradeError("an upgrade, or the end of the service, began during the rehearsal", serving=OLD)
        # Afresh: processes, connections and descriptors have come and gone during the rehearsal.
        state, kept = exec_state(master)
        state["reply"] = asker = reply.fileno()
        os.lseek(memory, 0, os.SEEK_SET)
        os.ftruncate(memory, 0)
        journal.write_whole(memory, journal.encode(state))
        _exec(master, command, memory, [*kept, asker] if asker >= 0 else kept)
    except (HandoffError, OSError) as error:
        os.close(memory)
        reply.fail("failed", str(error), serving=OLD)
        master.say(f"the master was not upgraded: {error}")
        master.announcer.reloaded()
    finally:  # only where it failed
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


async def _rehearsed(master: Master, command: list[str], memory: int) -> str:
    """Why the new master can't: empty when it can."""
    environ = {**os.environ, STATE: "3", DRY_RUN: "1"}
    process = spawn(command, fds={0: 0, 1: 1, 2: 2, 3: memory}, env=environ, cwd=start_directory())
    ended: Future[None] = Future()
    master.loop.waited.add(process.pid)
    master.loop.on_readable(process.fileno(), lambda: ended.set(None))
    await first(ended, sleep(master.loop, REHEARSAL_SECONDS))
    master.loop.waited.discard(process.pid)
    master.loop.forget(process.fileno())
    if not ended.done:
        process.signal(signal.SIGKILL)
    how = process.wait(after(5.0))
    process.close()
    if not ended.done:
        return f"it did not end within {REHEARSAL_SECONDS:g} s"
    return "" if how is not None and how.status == 0 else str(how)


def _exec(master: Master, command: list[str], memory: int, kept: list[int]) -> None:
    program, directory = find_program(command[0], os.environ, None), start_directory()
    if master.watcher is not None:
        master.watcher.close()
    master.say("the new master takes over, in place")
    for fd in (memory, *kept):
        os.set_inheritable(fd, True)
    try:
        os.chdir(directory)
        environ = {**os.environ, **master.announcer.for_exec(), STATE: str(memory)}
        os.execve(program, command, environ)  # noqa: S606 - no shell, on purpose
    finally:  # only where it failed
        for fd in (memory, *kept):
            os.set_inheritable(fd, False)


def answer(state: dict[str, Any], body: dict[str, Any]) -> None:
    """Tells whoever asked the old master for the new one that it is there."""
    fd = state.get("reply", -1)
    if fd >= 0:
        channel = Channel(socket.socket(fileno=fd))
        os.set_inheritable(fd, False)
        Reply(channel, Peer(0, 0, 0)).done(body)


def exec_state(master: Master) -> tuple[dict[str, Any], list[int]]:
    """The state with descriptor numbers in it, and those numbers: they must survive the exec."""
    state, kept = with_descriptors(master)
    for entry, run in zip(state["runs"], master.runs, strict=True):
        found, fds = run.output.state() if run.output is not None else ({}, [])
        if found:
            entry["output"] = found
            kept += fds
    if master.endpoint is not None:
        state["control"] = master.endpoint.socket.fileno()
        kept.append(state["control"])
    if master.health is not None:
        state["health"] = [sock.fileno() for sock in master.health.sockets()]
        kept += state["health"]
    return state, kept


def with_descriptors(master: Master) -> tuple[dict[str, Any], list[int]]:
    """The state, with the descriptors of all that can be served, and a list of those."""
    state = snapshot(master)
    kept: list[int] = []
    for entry, outlet in zip(state["outlets"], master.outlets, strict=True):
        if isinstance(outlet, KernelOutlet):
            entry["members"] = [sock.fileno() for sock in outlet.group.members()]
            entry["places"] = {str(slot): place for slot, place in outlet.places.items()}
            entry["lent_places"], entry["home"] = sorted(outlet.lent), outlet.home
            kept += entry["members"]
        else:
            entry["fds"] = {str(slot): sock.fileno() for slot, sock in outlet.sockets().items()}
            kept += entry["fds"].values()
    return state, kept


def health_sockets(state: dict[str, Any]) -> list[socket.socket] | None:
    """Those by which the master that we were answered for the service's health; ``None`` where it did not."""
    return [_kept(fd) for fd in state["health"]] if "health" in state else None


def resume(master: Master, state: dict[str, Any]) -> None:
    """In the same process, after the exec: everything is still ours, only the words for it are gone."""
    master.slots = max(master.slots, state["slots"])
    for entry in state["outlets"]:
        master.outlets.append(outlet_of(entry, master.slots))
    if "control" in state and master.options.path is not None:
        control = socket_from_fd(state["control"])
        control.set_inheritable(False)
        master.endpoint = registry.adopt(master.options.path, control, 0)
    alive = living(state)
    if not alive:
        raise HandoffError("no generation outlived the upgrade of the master", serving="nobody")
    _restore(master, state, alive)
    runs = {run.number: run for run in master.runs}
    for entry in state["runs"]:
        if "output" in entry:
            _restore_output(entry["output"], runs.get(entry["number"]))


def _restore_output(found: dict[str, Any], run: Run | None) -> None:
    """Of a generation that lives, or that ended during the exec: then the relay writes what it left, and ends."""
    if run is not None and run.output is not None:
        run.output.restore(found, find(found["relay"]))
        return
    for fd in (found["memory"], *found["readers"], *found["writers"]):
        os.close(fd)


def outlet_of(entry: dict[str, Any], slots: int) -> Outlet:
    """From the words of ``with_descriptors``, and descriptors that are ours. Takes them."""
    outlet: Outlet
    if entry["mode"] != KERNEL:
        found = {int(slot): _kept(fd) for slot, fd in entry["fds"].items()}
        outlet = reopen_outlet(entry["mode"], entry["name"], entry["text"], slots, found)
        outlet.origin, outlet.stays = entry.get("origin", outlet.origin), entry.get("stays", False)
        return outlet
    lent, home = entry.get("lent_places", ()), entry.get("home", -1)
    places = spread({int(slot): place for slot, place in entry["places"].items()}, lent, slots)
    count = max(1 + max(*places.values(), *lent), slots + len(lent))
    group = Group.from_sockets([_kept(fd) for fd in entry["members"]], count)
    outlet = KernelOutlet(entry["name"], group, slots, places, lent=lent, home=home)
    outlet.text = entry["text"]
    outlet.origin, outlet.stays = entry.get("origin", BOUND), entry.get("stays", False)
    return outlet


def _kept(fd: int) -> socket.socket:
    """A socket that outlived the exec, and shall outlive no other."""
    os.set_inheritable(fd, False)
    return socket_from_fd(fd)
