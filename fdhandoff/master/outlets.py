"""The kinds of listeners that a master has, and how one is opened."""

from __future__ import annotations

import errno
import itertools
import os
import socket

from ..errors import ListenerError, SystemCallError, Unsupported
from ..system.connections import CLOSE_WAIT, ESTABLISHED, SYN_RECV, count, other_end
from ..system.fds import describe, listener_queue
from ..system.hearing import hung_up
from ..system.paths import unlink_control
from ..system.sockets import bind, parse_bind
from ..system.switch import Group
from .options import KERNEL, SHARED
from .outlet import BEFORE, BOUND, INHERITED, LOST, RENAME, Outlet, accept_all
from .renaming import RenameOutlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class KernelOutlet(Outlet):
    """TCP or UDP, switched by the kernel's program."""

    mode = KERNEL

    def __init__(
        self,
        name: str,
        group: Group,
        slots: int,
        places: dict[int, int] | None = None,
        *,
        lent: Collection[int] = (),
        home: int = -1,
        before: int = -1,
    ) -> None:
        """``places``: which of the group's slots is which of our ``slots``, where that is not the same number. ``lent``: those
        of the group's that others hold as well, so that no process may shut them down; each serves one generation at most.
        ``home``: the one of them where everything shall wait when we have ended. ``before``: that of whoever serves before
        us, to whom everything goes until we ``choose``."""
        self.name = name
        self._group = group
        self.places = places if places is not None else {slot: slot for slot in range(slots)}
        self.lent = set(lent)
        self.home = home
        self.before = before
        self._returned = False
        self._shut_down: set[int] = set()  # slots whose socket is another one since we looked at another slot
        self._port = group.port
        description = describe(group.slot(0).fileno())
        assert description is not None
        self.address = description.address
        self._stream = description.type == socket.SOCK_STREAM
        self._family = description.family
        self.probed = self._stream
        self.host = self.address
        self._choice: tuple[int, int, float] = (0 if before < 0 else BEFORE, -1, 0.0)

    def _place(self, slot: int) -> int:
        return self.before if slot == BEFORE else self.places[slot]

    def give(self, slot: int) -> socket.socket:
        return self._group.slot(self._place(slot))

    def sockets(self) -> dict[int, socket.socket]:
        return {slot: self.give(slot) for slot in self.places}

    def lent_sockets(self) -> list[socket.socket]:
        """Those that others hold, too, the one first in which all shall wait at the end."""
        return [self._group.slot(place) for place in sorted(self.lent, key=lambda place: place != self.home)]

    @property
    def group(self) -> Group:
        return self._group

    def choose(self, old: int, new: int = -1, share: float = 0.0) -> None:
        self._choice = self.narrowed(old, new, share)
        self._attach(None)

    def _attach(self, probe: tuple[str, int] | None, slot: int = -1) -> None:
        old, new, share = self._choice
        if probe is not None and new < 0:
            new = slot
        self._group.choose(self._place(old), self._place(new) if new >= 0 else None, share=share, probe=probe)

    def waiting(self, slot: int) -> int | None:
        return self._group.queue(self._place(slot))[0]

    def backlog(self, slot: int) -> int | None:
        return self._group.queue(self._place(slot))[1]

    def connections(self, pids: Collection[int]) -> int:
        return count(self._port, pids, self._family) if self._stream else 0

    def half_open(self) -> frozenset[int]:
        return self._group.half_open()

    def mend(self, slot: int, *, serving: bool = False) -> list[str]:
        wrong = self._group.check(self._place(slot), serving=serving)
        if slot in self._shut_down:
            self._shut_down.discard(slot)
            wrong = [*wrong, LOST]
        if LOST in wrong:
            self._is_ours(self._place(slot))  # somebody shut it down, for all who held it
        if "shutdown" not in wrong:
            return wrong
        if not serving:  # and what holds it keeps its place in the group
            raise ListenerError(
                f"{self.name} ({self.address}) was shut down, and a UDP socket can't be had back: restart the master"
            )
        return [LOST]

    def _is_ours(self, place: int) -> None:
        self.lent.discard(place)
        self.home = -1 if self.home == place else self.home

    def leave(self, slot: int) -> None:
        """A process of that generation may have escaped us, and would go on accepting: it gets nothing of the next one's."""
        self._shut_down.discard(slot)
        if self._place(slot) in self.lent:
            self._leave_to_its_holders(slot)
        elif self._stream:
            try:
                self._group.renew(self._place(slot))
            except SystemCallError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                # Another user made the group, which we can't join: the next one gets the same queue.

    def _leave_to_its_holders(self, slot: int) -> None:
        taken = {*self.lent, *self.places.values()}
        self.places[slot] = next(other for other in range(self._group.slots) if other not in taken)

    def admit(self, slot: int, sock: socket.socket) -> None:
        before = self.sockets()
        try:
            if self._place(slot) in self.lent:
                self._leave_to_its_holders(slot)
        except BaseException:
            sock.close()
            raise
        place = self._place(slot)
        found = self._group.admit(place, sock)
        if found != place:  # it has the place of one that was shut down: they trade
            self._is_ours(found)
            self.places.update({other: place for other, its in self.places.items() if its == found})
            self.places[slot] = found
            self._attach(None)
        self._shut_down |= {other for other, its in before.items() if other != slot and self.give(other) is not its}

    def forsaken(self, slot: int) -> list[socket.socket]:
        return [] if self._returned and self._place(slot) == self.home else super().forsaken(slot)

    def stranded(self) -> list[socket.socket]:
        return [client for place in self._nobodys() for client in accept_all(self._group.slot(place))]

    def stranded_count(self) -> int:
        return sum(self._group.queue(place)[0] for place in self._nobodys())

    def _nobodys(self) -> set[int]:
        """Places from which no generation of ours accepts, and in which nothing shall wait."""
        return set() if self._returned or not self._stream else self.lent - set(self.places.values())

    def taken_from(self, slot: int) -> None:
        self.before = self.places[slot]
        self._choice = (BEFORE, -1, 0.0)

    def go_back(self) -> None:
        if self.before >= 0:
            self.choose(BEFORE)

    def connect_to(self, slot: int) -> socket.socket:
        host, port = self._target()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        probe = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            probe.bind((host, 0))
            own = probe.getsockname()
            self._attach((own[0], own[1]), slot)
            probe.connect_ex((host, port))
        except BaseException:
            probe.close()
            raise
        return probe

    def end_probe(self) -> None:
        if self._group.members():  # else the master ends, and whoever probed still tidies up
            self._attach(None)

    def accepted(self, slot: int, probe: socket.socket) -> bool:
        # Not whether the queue is empty: users may wait in it, of whom a server that takes one after the other sees nothing
        # before our silent probe has gone.
        end = other_end(probe)
        if end is None:
            return self.waiting(slot) == 0
        # Nor what the client sees: the handshake's last packet may be on its way to the queue.
        return bool(end.inode) or end.state not in (SYN_RECV, ESTABLISHED, CLOSE_WAIT)

    def connect(self) -> socket.socket:
        return socket.create_connection(self._target())

    def turn_away(self) -> None:
        """What comes from now on is dropped, as if the network had lost it: the client's kernel sends it again, and is refused
        once the listeners are closed, or served if another service is there by then. Where others hold the listener, it waits
        in their queue for whoever serves next, unless a generation of ours accepts from just that."""
        if self._returned:
            return
        if self.home >= 0 and (not self._stream or self.home not in self.places.values()):
            self._returned = True
            self._group.choose(self.home)
            return
        place = self._group.add_slot()
        self._group.deafen(place)
        self._group.choose(place)

    def give_back(self) -> None:
        if self.home >= 0:
            self.turn_away()

    def successor(self, slot: int, whole: bool) -> socket.socket:
        return self._group.slot(self._next(slot, whole))

    def succeed(self, slot: int, whole: bool) -> None:
        self._group.choose(self._next(slot, whole))

    def _next(self, slot: int, whole: bool) -> int:
        """Who does not know of the group gets what others hold, where there is such a one: else that would stay in the group
        and nobody would accept from it."""
        free = self.home >= 0 and self.home not in self.places.values()
        return self.home if free and not whole else self._place(slot)

    def part(self, slot: int, whole: bool) -> None:
        if whole:
            self._group.close()
        else:
            self._group.leave_to(self._next(slot, whole), self.lent)

    def decline(self) -> None:
        if self.before in self.lent:
            self._group.leave_to(self.before, self.lent)
        else:
            self._group.close()

    def _target(self) -> tuple[str, int]:
        """Where a connection from this host to this very listener goes."""
        host, port = self._group.slot(0).getsockname()[:2]
        wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        return wildcards.get(host, host), port

    def close(self, *, unlink: bool) -> None:  # noqa: ARG002
        if self.home >= 0:
            self._group.leave_to(self.home, self.lent)
        else:
            self._group.close()


class SharedOutlet(Outlet):
    """One socket for all generations: where there is no switch."""

    mode = SHARED

    def __init__(self, name: str, sock: socket.socket, *, lent: bool = False, live: bool = False) -> None:
        """``lent``: others hold it as well. ``live``: somebody accepts from it, and must not find it changed."""
        self.name = name
        self.lent = lent
        self._live = live
        self._sock = sock
        self._backlog = (listener_queue(sock.fileno()) or (0, 0))[1]
        description = describe(sock.fileno())
        self.address = description.address if description is not None else ""

    def give(self, slot: int) -> socket.socket:  # noqa: ARG002
        return self._sock

    def sockets(self) -> dict[int, socket.socket]:
        return {0: self._sock}

    def mend(self, slot: int, *, serving: bool = False) -> list[str]:  # noqa: ARG002
        """Most servers call listen() again, which changes the backlog for all; some change what connections inherit."""
        if self._live:
            return []
        if hung_up(self._sock):
            self._revive()
            return [LOST]
        if not serving:
            os.set_blocking(self._sock.fileno(), False)
        queue = listener_queue(self._sock.fileno())
        if queue is None:
            return []
        if not serving:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if queue[1] >= self._backlog:
            return []
        self._sock.listen(self._backlog)
        return ["backlog"]

    def _revive(self) -> None:
        """A TCP listener listens again, if it keeps its port. What was bound here is bound again."""
        if self._backlog and self._sock.family != socket.AF_UNIX:
            before = self._sock.getsockname()
            self._sock.listen(self._backlog)
            if self._sock.getsockname() == before:
                return
        if self.lent or not self.text:
            raise ListenerError(f"{self.address} was shut down, and only whoever bound it can bind it again")
        spec = parse_bind(self.text)
        self._sock.close()
        (self._sock,) = bind(spec)
        os.set_blocking(self._sock.fileno(), False)

    def settled(self) -> None:
        self._live = False

    def close(self, *, unlink: bool) -> None:
        if unlink and not self.lent and self.address.startswith("unix:/"):
            unlink_control(self.address[5:], self._sock)
        self._sock.close()


def open_outlets(text: str, *, switch: str, slots: int, position: int) -> list[Outlet]:
    """Binds ``[NAME=]ADDRESS`` in the way that suits it. All or nothing."""
    opened = _open(text, switch, slots, position)
    for outlet in opened:
        outlet.text = text
    return opened


def _open(text: str, switch: str, slots: int, position: int) -> list[Outlet]:
    spec = parse_bind(text)
    name = spec.name or f"listener{position}"
    if spec.kind in ("tcp", "udp") and switch == KERNEL:
        try:
            return [KernelOutlet(name, group, slots) for group in Group.bind(spec, slots)]
        except Unsupported:
            pass  # no such switch on this system: the generations share one queue, and status says so
    if spec.kind == "unix" and not spec.path.startswith(b"\0") and switch == KERNEL:
        return [RenameOutlet(name, spec)]
    return [SharedOutlet(name, sock) for sock in bind(spec)]


def lend_outlet(
    name: str, socks: list[socket.socket], *, switch: str, slots: int, origin: str = INHERITED, live: bool = False
) -> tuple[Outlet, str]:
    """An outlet around sockets of *one* address that came from elsewhere, and which somebody else may hold for ever; and why it
    is shared where a switch was wanted and can't be had. Takes them, except when it raises.

    Slot 0 gets the first of them, with all that waits in it: it is for the first generation. Several are one group already,
    such as a dead master left it with whoever kept its sockets; what waits in the others is ``stranded``. At the end all that
    comes waits in the first. They are never shut down, since that would end them for every holder.

    ``live``: somebody serves there still, and everything goes to them until we ``choose``. Then no generation gets their
    socket, nothing is changed that they would notice, and in the end nothing is left to them.
    """
    first = socks[0]
    description = describe(first.fileno())
    assert description is not None
    why = ""
    outlet: Outlet | None = None
    if switch == KERNEL and description.family in (socket.AF_INET, socket.AF_INET6):
        try:
            if len(socks) == 1 and live:
                places = spread({}, {0}, slots)
                outlet = KernelOutlet(name, Group.join(first, slots + 1), slots, places, lent={0}, before=0)
            elif len(socks) == 1:
                outlet = KernelOutlet(name, Group.join(first, slots + 1), slots, lent={0}, home=0)
            else:
                outlet = _group_of(name, {}, socks, slots)
        except Unsupported as error:
            why = str(error)
    elif description.family == socket.AF_UNIX and switch == KERNEL:
        why = "its path is for whoever passed it to keep or to move"
    if outlet is None:
        for sock in socks[1:]:
            sock.close()
        outlet = SharedOutlet(name, first, lent=not live, live=live)
    for sock in outlet.sockets().values() if outlet.mode == KERNEL or not live else ():
        os.set_blocking(sock.fileno(), False)
    outlet.origin = origin
    return outlet, why


def reopen_outlet(
    mode: str,
    name: str,
    text: str,
    slots: int,
    found: dict[int, socket.socket],
    lent: Sequence[socket.socket] = (),
    foreign: Sequence[socket.socket] = (),
) -> Outlet:
    """The outlet whose sockets were found again, by slot, in processes that outlived the last master; ``lent`` are those that
    others hold, ``foreign`` those that belong to others, who may still accept from them. Takes them all."""
    outlet: Outlet
    if mode == KERNEL:
        outlet = _group_of(name, found, lent, slots, foreign)
    elif mode == RENAME:
        outlet = RenameOutlet(name, parse_bind(text), found)
    else:
        first, *others = [*found.values(), *lent]
        for sock in others:
            sock.close()
        outlet = SharedOutlet(name, first, lent=not text)
    outlet.text = text
    outlet.origin = BOUND if text else INHERITED
    return outlet


def _group_of(
    name: str,
    found: dict[int, socket.socket],
    lent: Sequence[socket.socket],
    slots: int,
    foreign: Sequence[socket.socket] = (),
) -> KernelOutlet:
    """A group that is one already, in an order that the kernel is asked for: the sockets of idle slots ended with whoever
    made it, so the others have moved. ``found``: ours, by slot; ``lent``: what others hold, which may be the same ones."""
    by_cookie = {_cookie(sock): sock for sock in found.values()}
    home = _cookie(lent[0]) if lent else 0
    cookies = [_cookie(sock) for sock in [*lent, *foreign]]
    for cookie, sock in zip(cookies, [*lent, *foreign], strict=True):
        if by_cookie.setdefault(cookie, sock) is not sock:
            sock.close()
    group = Group.from_sockets(list(by_cookie.values()), slots + len(cookies), in_order=False)
    of = {cookie: place for cookie in by_cookie if (place := group.slot_of(cookie)) is not None}
    places = {slot: of[_cookie(sock)] for slot, sock in found.items()}
    if not found:
        places[0] = of[cookies[0]]
    others = [of[cookie] for cookie in cookies]
    return KernelOutlet(name, group, slots, spread(places, others, slots), lent=others, home=of[home] if home else -1)


def spread(places: dict[int, int], lent: Collection[int], slots: int) -> dict[int, int]:
    """A place for each of ``slots``: those that have one keep it, the others get the lowest that nobody has."""
    taken = {*places.values(), *lent}
    free = (place for place in itertools.count() if place not in taken)
    return {slot: places[slot] if slot in places else next(free) for slot in range(slots)}


def _cookie(sock: socket.socket) -> int:
    description = describe(sock.fileno())
    return description.cookie if description is not None else 0
