"""A listener as the master sees it: which generation's queue gets a new connection, and how that is changed."""

from __future__ import annotations

import os
import socket

from ..errors import Unsupported
from ..system.connections import count
from ..system.fds import describe, listener_queue
from ..system.paths import unlink_control
from ..system.sockets import bind, parse_bind
from ..system.switch import Group
from .options import KERNEL, SHARED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from ..system.sockets import BindSpec

RENAME = "rename"


class Outlet:
    """One bound address. ``name`` is the listener's, ``address`` its canonical text, ``mode`` how it switches: ``kernel``
    (an accept queue per generation), ``rename`` (Unix: a socket per generation) or ``shared`` (one queue for all)."""

    name: str
    address: str
    mode: str
    text = ""  # as it was bound
    probed = False
    host = ""
    only = -1  # the one slot whose generation knows this listener, where the others do not

    def give(self, slot: int) -> socket.socket:
        """The socket that the generation in ``slot`` gets; it stays the master's."""
        raise NotImplementedError

    def choose(self, old: int, new: int = -1, share: float = 0.0) -> None:
        """From now on ``share`` of the new connections go to slot ``new``, the others to ``old``."""

    def narrowed(self, old: int, new: int, share: float) -> tuple[int, int, float]:
        """What ``choose`` is to do."""
        return (old, new, share) if self.only < 0 else (self.only, -1, 0.0)

    def waiting(self, slot: int) -> int | None:
        """Connections in the slot's queue; ``None`` where the kernel does not say."""
        queue = listener_queue(self.give(slot).fileno())
        return queue[0] if queue else None

    def backlog(self, slot: int) -> int | None:
        queue = listener_queue(self.give(slot).fileno())
        return queue[1] if queue else None

    def connections(self, pids: Collection[int]) -> int:  # noqa: ARG002
        """How many connections through this listener these processes have."""
        return 0

    def mend(self, slot: int) -> list[str]:  # noqa: ARG002
        """What a server did to its listener that others would suffer from, repaired: in words."""
        return []

    def leave(self, slot: int) -> None:
        """The generation in ``slot`` has ended."""

    def connect_to(self, slot: int) -> socket.socket:  # noqa: ARG002
        """A non-blocking connection that goes to ``slot``, whoever the others go to, until ``end_probe``."""
        raise Unsupported(f"{self.name} can't be probed: it is not TCP under the kernel switch")

    def end_probe(self) -> None:
        """The probe is over."""

    def sockets(self) -> dict[int, socket.socket]:
        """The sockets that it holds, by slot: what a successor of the master must find again."""
        raise NotImplementedError

    def close(self, *, unlink: bool) -> None:
        """Ends it; ``unlink`` when no other process serves there."""
        raise NotImplementedError


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

    def mend(self, slot: int) -> list[str]:
        return self._group.check(self._place(slot))

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
        description = describe(sock.fileno())
        self.address = description.address if description is not None else ""

    def give(self, slot: int) -> socket.socket:  # noqa: ARG002
        return self._sock

    def sockets(self) -> dict[int, socket.socket]:
        return {0: self._sock}

    def close(self, *, unlink: bool) -> None:
        if unlink and self.address.startswith("unix:/"):
            unlink_control(self.address[5:], self._sock)
        self._sock.close()


class RenameOutlet(Outlet):
    """A Unix stream socket: each generation binds a name of its own beside the public one, and the switch is a rename."""

    mode = RENAME

    def __init__(self, name: str, spec: BindSpec, sockets: dict[int, socket.socket] | None = None) -> None:
        self.name = name
        self._spec = spec
        self._public = os.fsdecode(spec.path)
        self.address = f"unix:{self._public}"
        self._sockets: dict[int, socket.socket] = sockets or {}

    def sockets(self) -> dict[int, socket.socket]:
        return dict(self._sockets)

    def _private(self, slot: int) -> str:
        return f"{self._public}.{slot}"

    def give(self, slot: int) -> socket.socket:
        if slot not in self._sockets:
            spec = parse_bind(f"unix:{self._private(slot)}")
            spec.mode, spec.group, spec.backlog = self._spec.mode, self._spec.group, self._spec.backlog
            (self._sockets[slot],) = bind(spec)
        return self._sockets[slot]

    def choose(self, old: int, new: int = -1, share: float = 0.0) -> None:
        """All or nothing: a canary is not to be had here, so only a whole share moves the name."""
        old, new, share = self.narrowed(old, new, share)
        slot = new if share >= 1.0 else old
        temporary = f"{self._public}.next"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.link(self._private(slot), temporary)
        os.replace(temporary, self._public)

    def leave(self, slot: int) -> None:
        sock = self._sockets.pop(slot, None)
        if sock is not None:
            unlink_control(self._private(slot), sock)
            sock.close()

    def close(self, *, unlink: bool) -> None:
        for slot, sock in list(self._sockets.items()):
            if unlink and _same_file(self._public, self._private(slot)):
                os.unlink(self._public)
            self.leave(slot)
            sock.close()


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


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
