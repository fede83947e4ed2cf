"""The switch of a Unix stream socket: a rename. The old queue stays with the old generation, and the path is never empty."""

from __future__ import annotations

import os
import socket

from ..errors import PathError
from ..system.connections import unix_accepted, unix_connections_of, unix_queue
from ..system.hearing import hung_up
from ..system.paths import PATH_MAX, unlink_control
from ..system.sockets import bind, parse_bind
from .outlet import LOST, RENAME, Outlet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from ..system.sockets import BindSpec

# Behind it come a number and a word, as in .12.kept.
_PUBLIC_MAX = PATH_MAX - 10


class RenameOutlet(Outlet):
    """A Unix stream socket: each generation binds a name of its own beside the public one, and the switch is a rename."""

    mode = RENAME

    def __init__(self, name: str, spec: BindSpec, sockets: dict[int, socket.socket] | None = None) -> None:
        self.name = name
        self._spec = spec
        self._public = os.fsdecode(spec.path)
        if len(spec.path) > _PUBLIC_MAX:
            raise PathError(
                f"{self._public} has {len(spec.path)} bytes, and {_PUBLIC_MAX} leave room for the names that its generations "
                "have beside it: choose a shorter one, or use --switch shared",
                path=self._public,
            )
        self.address = f"unix:{self._public}"
        self.host = "localhost"
        self.probed = True
        self._sockets: dict[int, socket.socket] = sockets or {}
        self._effective = 0  # what the kernel made of the backlog, once one of them was bound here
        if not self._sockets:
            # Bound once by its public name, so that a live owner there is found, and what may be in the way told.
            (claimed,) = bind(spec)
            self.choose(0)
            claimed.close()

    def sockets(self) -> dict[int, socket.socket]:
        return dict(self._sockets)

    def _private(self, slot: int) -> str:
        return private_name(self._public, slot)

    def _kept(self, slot: int) -> str:
        """Another name of the same socket, of which no server knows."""
        return f"{self._public}.{slot}.kept"

    def give(self, slot: int) -> socket.socket:
        if slot not in self._sockets:
            spec = parse_bind(f"unix:{self._private(slot)}")
            spec.mode, spec.owner, spec.group = self._spec.mode, self._spec.owner, self._spec.group
            spec.backlog = self._spec.backlog
            (sock,) = bind(spec)
            try:
                sock.setblocking(False)
                _remove(self._kept(slot))
                _link(self._private(slot), self._kept(slot))
            except BaseException:
                unlink_control(self._private(slot), sock)
                sock.close()
                raise
            self._sockets[slot] = sock
            self._effective = unix_queue(sock)[1]
        return self._sockets[slot]

    def choose(self, old: int, new: int = -1, share: float = 0.0) -> None:
        """All or nothing: a canary is not to be had here, so only a whole share moves the name."""
        old, new, share = self.narrowed(old, new, share)
        slot = new if share >= 1.0 else old
        self.give(slot)
        self._publish(slot)

    def _publish(self, slot: int) -> None:
        if _same_file(self._public, self._kept(slot)):
            return  # a rename of one name of a file over another of it would do nothing, and leave both
        temporary = f"{self._public}.next"
        _remove(temporary)
        _link(self._kept(slot), temporary)
        os.replace(temporary, self._public)

    def waiting(self, slot: int) -> int | None:
        return unix_queue(self._sockets[slot])[0] if slot in self._sockets else 0

    def backlog(self, slot: int) -> int | None:
        return unix_queue(self._sockets[slot])[1] if slot in self._sockets else None

    def connections(self, pids: Collection[int]) -> int:
        return sum(len(unix_connections_of(os.fsencode(self._private(slot)), pids)) for slot in self._sockets)

    def mend(self, slot: int, *, serving: bool = False) -> list[str]:
        sock = self.give(slot)
        if hung_up(sock):
            public = _same_file(self._public, self._kept(slot))
            self.leave(slot)
            self.give(slot)
            if public:
                self._publish(slot)
            return [LOST]
        if not serving:
            sock.setblocking(False)
        if unix_queue(sock)[1] >= self._effective:
            return []
        sock.listen(self._spec.backlog)
        return ["backlog"]

    def accepted(self, slot: int, probe: socket.socket) -> bool:
        return not self.waiting(slot) or unix_accepted(probe)  # what waits may be others, as with TCP

    def connect_to(self, slot: int) -> socket.socket:
        return self._connected(self._kept(slot), socket.SOCK_NONBLOCK)

    def connect(self) -> socket.socket:
        return self._connected(self._public, 0)

    def _connected(self, path: str, flags: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | flags)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    def turn_away(self) -> None:
        """The name goes: whoever connects now finds nothing there."""
        if any(_same_file(self._public, self._kept(slot)) for slot in self._sockets):
            os.unlink(self._public)

    def leave(self, slot: int) -> None:
        sock = self._sockets.pop(slot, None)
        if sock is not None:
            unlink_control(self._private(slot), sock)
            _remove(self._kept(slot))
            sock.close()

    def part(self, slot: int, whole: bool) -> None:
        """The names of the successor's socket stay: it is known by them, and the public one is another of the same file."""
        sock = self._sockets.pop(slot, None)
        if sock is not None:
            sock.close()
            if not whole:
                _remove(self._kept(slot))
        self.close(unlink=False)

    def decline(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}

    def close(self, *, unlink: bool) -> None:
        if unlink:
            self.turn_away()
        for slot in list(self._sockets):
            self.leave(slot)


def _link(path: str, other: str) -> None:
    try:
        os.link(path, other)
    except PermissionError:
        raise PathError(
            f"{path} can't have a second name: a socket that belongs to another user can get one from root alone, or with "
            "CAP_FOWNER (fs.protected_hardlinks); give it no owner=, or use --switch shared",
            path=path,
        ) from None


def private_name(public: str, slot: int) -> str:
    """What the slot's socket is bound to. A server may remove that name when it ends, so it is not relied upon."""
    return f"{public}.{slot}"


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False
