"""What is handed over, as values: listeners, files, established connections, and what the wire says of each."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as _socket
    from collections.abc import Iterator, Sequence
    from typing import Any

KIND_LISTENER = 1
KIND_FILE = 2
KIND_CONNECTION = 3
KIND_CONTROL = 4
KIND_COUNTERS = 5

KIND_NAMES = {
    KIND_LISTENER: "listener",
    KIND_FILE: "file",
    KIND_CONNECTION: "connection",
    KIND_CONTROL: "control",
    KIND_COUNTERS: "counters",
}

NAME_MAX = 255


def check_name(name: str) -> str:
    """``name`` itself, when it can stand in ``LISTEN_FDNAMES``: printable ASCII, 1 to 255 characters, no ``:``."""
    if not isinstance(name, str):
        raise TypeError(f"a listener's name is a str, not {type(name).__name__}")
    if not 0 < len(name) <= NAME_MAX:
        raise ValueError(f"a listener's name has 1 to {NAME_MAX} characters, not {len(name)}")
    if ":" in name or not name.isascii() or not name.isprintable():
        raise ValueError(f"a listener's name is printable ASCII without ':', not {name!r}")
    return name


#: What a ``Service`` hands on beside what is the application's: where it answers for its health, and what was counted so far.
#: Nobody else sees it.
HEALTH = "fdhandoff-health"
LEDGER = "fdhandoff-ledger-"


class Listener:
    """A bound socket with a name. ``target`` is a ``socket.socket`` (or anything with ``fileno()``) or a descriptor number;
    it is borrowed, never closed or duplicated."""

    __slots__ = ("name", "target")

    def __init__(self, name: str, target: Any) -> None:
        self.name = check_name(name)
        self.target = target

    def fileno(self) -> int:
        return self.target if isinstance(self.target, int) else int(self.target.fileno())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.target!r})"


class File(Listener):
    """An open file that is not a listener: a pipe, a memfd, a log, a lock. Handed over under its name."""

    __slots__ = ()


class Connection(Listener):
    """An established connection, with what the application knows of it as bytes (at most 512 KiB)."""

    __slots__ = ("state",)

    STATE_MAX = 512 * 1024

    def __init__(self, name: str, target: Any, state: bytes = b"") -> None:
        super().__init__(name, target)
        if len(state) > self.STATE_MAX:
            raise ValueError(f"a connection's state is at most {self.STATE_MAX} bytes, not {len(state)}")
        self.state = bytes(state)


class Entry:
    """What the old side says of one descriptor, and what the new side verifies.

    ``family``, ``type``, ``protocol`` are the kernel's numbers; ``cookie`` is ``SO_COOKIE`` (0 where there is none);
    ``address`` is the canonical text (``127.0.0.1:80``, ``unix:/run/x``). A file has ``mode``, ``device`` and ``inode``
    instead. ``state`` are the application's bytes beside a connection.
    """

    __slots__ = (
        "address",
        "connected",
        "cookie",
        "device",
        "family",
        "inode",
        "kind",
        "listening",
        "mode",
        "name",
        "protocol",
        "state",
        "type",
        "v6only",
    )

    def __init__(
        self,
        name: str,
        kind: int,
        *,
        family: int = 0,
        type: int = 0,
        protocol: int = 0,
        listening: bool = False,
        connected: bool = False,
        v6only: bool = False,
        cookie: int = 0,
        address: str = "",
        mode: int = 0,
        device: int = 0,
        inode: int = 0,
        state: bytes = b"",
    ) -> None:
        self.name = name
        self.kind = kind
        self.family = family
        self.type = type
        self.protocol = protocol
        self.listening = listening
        self.connected = connected
        self.v6only = v6only
        self.cookie = cookie
        self.address = address
        self.mode = mode
        self.device = device
        self.inode = inode
        self.state = state

    def differences(self, other: Entry) -> list[str]:
        """The names of the fields of identity that differ; empty when ``other`` describes the same open thing."""
        fields = ["kind"]
        if self.mode or other.mode:
            fields += ["mode", "device", "inode"]
        else:
            fields += ["family", "type", "protocol", "listening", "cookie"]
            if self.address or not self.cookie or self.kind != KIND_CONNECTION:
                fields += ["v6only", "address"]
        return [field for field in fields if getattr(self, field) != getattr(other, field)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in Entry.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        kind = KIND_NAMES.get(self.kind, str(self.kind))
        return f"<Entry {self.name!r} {kind} {self.address or self.inode}>"


class Listeners:
    """The listeners that came, as a sequence in the sender's order *and* by name.

    ``listeners[0]``, ``listeners["http"]``, iteration and ``len`` as a sequence; ``names``, ``items()``, ``get(name)`` and
    ``in`` by name. Where several bear one name (systemd does that), the name gives the first and ``all(name)`` every one.
    Each is a ready-to-use ``socket.socket``. What the application takes out with ``claim`` (every access does it) is its
    own; the rest is closed when the new side becomes ready.
    """

    __slots__ = ("_claimed", "_names", "_sockets")

    def __init__(self, names: Sequence[str], sockets: Sequence[_socket.socket]) -> None:
        self._names = tuple(names)
        self._sockets = tuple(sockets)
        self._claimed: set[int] = set()

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def _index(self, name: str) -> int:
        try:
            return self._names.index(name)
        except ValueError:
            raise KeyError(name) from None

    def __len__(self) -> int:
        return len(self._sockets)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, key: int | str) -> _socket.socket:
        index = self._index(key) if isinstance(key, str) else range(len(self._sockets))[key]
        self._claimed.add(index)
        return self._sockets[index]

    def get(self, name: str) -> _socket.socket | None:
        return self[name] if name in self._names else None

    def all(self, name: str) -> list[_socket.socket]:
        return [self[index] for index, candidate in enumerate(self._names) if candidate == name]

    def __iter__(self) -> Iterator[_socket.socket]:
        return (self[index] for index in range(len(self._sockets)))

    def items(self) -> list[tuple[str, _socket.socket]]:
        return list(zip(self._names, self, strict=True))

    def unclaimed(self) -> list[tuple[str, _socket.socket]]:
        """Those that nobody has asked for yet; asking here claims nothing."""
        pairs = zip(self._names, self._sockets, strict=True)
        return [pair for index, pair in enumerate(pairs) if index not in self._claimed]

    def claimed(self) -> list[tuple[str, _socket.socket]]:
        """Those that somebody asked for."""
        pairs = zip(self._names, self._sockets, strict=True)
        return [pair for index, pair in enumerate(pairs) if index in self._claimed]

    def claim(self, sock: _socket.socket) -> None:
        """Takes this one out, as asking for it by name does."""
        self._claimed.add(self._sockets.index(sock))

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def __repr__(self) -> str:
        return f"<Listeners {', '.join(self._names)}>"
