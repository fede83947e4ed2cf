"""Whether the generations still hear: a server may shut the listener down that it was given, or change it.

A listener that was shut down polls as hung up, whatever one waits for, so the kernel wakes us then and at no other time. What
else a server changes (the backlog) is looked at when there is an occasion to.
"""

from __future__ import annotations

import select

from ..errors import HandoffError
from .outlet import LOST
from .run import SERVING

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from .master import Master
    from .outlet import Outlet
    from .run import Run

_AGAIN_SECONDS = 10.0

_REPAIRED = {
    "backlog": "its backlog had been lowered",
    "O_NONBLOCK": "it had been made blocking",
    "TCP_NODELAY": "TCP_NODELAY had been changed",
    LOST: "it had been shut down",
}


class Ears:
    """Attends to the generations that new connections go to. One that shut a listener down is ``deaf``: its connections wait
    in a queue that we hold, and it is replaced."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._epoll: select.epoll | None = None
        self._runs: Sequence[Run] = ()

    def attend(self, *runs: Run) -> None:
        """From here on to these alone; what they did until now is seen at once."""
        self._runs = runs
        for run in runs:
            if run.binds_itself:
                run.deaf.when_done(self._replace_later)  # it may die, too
        self.look()

    def close(self) -> None:
        if self._epoll is not None:
            self._master.loop.forget(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def look(self) -> None:
        """Repairs what can be repaired, and finds out who is deaf."""
        before = [
            (run, outlet, outlet.give(run.slot))
            for run in self._runs
            if not run.deaf.done
            for outlet in self._master.outlets
            if outlet.only in (-1, run.slot)
        ]
        for run, outlet, sock in before:
            self._look_at(run, outlet, sock)
        self._wait()

    def _look_at(self, run: Run, outlet: Outlet, sock: socket.socket) -> None:
        try:
            wrong = outlet.mend(run.slot, serving=True)
        except (HandoffError, OSError) as error:
            wrong = [LOST]
            self._master.say(f"{outlet.name} can't be repaired: {error}")
        now = outlet.give(run.slot)
        if LOST in wrong or now is not sock:
            run.has_instead(sock, now)
            run.deaf.set(f"shut its listener {outlet.name} ({outlet.address}) down")
            self._replace_later()
        elif wrong:
            self._master.say(f"{outlet.name}: {in_words(wrong)} by {run}; repaired")

    def _wait(self) -> None:
        """Everything afresh: what was repaired is another socket, and what a server still has of the old one hangs up for
        ever."""
        self.close()
        self._epoll = select.epoll()
        for run in self._runs:
            if not run.deaf.done:
                for outlet in self._master.outlets:
                    if outlet.only in (-1, run.slot):
                        try:
                            self._epoll.register(outlet.give(run.slot).fileno(), 0)
                        except FileExistsError:
                            continue  # one queue for all
        self._master.loop.on_readable(self._epoll.fileno(), self.look)

    # --- somebody else must hear ----------------------------------------------------------------------------

    def _replace_later(self) -> None:
        self._master.loop.call(self.replace)

    def replace(self) -> None:
        """If the generation that serves is deaf: the next one, of the same release, at once. As long as that can't be had it is
        tried again."""
        master, run = self._master, self._master.current
        if run is None or not run.deaf.done or master.state != SERVING or master.rollout is not None:
            return
        master.say(f"{run} {run.deaf.result()}: new connections wait for the next generation")
        master.upgrade_unasked(f"{run} is deaf")
        if master.rollout is None:
            self.replace_again()

    def replace_again(self) -> None:
        self._master.loop.after(_AGAIN_SECONDS, self.replace)


def in_words(wrong: Sequence[str]) -> str:
    return " and ".join(_REPAIRED.get(what, what) for what in wrong)
