"""The kinds of listeners that a master has, and how one is opened."""

from __future__ import annotations

import os
import socket

from ..errors import Unsupported
from ..system.connections import SYN_RECV, connections, count
from ..system.fds import describe, listener_queue
from ..system.paths import unlink_control
from ..system.sockets import bind, parse_bind
from ..system.switch import Group
from .options import KERNEL, SHARED
from .outlet import RENAME, Outlet
from .renaming import RenameOutlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


class KernelOutlet(Outlet):
    """TCP or UDP, switched by the kernel's program."""

    mode = KERNEL

    def __init__(self, name: str, group: Group, places: dict[int, int] | None = None) -> None:
        """``places``: which of the group's slots is which of ours, where that is not the same number (found again after a
        crash, the group has an order of its own)."""
        self.name = name
        self._group = group
        self.places = places or {}
        self._port = group.port
        description = describe(group.slot(0).fileno())
        assert description is not None
        self.address = description.address
        self._stream = description.type == socket.SOCK_STREAM
        self._family = description.family
        self.probed = self._stream
        self.host = self.address
        self._choice: tuple[int, int, float] = (0, -1, 0.0)

    def _place(self, slot: int) -> int:
        return self.places.get(slot, slot)

    def give(self, slot: int) -> socket.socket:
        return self._group.slot(self._place(slot))

    def sockets(self) -> dict[int, socket.socket]:
        return {slot: self.give(slot) for slot in range(self._group.slots)}

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

    def mend(self, slot: int) -> list[str]:
        return self._group.check(self._place(slot))

    def leave(self, slot: int) -> None:
        """A process of that generation may have escaped us, and would go on accepting: it gets nothing of the next one's."""
        if self._stream:
            self._group.renew(self._place(slot))

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
        self._attach(None)

    def accepted(self, slot: int, probe: socket.socket) -> bool:
        if self.waiting(slot):
            return False
        # Connected, as the client sees it, is not yet in the queue: the handshake's last packet may be on its way.
        port = probe.getsockname()[1]
        on_its_way = any(seen.remote[1] == port for seen in connections(self._port, self._family, (SYN_RECV,)))
        return not on_its_way and self.waiting(slot) == 0

    def connect(self) -> socket.socket:
        return socket.create_connection(self._target())

    def turn_away(self) -> None:
        """What comes from now on is dropped, as if the network had lost it: the client's kernel sends it again, and is refused
        once the listeners are closed, or served if another service is there by then."""
        place = self._group.add_slot()
        self._group.deafen(place)
        self._group.choose(place)

    def _target(self) -> tuple[str, int]:
        """Where a connection from this host to this very listener goes."""
        host, port = self._group.slot(0).getsockname()[:2]
        wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        return wildcards.get(host, host), port

    def close(self, *, unlink: bool) -> None:  # noqa: ARG002
        self._group.close()


class SharedOutlet(Outlet):
    """One socket for all generations: where there is no switch."""

    mode = SHARED

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self._sock = sock
        self._backlog = (listener_queue(sock.fileno()) or (0, 0))[1]
        description = describe(sock.fileno())
        self.address = description.address if description is not None else ""

    def give(self, slot: int) -> socket.socket:  # noqa: ARG002
        return self._sock

    def sockets(self) -> dict[int, socket.socket]:
        return {0: self._sock}

    def mend(self, slot: int) -> list[str]:  # noqa: ARG002
        """Most servers call listen() again, which changes the backlog for all; some change what connections inherit."""
        os.set_blocking(self._sock.fileno(), False)
        queue = listener_queue(self._sock.fileno())
        if queue is None:
            return []
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if queue[1] >= self._backlog:
            return []
        self._sock.listen(self._backlog)
        return ["backlog"]

    def close(self, *, unlink: bool) -> None:
        if unlink and self.address.startswith("unix:/"):
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
            return [KernelOutlet(name, group) for group in Group.bind(spec, slots)]
        except Unsupported:
            pass  # no such switch on this system: the generations share one queue, and status says so
    if spec.kind == "unix" and not spec.path.startswith(b"\0") and switch == KERNEL:
        return [RenameOutlet(name, spec)]
    return [SharedOutlet(name, sock) for sock in bind(spec)]


def reopen_outlet(mode: str, name: str, text: str, slots: int, found: dict[int, socket.socket]) -> Outlet:
    """The outlet whose sockets were found again, by slot, in processes that outlived the last master. Takes them."""
    outlet: Outlet
    if mode == KERNEL:
        # The sockets of idle slots ended with the last master, so the kernel has moved the others: it is asked for the order.
        group = Group.from_sockets(list(found.values()), slots, in_order=False)
        outlet = KernelOutlet(name, group, _places(group, found, slots))
    elif mode == RENAME:
        outlet = RenameOutlet(name, parse_bind(text), found)
    else:
        first, *others = found.values()
        for sock in others:
            sock.close()
        outlet = SharedOutlet(name, first)
    outlet.text = text
    return outlet


def _places(group: Group, found: dict[int, socket.socket], slots: int) -> dict[int, int]:
    """Our slots as the group's: those with a socket where it is, the idle ones in what is left."""
    places = {}
    for slot, sock in found.items():
        description = describe(sock.fileno())
        place = group.slot_of(description.cookie) if description is not None else None
        if place is not None:
            places[slot] = place
    free = iter(sorted(set(range(slots)) - set(places.values())))
    for slot in range(slots):
        if slot not in places:
            places[slot] = next(free)
    return places
