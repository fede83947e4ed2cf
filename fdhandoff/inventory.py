"""What a process has to hand over: each item described for the wire, and checked on arrival against what was said of it."""

from __future__ import annotations

import os
import socket

from .errors import OLD, ListenerError, ListenerMismatch, SystemCallError
from .listener import (
    KIND_CONNECTION,
    KIND_COUNTERS,
    KIND_FILE,
    KIND_LISTENER,
    KIND_NAMES,
    Connection,
    Entry,
    File,
    Listener,
    check_name,
)
from .system.fds import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from .system.fds import Description
    from .system.sockets import BindSpec

    Item = Any  # a socket, a descriptor, a Listener, File or Connection


_NO_ADDRESS = ("", "unix:", "0.0.0.0:0", "[::]:0")


def entry_of(name: str, fd: int, kind: int = 0, state: bytes = b"") -> Entry:
    """Describes open descriptor ``fd``. Without ``kind`` it is told by what the descriptor is: a socket with a peer is a
    connection, any other socket a listener, the rest files. ``ListenerError`` for what can't be handed over."""
    return _described(name, fd, kind, state)[0]


def _described(name: str, fd: int, kind: int, state: bytes = b"") -> tuple[Entry, Description | None]:
    """The entry, and what it was made of where ``fd`` is a socket."""
    try:
        description = describe(fd)
    except OSError as error:
        raise ListenerError(f"{name!r} (descriptor {fd}) can't be handed over: {error}", serving=OLD) from error
    if description is None:
        if kind not in (0, KIND_FILE, KIND_COUNTERS):
            raise ListenerError(f"{name!r} (descriptor {fd}) is no socket", serving=OLD)
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise SystemCallError("fstat", error.errno or 0, doing=f"looking at {name!r}") from error
        file = Entry(name, kind or KIND_FILE, mode=status.st_mode, device=status.st_dev, inode=status.st_ino)
        return file, None
    if not kind:
        kind = KIND_CONNECTION if description.connected else KIND_LISTENER
    if kind == KIND_LISTENER and not description.listening and description.address in _NO_ADDRESS:
        raise ListenerError(f"{name!r} (descriptor {fd}) is a socket without an address: bind it first", serving=OLD)
    entry = Entry(
        name,
        kind,
        family=description.family,
        type=description.type,
        protocol=description.protocol,
        listening=description.listening,
        connected=description.connected,
        v6only=description.v6only,
        cookie=description.cookie,
        address=description.address,
        state=state,
    )
    return entry, description


def collect(items: Mapping[str, Item] | Iterable[Item]) -> list[tuple[Entry, int]]:
    """Entries and (borrowed) descriptors of what a caller passes as ``listeners``: a mapping by name, or a sequence whose
    unnamed members become ``listener0``, ``listener1``, … by position."""
    pairs: Sequence[tuple[str, Item]]
    if hasattr(items, "items") and hasattr(items, "keys"):
        pairs = [(check_name(name), item) for name, item in items.items()]
    else:
        # Only ours have a name of that meaning: a file object's is its path.
        pairs = [(item.name if isinstance(item, Listener) else f"listener{i}", item) for i, item in enumerate(items)]
    return [_item(name, item) for name, item in pairs]


def _item(name: str, item: Item) -> tuple[Entry, int]:
    if isinstance(item, bool) or not (isinstance(item, int) or hasattr(item, "fileno")):
        raise TypeError(f"{name!r} is neither a socket, a descriptor nor a Listener but {type(item).__name__}")
    fd = item if isinstance(item, int) else item.fileno()
    if fd < 0:
        raise ListenerError(f"{name!r} is closed", serving=OLD)
    if isinstance(item, Connection):
        return entry_of(name, fd, KIND_CONNECTION, item.state), fd
    if isinstance(item, File):
        return entry_of(name, fd, KIND_FILE), fd
    if type(item) is Listener:
        entry = entry_of(name, fd)
        if entry.kind == KIND_FILE:
            raise ListenerError(f"the listener {name!r} (descriptor {fd}) is no socket", serving=OLD)
        return entry, fd
    return entry_of(name, fd), fd


def fits(spec: BindSpec, fd: int, *, strictly: bool = False) -> bool:
    """Whether the socket ``fd`` is what binding ``spec`` would make: kind, port and, where it is a number, address. A port 0
    fits any, unless ``strictly``. A host name is not resolved: it fits."""
    description = describe(fd)
    if description is None:
        return False
    if spec.kind not in ("tcp", "udp"):
        return str(spec).removeprefix(spec.kind) == description.address.removeprefix("unix")
    wanted = socket.SOCK_STREAM if spec.kind == "tcp" else socket.SOCK_DGRAM
    host, _, port = description.address.rpartition(":")
    if description.type != wanted or description.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if spec.port != int(port) and (spec.port != 0 or strictly):
        return False
    host = host.strip("[]")
    if not spec.host:
        return host in ("::", "0.0.0.0")  # noqa: S104 - compared, not bound
    if spec.host.replace(".", "").isdigit() or ":" in spec.host:
        return spec.host == host
    return True


def verify(entry: Entry, fd: int) -> Description | None:
    """``ListenerMismatch`` unless ``fd`` is what ``entry`` says. Returns what the kernel says of a socket."""
    try:
        actual, description = _described(entry.name, fd, entry.kind)
    except ListenerError as error:
        raise ListenerMismatch(
            f"what came as {KIND_NAMES.get(entry.kind, 'item')} {entry.name!r} is something else: {error}",
            expected=entry,
            got=None,
        ) from error
    different = entry.differences(actual)
    if different:
        expected = ", ".join(f"{field} {getattr(entry, field)}" for field in different)
        got = ", ".join(f"{field} {getattr(actual, field)}" for field in different)
        raise ListenerMismatch(
            f"what came as {KIND_NAMES.get(entry.kind, 'item')} {entry.name!r} is not what was offered: "
            f"expected {expected}; got {got}",
            expected=entry,
            got=actual,
        )
    return description
