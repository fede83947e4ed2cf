"""Taking over from a server that knows nothing of it, whoever wrote and started it: its listeners are copied out of it, the
switch is set under them, and when the first generation serves, the server finishes and is asked to stop.
"""

from __future__ import annotations

import os
import signal
import time

from ..errors import OLD, HandoffError, SystemCallError
from ..inventory import fits
from ..listener import check_name
from ..system.adoption import listeners_of
from ..system.connections import inodes_of
from ..system.fds import describe
from ..system.process import Process, command_name
from ..system.processes import cgroup_of, members, parent_of
from ..system.sockets import parse_bind
from .drain import serve_stranded
from .listeners import open_all
from .options import drain_signal_of
from .outlet import ADOPTED
from .run import SERVING
from .strangers import Strangers, holders_of
from .tasks import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from .master import Master
    from .outlet import Outlet
    from .run import Run

# Who holds listeners for others, and accepts from none.
_KEEPERS = ("systemd", "init")


class Adopting:
    """From the server whose processes ``pids`` are, or belong to. What ``Taking`` is for a handoff."""

    slot = -1
    number = 1
    gives_path = False

    def __init__(self, master: Master, pids: list[int]) -> None:
        self._master = master
        self.reserved: set[int] = set()
        self.committed = False
        self.over = False
        self._until = 0.0
        self._came: list[Outlet] = []
        self._roots: list[Process] = []
        self._found: dict[int, tuple[socket.socket, int]] = {}
        try:
            self._find(pids)
        except BaseException:
            self._let_go()
            raise

    @property
    def in_probation(self) -> bool:
        """Whether the old server is still there to go back to."""
        return not self.committed or time.monotonic() < self._until

    # --- what is there --------------------------------------------------------------------------------------

    def _find(self, pids: list[int]) -> None:
        """The listeners, and the processes at whose head one stops the server."""
        family: set[int] = set()
        for pid in pids:
            if pid in _ancestors(os.getpid()):
                raise HandoffError(f"process {pid} is this one, or has started it: name the server", serving=OLD)
            self._look_into(pid)
        if not self._found:
            raise HandoffError(f"process {_list(pids)} listens nowhere: name a process of the server", serving=OLD)
        for pid in pids:
            root = self._root_of(pid)
            if root not in [process.pid for process in self._roots]:
                self._roots.append(Process.from_pid(root))
            family |= set(members(root))
        for pid in sorted(family - set(pids)):
            self._look_into(pid, must=False)
        self._no_strangers(family)
        for process in self._roots:
            self._mention(process)

    def _look_into(self, pid: int, *, must: bool = True) -> None:
        try:
            with Process.from_pid(pid) as process:
                for inode, sock in listeners_of(process, self._found):
                    self._found[inode] = (sock, pid)
        except SystemCallError as error:
            if must and not _exists(pid):
                raise HandoffError(f"there is no process {pid}", serving=OLD) from None
            if must:
                error.serving = OLD
                raise
        except FileNotFoundError:
            return  # it has just ended

    def _root_of(self, pid: int) -> int:
        """The first of its ancestors that has the listeners, and handed them down."""
        root = pid
        while (parent := parent_of(root)) > 1 and command_name(parent) not in _KEEPERS:
            try:
                if inodes_of([parent]).isdisjoint(self._found):
                    break
            except SystemCallError:
                break
            root = parent
        return root

    def _no_strangers(self, family: set[int]) -> None:
        """Others who accept from the same listeners would go on to."""
        for process in holders_of(self._found.keys()):
            name = command_name(process.pid)
            process.close()
            if process.pid not in family and process.pid != 1 and name not in _KEEPERS:
                raise HandoffError(
                    f"process {process.pid} ({name}) has the same listeners, and is none of the server of process "
                    f"{_list([root.pid for root in self._roots])}: if it belongs to it, name it, too (--pid {process.pid})",
                    serving=OLD,
                )

    def _mention(self, root: Process) -> None:
        """Who may start the server again when it has ended."""
        unit = os.path.basename(cgroup_of(root.pid))
        parent = parent_of(root.pid)
        if unit.endswith(".service") and unit != os.path.basename(cgroup_of(os.getpid())):
            who = f"systemd's unit {unit}"
        elif parent > 1 and parent not in _ancestors(os.getpid()):
            who = f"process {parent} ({command_name(parent)})"
        else:
            return
        self._master.say(
            f"{who} has started process {root.pid}, and may start it again when it has ended: tell it not to, or the two "
            "will want the same address"
        )

    def open(self, given: list[tuple[str, socket.socket]]) -> list[Outlet]:
        """The adopted listeners, named by the binds that mean them, and what is to be bound besides. All or nothing."""
        master = self._master
        options = master.options
        pairs, left = self._named(options.binds)
        self._check(pairs)
        try:
            outlets = self._came = open_all(
                pairs, (), switch=options.switch, slots=master.slots, say=master.say, origin=ADOPTED, live=True
            )
            outlets = [
                *outlets, *open_all(given, left, switch=options.switch, slots=master.slots, say=master.say)
            ]  # fmt: skip
        except BaseException:
            self.refuse(self._came)
            raise
        return outlets

    def _named(self, binds: list[str]) -> tuple[list[tuple[str, socket.socket]], list[str]]:
        """With binds, only what they mean; without, all that listens. The rest of the binds is to be bound."""
        pairs: list[tuple[str, socket.socket]] = []
        left = []
        for place, text in enumerate(binds):
            spec = parse_bind(text)
            mine = [inode for inode, (sock, _) in self._found.items() if fits(spec, sock.fileno(), strictly=True)]
            left += [] if mine else [text]
            pairs += [(spec.name or f"listener{place}", self._found.pop(inode)[0]) for inode in mine]
        for inode, (sock, pid) in list(self._found.items()):
            what = describe(sock.fileno())
            if binds or what is None or not what.listening:
                self._master.say(f"{what} of process {pid} is left to it: no --bind means it")
            else:
                del self._found[inode]
                pairs.append((check_name(f"listener{len(pairs)}"), sock))
        self._let_go()
        return pairs, left

    def _check(self, pairs: list[tuple[str, socket.socket]]) -> None:
        """What can't be taken over without a loss."""
        addresses = [str(describe(sock.fileno())) for _, sock in pairs]
        why = "" if pairs else "no --bind means a listener of that server"
        for address in addresses:
            if addresses.count(address) > 1:
                why = (
                    f"the server has {addresses.count(address)} sockets for {address} (SO_REUSEPORT), with a queue each: "
                    "start it once with one, or with one worker"
                )
        for _, sock in pairs:
            what = describe(sock.fileno())
            if what is not None and what.address.startswith("unix:/"):
                why = (
                    f"{what.address} can't be adopted: most servers remove its path when they end, and it would be ours; say "
                    "--bind for those to adopt"
                )
        if why:
            for _, sock in pairs:
                sock.close()
            raise HandoffError(f"{why}; process {_list([root.pid for root in self._roots])} serves on", serving=OLD)

    def refuse(self, outlets: list[Outlet]) -> None:
        """Closes them: what came stays with the old server."""
        for outlet in outlets:
            outlet.decline() if outlet in self._came else outlet.close(unlink=True)

    # --- the turning point ----------------------------------------------------------------------------------

    async def commit(self, run: Run) -> None:
        """The first generation is ready: from here on it gets all new connections."""
        master = self._master
        self.committed = True
        self._until = time.monotonic() + master.options.probation
        for outlet in master.outlets:
            outlet.choose(run.slot)
            outlet.settled()
        master.say(f"switched: new connections go to {run}, and process {self._names()} finishes what it has")
        master.spawn(self._afterwards(run))

    async def _afterwards(self, run: Run) -> None:
        master = self._master
        options = master.options
        await pause(master.loop, options.probation, run.died)
        if run.died.done and time.monotonic() < self._until and master.state == SERVING and self._alive():
            await self._go_back(run)
            return
        self._until = 0.0
        number = getattr(signal, options.old_signal or drain_signal_of([command_name(self._roots[0].pid)]))
        old = Strangers(master, f"process {self._names()}", self._roots, number)
        await old.retire(options.grace, options.kill_after if options.kill_old else 0.0)
        self.over = True
        master.say("the adopted server has ended")
        await serve_stranded(master)

    async def _go_back(self, run: Run) -> None:
        master = self._master
        for outlet in master.outlets:
            outlet.go_back()
        run.kill()
        await run.ended
        master.say(f"{run} died ({run.died.result()}) in its probation: process {self._names()} serves again")
        master.gave_back(run)

    def _alive(self) -> bool:
        return any(process.alive() for process in self._roots)

    def _names(self) -> str:
        return _list([process.pid for process in self._roots])

    def close(self) -> None:
        for process in self._roots:
            process.close()
        self._let_go()

    def _let_go(self) -> None:
        for sock, _ in self._found.values():
            sock.close()
        self._found = {}


def _list(pids: list[int]) -> str:
    return ", ".join(map(str, pids))


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _ancestors(pid: int) -> set[int]:
    """Itself included; not the first process, of whom all descend."""
    found = set()
    while pid > 1 and pid not in found:
        found.add(pid)
        pid = parent_of(pid)
    return found
