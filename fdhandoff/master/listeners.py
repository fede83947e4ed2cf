"""Listeners come and go with the configuration: what an upgrade binds, and what it gives up, when it is done and not before."""

from __future__ import annotations

from ..system.sockets import parse_bind
from .outlets import open_outlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .master import Master
    from .outlet import Outlet
    from .run import Run


def match(outlets: Sequence[Outlet], binds: Sequence[str]) -> tuple[list[tuple[str, list[Outlet]]], list[Outlet]]:
    """Each of ``binds`` with the outlets that are its own already (none: it is new), and the outlets that nobody wants any
    more. The same address under another name is the same listener. What was not bound from a text (inherited) stays out of
    it."""
    free: dict[str, list[Outlet]] = {}
    for outlet in outlets:
        if outlet.text:
            free.setdefault(outlet.text, []).append(outlet)  # one text may stand for an IPv4 and an IPv6 socket
    found: dict[str, list[Outlet]] = {text: free.pop(text) for text in binds if text in free}
    for text in binds:
        if text not in found:
            same = next((other for other in free if str(parse_bind(other)) == str(parse_bind(text))), None)
            found[text] = free.pop(same) if same is not None else []
    return [(text, found[text]) for text in binds], [outlet for group in free.values() for outlet in group]


class Change:
    """What an upgrade changes. Until it is done, a listener that came has the new generation alone, one that goes the old."""

    def __init__(self, master: Master, binds: Sequence[str]) -> None:
        """Binds what is new: all, or nothing."""
        self._master = master
        self._before = [(outlet, outlet.name, outlet.text) for outlet in master.outlets]
        self.added: list[Outlet] = []
        pairs, self.removed = match(master.outlets, binds)
        arranged = [outlet for outlet in master.outlets if not outlet.text]
        try:
            for place, (text, outlets) in enumerate(pairs):
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
