"""The service manager as a net: it keeps copies of the listeners that generations use, so that no queue dies with all of us.

systemd closes what it has under a name when it is told so (``FDSTOREREMOVE``), and passes all of it to the next start as it
passes the sockets of its own units. Ours are recognised by their names, which also say for which slot they were. A manager
that keeps nothing (``FileDescriptorStoreMax=`` is 0 by default) ignores it.
"""

from __future__ import annotations

import socket

from ..inventory import fits
from ..system.fds import Description, describe
from ..system.paths import is_bound_at
from ..system.sockets import parse_bind
from .options import KERNEL, SHARED
from .outlet import RENAME, Outlet
from .outlets import reopen_outlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .master import Master

_PREFIX = "fdhandoff."
_LONGEST = 255


class Stored:
    """One socket that came back: ``key`` is what the manager knows it by."""

    __slots__ = ("description", "key", "name", "slot", "sock")

    def __init__(self, key: str, slot: int, name: str, sock: socket.socket, description: Description) -> None:
        self.key = key
        self.slot = slot
        self.name = name
        self.sock = sock
        self.description = description


class Store:
    """What the manager of ``master`` keeps. ``kept`` is what it has, by key: the socket's cookie."""

    def __init__(self, master: Master, given: list[tuple[str, socket.socket]]) -> None:
        """Takes out of ``given`` what an earlier master of this service has stored."""
        self._master = master
        self._manager = master.announcer.notifier
        self.kept: dict[str, int] = {}
        self._came: list[Stored] = []
        # Queues that came back and that no generation of ours accepts from yet.
        self.orphans: set[int] = set()
        for pair in [pair for pair in given if _split(pair[0]) is not None]:
            given.remove(pair)
            self._take(*pair)

    def _take(self, key: str, sock: socket.socket) -> None:
        split, description = _split(key), describe(sock.fileno())
        assert split is not None
        assert description is not None
        self.kept[key] = description.cookie
        if not _usable(sock, description):
            sock.close()  # and with the next ``sync`` the manager's copy
            return
        self._came.append(Stored(key, *split, sock, description))

    # --- after a start ----------------------------------------------------------------------------------------

    def found(self, wanted: set[int]) -> dict[int, socket.socket]:
        """Of what came back, what has one of these cookies: that is the caller's now. The rest is closed."""
        found = {}
        for stored in self._came:
            if stored.description.cookie in wanted:
                found[stored.description.cookie] = stored.sock
            else:
                stored.sock.close()
        self._came = []
        return found

    def reopen(self, binds: Sequence[str], given: list[tuple[str, socket.socket]]) -> list[Outlet]:
        """Listeners out of what came back, each for the one of ``binds`` that means it; with what is ``given`` for the same
        address, which is taken out of there. What nobody wants any more is closed."""
        outlets = []
        while self._came:
            first = self._came[0]
            alike = [stored for stored in self._came if _same(stored.description, first.description)]
            self._came = [stored for stored in self._came if stored not in alike]
            outlet = self._reopen(alike, binds, given)
            if outlet is not None:
                outlets.append(outlet)
        return outlets

    def _reopen(
        self, alike: list[Stored], binds: Sequence[str], given: list[tuple[str, socket.socket]]
    ) -> Outlet | None:
        first, master = alike[0], self._master
        lent = [pair for pair in given if _same(first.description, describe(pair[1].fileno()))]
        place, text = next(((place, text) for place, text in enumerate(binds) if _means(text, first)), (0, ""))
        if not text and not lent:
            master.say(f"no longer listening on {first.name} {first.description.address}")
            for stored in alike:
                stored.sock.close()
            return None
        for pair in lent:
            given.remove(pair)
        name = lent[0][0] if lent else parse_bind(text).name or f"listener{len(given) + place}"
        found = {stored.slot: stored.sock for stored in alike}
        master.slots = max(master.slots, *(slot + 1 for slot in found))
        self.orphans |= found.keys()
        mode = _mode(first.description, master.options.switch)
        return reopen_outlet(mode, name, "" if lent else text, master.slots, found, [sock for _, sock in lent])

    def fullest(self, outlets: Sequence[Outlet]) -> int:
        """The slot whose queues hold the most: for the first generation. -1 where none came back."""
        waiting = {
            slot: sum(outlet.waiting(slot) or 0 for outlet in outlets if outlet.mode != SHARED) for slot in self.orphans
        }
        return max(sorted(waiting), key=lambda slot: waiting[slot], default=-1)

    def served(self) -> None:
        """What waited in the queues that came back has been answered, or is being."""
        self.orphans.clear()
        self.sync()

    # --- while serving ----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """The manager keeps what generations use now, and nothing else."""
        if self._manager:
            self._keep(self._wanted())

    def _wanted(self) -> dict[str, tuple[int, socket.socket]]:
        used = {run.slot for run in self._master.runs} | self.orphans
        wanted: dict[str, tuple[int, socket.socket]] = {}
        for outlet in self._master.outlets:
            lent = {sock.fileno() for sock in outlet.lent_sockets()}
            slots = outlet.sockets().items()
            for slot, sock in slots if outlet.mode != SHARED else [(0, next(iter(outlet.sockets().values())))]:
                key = f"{_PREFIX}{slot}.{outlet.name}"
                unneeded = sock.fileno() in lent or (outlet.mode == SHARED and not outlet.text)
                if (slot in used or outlet.mode == SHARED) and not unneeded and len(key) <= _LONGEST:
                    description = describe(sock.fileno())
                    wanted[_distinct(key, wanted)] = (description.cookie if description is not None else 0, sock)
        return wanted

    def _keep(self, wanted: dict[str, tuple[int, socket.socket]]) -> None:
        self._master.announcer.attempt(lambda: self._tell(wanted))

    def _tell(self, wanted: dict[str, tuple[int, socket.socket]]) -> None:
        for key in [key for key, cookie in self.kept.items() if key not in wanted or wanted[key][0] != cookie]:
            self._manager.fdstore_remove(key)
            del self.kept[key]
        for key, (cookie, sock) in wanted.items():
            if key not in self.kept:
                self._manager.fdstore(key, [sock.fileno()], poll=False)
                self.kept[key] = cookie

    def close(self) -> None:
        """The service ends here. Whether it is started again, and gets what is kept, is the manager's to know. But a Unix
        socket whose path goes is of no use to anybody, and where the manager itself has bound, all waits in its own queue."""
        if self._manager:
            elsewhere = {
                sock.fileno()
                for outlet in self._master.outlets
                if outlet.lent_sockets()
                for sock in outlet.sockets().values()
            }
            self._keep(
                {
                    key: (cookie, sock)
                    for key, (cookie, sock) in self._wanted().items()
                    if key in self.kept and sock.family != socket.AF_UNIX and sock.fileno() not in elsewhere
                }
            )
        for stored in self._came:
            stored.sock.close()
        self._came = []

    def forget(self) -> None:
        """Another serves these listeners now, who is none of this manager's: it keeps nothing of them."""
        if self._manager:
            self._keep({})


def _split(key: str) -> tuple[int, str] | None:
    """Slot and listener of what we stored; ``None`` for what others call theirs."""
    slot, _, name = key.removeprefix(_PREFIX).partition(".")
    ours = key.startswith(_PREFIX) and slot.isascii() and slot.isdigit() and len(slot) < 6 and name
    return (int(slot), name.rstrip("+")) if ours else None


def _usable(sock: socket.socket, description: Description) -> bool:
    """Whether clients can still reach it."""
    address = description.address
    if description.type == socket.SOCK_STREAM and not description.listening:
        return False  # somebody shut it down
    if address.startswith("unix:/"):
        # Under the rename switch the socket has a second name, which no server knows.
        return is_bound_at(address[5:], sock) or is_bound_at(f"{address[5:]}.kept", sock)
    return bool(address)


def _same(one: Description, other: Description | None) -> bool:
    """Whether they are sockets of one listener."""
    if other is None or (one.family, one.type) != (other.family, other.type):
        return False
    return _public(one) == _public(other)


def _public(description: Description) -> str:
    """Under the rename switch each slot's socket has the public path with the slot's number behind it."""
    address = description.address
    path, _, slot = address.rpartition(".")
    return path if address.startswith("unix:/") and slot.isdigit() else address


def _means(text: str, stored: Stored) -> bool:
    spec = parse_bind(text)
    if spec.kind.startswith("unix"):
        address = stored.description.address
        return str(spec).removeprefix(spec.kind) in (address[4:], _public(stored.description)[4:])
    return (spec.name or stored.name) == stored.name and fits(spec, stored.sock.fileno(), strictly=spec.port != 0)


def _mode(description: Description, switch: str) -> str:
    if switch != KERNEL:
        return SHARED
    if description.family == socket.AF_UNIX:
        return RENAME if _public(description) != description.address else SHARED
    return KERNEL


def _distinct(key: str, taken: dict[str, Any]) -> str:
    """One bind may stand for an IPv4 and an IPv6 socket of one name."""
    while key in taken:
        key += "+"
    return key
