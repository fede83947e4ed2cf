"""When a command that knows nothing of handoffs is ready: it says so, it is seen to wait for its listeners, or time passed."""

from __future__ import annotations

import os
import time

from ..deadline import format_duration, parse_duration
from ..errors import Unsupported
from ..system.attention import look
from ..system.notify import NotifyListener
from ..system.processes import members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AUTO, NOTIFY, ACCEPT, DELAY = "auto", "notify", "accept", "delay"

#: How long a command that can't be looked into gets before it is taken for ready.
ASSUMED_SECONDS = 1.0
#: A command may leave a listener unused: so long do the others wait for it once one is served.
STRAGGLER_SECONDS = 1.0
_LOOK_FIRST, _LOOK_LAST = 0.005, 0.05


def parse_ready(text: str) -> tuple[str, float]:
    """``auto``, ``notify``, ``accept``, ``delay:DURATION``: the way, and the delay's seconds. ``ValueError`` otherwise."""
    way, separator, rest = text.partition(":")
    if way == DELAY and separator:
        return DELAY, parse_duration(rest)
    if way in (AUTO, NOTIFY, ACCEPT) and not separator:
        return way, 0.0
    raise ValueError(f"{text!r} is no kind of readiness: say auto, notify, accept or delay:1s")


class Readiness:
    """Watches for it. ``address`` is what the command finds as ``NOTIFY_SOCKET``, or ``None``. ``by`` is empty until it is
    ready, then says how that is known; ``assumed`` when it is not known but likely. ``close`` it.
    """

    def __init__(self, way: str, delay: float, inodes: Mapping[str, int], on_status: Callable[[str], object]) -> None:
        """``inodes``: the listeners' names, and the inodes of their sockets."""
        self.by = ""
        self.assumed = False
        self._way = way
        self._delay = delay
        self._inodes = inodes
        self._on_status = on_status
        self._listener: NotifyListener | None = None
        if way in (AUTO, NOTIFY):
            try:
                self._listener = NotifyListener()
            except Unsupported:
                if way == NOTIFY:
                    raise
        self._pid = 0
        self._pause = _LOOK_FIRST
        self._began = self._next = self._served = self._blinded = 0.0
        self._blind = ""
        self._missing = list(inodes)

    @property
    def address(self) -> str | None:
        return self._listener.address if self._listener is not None else None

    def fileno(self) -> int:
        """Readable when the command said something; -1 where it has no way to."""
        return self._listener.fileno() if self._listener is not None else -1

    def begin(self) -> None:
        """The command runs from now on."""
        self._began = self._next = time.monotonic()

    def patience(self) -> float:
        """Seconds until ``check`` may know more, if nothing happens before."""
        return max(0.0, self._next - time.monotonic())

    def check(self, pid: int) -> bool:
        """Whether the command, process ``pid``, is ready: whatever can be known now, without waiting."""
        self._pid = pid
        self.hear()
        now = time.monotonic()
        if self.by or now < self._next:
            return bool(self.by)
        self._next = now + self._pause
        self._pause = min(self._pause * 2, _LOOK_LAST)
        if self._way == DELAY:
            self._next = self._began + self._delay
            if now >= self._next:
                self._is(f"{DELAY} of {format_duration(self._delay)}", assumed=True)
        elif self._way in (AUTO, ACCEPT):
            self._look(pid, now)
        else:
            self._next = now + 3600
        return bool(self.by)

    def hear(self) -> None:
        """Deals with what the command said, also after it became ready: it may wait for an answer."""
        if self._listener is None:
            return
        for message in self._listener.receive():
            if message.uid not in (os.geteuid(), 0) and message.pid not in (members(self._pid) if self._pid else ()):
                continue  # anybody on this machine can write to an abstract name
            if message.fields.get("READY") == "1":
                self._is(NOTIFY)
            if "STATUS" in message.fields:
                self._on_status(message.fields["STATUS"])

    def _look(self, pid: int, now: float) -> None:
        seen = look(pid, self._inodes.values()) if self._inodes else None
        blind = seen.blind if seen is not None else "there is no listener to accept from"
        self._missing = [name for name, inode in self._inodes.items() if seen is None or inode not in seen.inodes]
        if seen is not None and seen.inodes:
            self._served = self._served or now
            count = len(self._inodes)
            if not self._missing:
                self._is(ACCEPT)
            elif now - self._served >= STRAGGLER_SECONDS:
                self._is(f"{ACCEPT}, from {count - len(self._missing)} of {count} listeners")
            return
        self._blind = blind
        self._blinded = (self._blinded or now) if blind else 0.0
        if blind and self._way == AUTO and now - self._blinded >= ASSUMED_SECONDS:
            self._is(f"delay of {format_duration(ASSUMED_SECONDS)}, as {blind}", assumed=True)

    def _is(self, by: str, *, assumed: bool = False) -> None:
        if not self.by:
            self.by, self.assumed = by, assumed

    def why_not(self) -> str:
        """What was waited for in vain, to follow "the command"."""
        if self._way == NOTIFY:
            return "did not say READY=1"
        what = f"did not accept from {', '.join(self._missing) or 'any listener'}"
        if self._way == AUTO and self._listener is not None:
            what += ", nor say READY=1,"
        return f"{what} (perhaps unseen: {self._blind})" if self._blind else what

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
