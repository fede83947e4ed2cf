"""What a service holds: what came to it from before, what it bound, what it was told to hand on. All of it goes to the next
generation, and is closed at the end."""

from __future__ import annotations

import os

from .errors import ListenerError
from .inventory import fits
from .listener import HEALTH, File, Listener, Listeners, check_name
from .system.fds import describe, listener_queue
from .system.paths import unlink_control
from .system.sockets import bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from typing import Any

    from .system.sockets import BindSpec


class Files:
    """The files that came with a takeover, as descriptors by name. Asking for one (``files["log"]``, ``get``) keeps it, and
    it is handed on; the rest is closed when the service becomes ready. They belong to the service: ``os.dup`` what shall
    live longer."""

    def __init__(self, came: Mapping[str, int] | None = None) -> None:
        self._came = dict(came or {})
        self._claimed: set[str] = set()

    def __getitem__(self, name: str) -> int:
        fd = self._came[name]
        self._claimed.add(name)
        return fd

    def get(self, name: str) -> int | None:
        return self[name] if name in self._came else None

    def __contains__(self, name: object) -> bool:
        return name in self._came

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._came))

    def __len__(self) -> int:
        return len(self._came)

    def __repr__(self) -> str:
        return f"<Files {', '.join(self._came)}>"

    def claimed(self) -> dict[str, int]:
        return {name: fd for name, fd in self._came.items() if name in self._claimed}

    def close_unclaimed(self) -> None:
        for name in self._came.keys() - self._claimed:
            os.close(self._came.pop(name))

    def close(self) -> None:
        for fd in self._came.values():
            os.close(fd)
        self._came = {}


class Holdings:
    """``came``, ``files``: what came. ``listeners``: names and sockets that this process uses, in the order in which it
    asked for them. ``health``: those for ``HEALTH``."""

    def __init__(self) -> None:
        self.came = Listeners((), ())
        self.health: list[socket.socket] = []
        self._health_came: list[socket.socket] = []
        self.files = Files()
        self.listeners: list[tuple[str, Any]] = []  # an adopted one may be a bare descriptor
        self._bound: list[socket.socket] = []
        self._adopted: dict[str, Any] = {}

    def arrive(self, came: Listeners, health: list[socket.socket]) -> None:
        """What came, by whichever way."""
        pairs = came.unclaimed()
        self._health_came = [*health, *(sock for name, sock in pairs if name == HEALTH)]
        mine = [(name, sock) for name, sock in pairs if name != HEALTH]
        self.came = Listeners([name for name, _ in mine], [sock for _, sock in mine])

    def listen_for_health(self, spec: BindSpec) -> None:
        """``ListenerError`` as for any other listener."""
        _absolute(spec)
        self.health = [sock for sock in self._health_came if fits(spec, sock.fileno())]
        if not self.health:
            self.health = bind(spec)
            self._bound += self.health

    def listen(self, name: str, spec: BindSpec, *, may_bind: bool) -> list[socket.socket]:
        """What came as ``name`` and fits, else bound now; empty when it would have to be bound and may not."""
        _absolute(spec)
        sockets = self._take(name, spec)
        if not sockets and may_bind:
            sockets = bind(spec)
            self._bound += sockets
        self.listeners += [(name, sock) for sock in sockets]
        return sockets

    def _take(self, name: str, spec: BindSpec) -> list[socket.socket]:
        """What was inherited or taken over under this name, or under none, and fits."""
        unclaimed = self.came.unclaimed()
        found = [sock for other, sock in unclaimed if other == name and fits(spec, sock.fileno())]
        if not found:
            nameless = [sock for other, sock in unclaimed if other.startswith("listener") or other == "unknown"]
            found = [sock for sock in nameless if fits(spec, sock.fileno(), strictly=True)]
        for sock in found:
            self.came.claim(sock)
        return found

    def adopt(self, name: str, thing: Any) -> None:
        """``thing``: a bound socket, which becomes a listener; or any other open file, or a descriptor of one."""
        check_name(name)
        fd = fileno(thing)
        what = describe(fd)
        if what is not None and not what.connected and (what.listening or what.address):
            self.listeners.append((name, thing))
            return
        if name in self._adopted or name in self.files.claimed():
            raise ListenerError(f"a file named {name!r} is handed on already: each needs a name of its own")
        self._adopted[name] = thing

    def settle(self) -> None:
        """The service is ready: what it took is handed on, the rest is closed."""
        for sock in (*(sock for _, sock in self.came.unclaimed()), *self._health_came):
            if sock not in self.health:
                sock.close()
        self._health_came = []
        ours = {id(sock) for _, sock in self.listeners}
        self.listeners += [pair for pair in self.came.claimed() if id(pair[1]) not in ours]
        self.files.close_unclaimed()

    def items(self) -> list[Listener]:
        """What the next generation gets."""
        return [
            *(Listener(name, sock) for name, sock in self.listeners),
            *(Listener(HEALTH, sock) for sock in self.health),
            *(File(name, thing) for name, thing in (*self.files.claimed().items(), *self._adopted.items())),
        ]

    def status(self) -> list[dict[str, Any]]:
        found = []
        for name, sock in self.listeners:
            fd = fileno(sock)
            what = describe(fd) if fd >= 0 else None
            queue = listener_queue(fd) if what is not None else None
            found.append(
                {
                    "name": name,
                    "address": what.address if what is not None else "",
                    "queue": queue[0] if queue else None,
                    "backlog": queue[1] if queue else None,
                }
            )
        return found

    def unlink(self, *, all: bool) -> None:
        """The names of Unix listeners go with the last owner, where they are still these very sockets'. Without ``all`` only
        those that were bound here: nobody else has them yet."""
        for sock in [*(sock for _, sock in self.listeners), *self.health] if all else self._bound:
            fd = fileno(sock)
            what = describe(fd) if fd >= 0 else None
            if what is not None and what.address.startswith("unix:/"):
                unlink_control(what.address[5:], sock)

    def close(self) -> None:
        for thing in (*(sock for _, sock in self.listeners), *self.health, *self._health_came, *self._adopted.values()):
            _close(thing)
        self.came.close()
        self.files.close()


def _absolute(spec: BindSpec) -> None:
    """Whoever removes a Unix socket at the end may be somewhere else by then."""
    if spec.path and spec.path[:1] != b"\0":
        spec.path = os.path.abspath(spec.path)


def fileno(thing: Any) -> int:
    return thing if isinstance(thing, int) else int(thing.fileno())


def _close(thing: Any) -> None:
    if isinstance(thing, int):
        os.close(thing)
    else:
        thing.close()
