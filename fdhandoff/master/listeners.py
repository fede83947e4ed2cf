"""Listeners come and go with the configuration: what an upgrade binds, and what it gives up, when it is done and not before."""

from __future__ import annotations

import os
import socket

from ..errors import ListenerError
from ..inventory import fits
from ..system.fds import describe
from ..system.sockets import parse_bind
from .options import KERNEL
from .outlet import INHERITED
from .outlets import lend_outlet, open_outlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .master import Master
    from .options import Options
    from .outlet import Outlet
    from .run import Run


def open_all(
    given: list[tuple[str, socket.socket]],
    binds: Sequence[str],
    *,
    switch: str,
    slots: int,
    say: Callable[[str], object],
    origin: str = INHERITED,
    kept: Sequence[Outlet] = (),
    live: bool = False,
) -> list[Outlet]:
    """What came from elsewhere, by name, and what is bound besides; ``given`` is emptied. All or nothing.

    A bind that has the name or the address of what came means just that, so nothing is bound for it. Sockets that came with
    one address are the members of one group: see ``lend_outlet``, also for ``live``.
    ``kept`` are open already: they go where they belong.
    """
    outlets: list[Outlet] = [outlet for outlet in kept if not outlet.text]
    try:
        while given:
            name, first = given[0]
            what = _checked(name, first)
            alike = [pair for pair in given if _checked(*pair) == what]
            outlet, why = lend_outlet(
                name, [sock for _, sock in alike], switch=switch, slots=slots, origin=origin, live=live
            )
            given[:] = [pair for pair in given if pair not in alike]
            outlets.append(outlet)
            if why:
                say(f"{name} has one queue for all generations: {why}")
        offset = len(outlets)
        for place, text in enumerate(binds):
            again = [outlet for outlet in kept if outlet.text == text]
            outlets += again
            if not again and not any(_is_meant(text, outlet) for outlet in outlets[:offset]):
                outlets += open_outlets(text, switch=switch, slots=slots, position=offset + place)
    except BaseException:
        for outlet in {*outlets, *kept}:
            outlet.decline() if live else outlet.close(unlink=True)
        for _, sock in given:
            sock.close()
        raise
    return outlets


def _checked(name: str, sock: socket.socket) -> tuple[object, ...]:
    """What makes two sockets members of one group. ``ListenerError`` for what can't be a listener."""
    what = describe(sock.fileno())
    if what is None or what.connected or not (what.listening or (what.type == socket.SOCK_DGRAM and what.address)):
        raise ListenerError(
            f"{name} (descriptor {sock.fileno()}) is {what}, which does not listen: pass bound listeners"
        )
    alone = what.cookie if what.family == socket.AF_UNIX else 0
    return what.family, what.type, what.address, alone


def _is_meant(text: str, outlet: Outlet) -> bool:
    """Whether this bind means what was not bound here."""
    if outlet.text:
        return False
    spec = parse_bind(text)
    if spec.name and spec.name == outlet.name:
        return True
    if spec.kind.startswith("unix") and spec.path[:1] != b"\0":
        spec.path = os.path.abspath(spec.path)
    return any(fits(spec, sock.fileno(), strictly=True) for sock in outlet.sockets().values())


def match(outlets: Sequence[Outlet], binds: Sequence[str]) -> tuple[list[tuple[str, list[Outlet]]], list[Outlet]]:
    """Each of ``binds`` with the outlets that are its own already (none: it is new), and the outlets that nobody wants any
    more. The same address under another name is the same listener. What came from elsewhere stays, and a bind that means what
    was not bound from a text is left out."""
    binds = [text for text in binds if not any(_is_meant(text, outlet) for outlet in outlets)]
    free: dict[str, list[Outlet]] = {}
    for outlet in outlets:
        if outlet.text:
            free.setdefault(outlet.text, []).append(outlet)  # one text may stand for an IPv4 and an IPv6 socket
    found: dict[str, list[Outlet]] = {text: free.pop(text) for text in binds if text in free}
    for text in binds:
        if text not in found:
            same = next((other for other in free if str(parse_bind(other)) == str(parse_bind(text))), None)
            found[text] = free.pop(same) if same is not None else []
    gone = [outlet for group in free.values() for outlet in group if not outlet.stays]
    return [(text, found[text]) for text in binds], gone


def forbid_canary_on(outlets: Sequence[Outlet], options: Options) -> None:
    """``ValueError`` where a listener that came from elsewhere has no switch that could split its connections."""
    whole = [outlet.name for outlet in outlets if outlet.mode != KERNEL]
    if options.canary and whole:
        raise ValueError(f"a canary is not to be had on {', '.join(whole)}: it has one queue for all generations")


class Change:
    """What an upgrade changes. Until it is done, a listener that came has the new generation alone, one that goes the old."""

    def __init__(self, master: Master, binds: Sequence[str]) -> None:
        """Binds what is new: all, or nothing."""
        self._master = master
        self._before = [(outlet, outlet.name, outlet.text) for outlet in master.outlets]
        self.added: list[Outlet] = []
        pairs, self.removed = match(master.outlets, binds)
        named = {id(outlet) for _, outlets in pairs for outlet in outlets}
        arranged = [outlet for outlet in master.outlets if id(outlet) not in named and outlet not in self.removed]
        try:
            for place, (text, outlets) in enumerate(pairs, len(arranged)):
                if not outlets:
                    opened = open_outlets(text, switch=master.options.switch, slots=master.slots, position=place)
                    self.added += opened
                    arranged += opened
                for outlet in outlets:
                    outlet.name = parse_bind(text).name or f"listener{place}"
                    outlet.text = text
                    arranged.append(outlet)
        except BaseException:
            self._restore()
            raise
        master.outlets = [*arranged, *self.removed]

    def given(self) -> list[Outlet]:
        """What the new generation gets, in the order of the configuration."""
        return [outlet for outlet in self._master.outlets if outlet not in self.removed]

    def begin(self, old: Run, new: Run) -> None:
        for outlet in self.added:
            self._master.say(f"listening on {outlet.name} {outlet.address} (switch: {outlet.mode})")
            outlet.only = new.slot
        for outlet in self.removed:
            outlet.only = old.slot
        for outlet in [*self.added, *self.removed]:
            outlet.choose(old.slot)

    def undo(self) -> None:
        """The upgrade failed: all is as it was."""
        for outlet in self.removed:
            outlet.only = -1
        if self.added:
            self._master.say(f"no longer listening on {', '.join(str(outlet.address) for outlet in self.added)}")
        self._restore()

    def _restore(self) -> None:
        for outlet, name, text in self._before:
            outlet.name, outlet.text = name, text
        self._master.outlets = [outlet for outlet, _, _ in self._before]
        # Later: a probe that was cancelled just now still has to leave its listener.
        self._master.loop.call(self._close_added)

    def _close_added(self) -> None:
        for outlet in self.added:
            outlet.close(unlink=True)

    def done(self) -> None:
        """The new generation serves for good: what it was not given is closed here. The old one has it until it ends."""
        for outlet in self.added:
            outlet.only = -1
        for outlet in self.removed:
            self._master.outlets.remove(outlet)
            self._master.say(f"no longer listening on {outlet.name} {outlet.address}")
            outlet.close(unlink=True)
