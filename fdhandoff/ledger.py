"""What all generations of a service have counted, so that totals only grow: those that live are read from their own memory,
also after a SIGKILL; those that are over are one sum."""

from __future__ import annotations

import os
from _thread import allocate_lock

from .counters import Counters, CountersView
from .errors import HandoffError
from .listener import LEDGER
from .notation import dumps, loads
from .system.memory import open_counters
from .system.process import start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: What only grows.
TOTALS = ("accepted", "finished", "forced", "refused")
_PRESENT = ("active", "idle", "detached")

_MOST = 65536


class Ledger:
    """``past``: sums of what is over, by name; also ``upgrades`` and ``failed``."""

    def __init__(self, own: int = -1) -> None:
        """``own``: the descriptor of our own counters, which others may hold too."""
        self.past: dict[str, int] = dict.fromkeys((*TOTALS, "upgrades", "failed"), 0)
        self._own = os.fstat(own).st_ino if own >= 0 else -1
        self._views: dict[int, CountersView] = {}
        self._handed = -1  # the memory in which ``past`` is given away
        self.forget_in_child()

    def forget_in_child(self) -> None:
        """After a fork, in the child: another thread may have been at it."""
        self._lock = allocate_lock()

    def close(self) -> None:
        """Idempotent."""
        for view in self._views.values():
            view.close()
        self._views = {}
        if self._handed >= 0:
            os.close(self._handed)
        self._handed = -1

    def _watch(self, fd: int) -> None:
        """Counts what is counted there, too. Takes ``fd``. What is no such memory is passed over."""
        number = os.fstat(fd).st_ino
        if number == self._own or number in self._views:
            os.close(fd)
            return
        try:
            self._views[number] = CountersView(fd)
        except HandoffError:
            return  # another release's, of another shape

    def watch_process(self, pid: int) -> list[int]:
        """Those of process ``pid``, if it is a service: which they are, by inode."""
        seen: list[int] = []

        def wanted(number: int) -> bool:
            seen.append(number)
            return number != self._own and number not in self._views

        with self._lock:
            for fd in open_counters(pid, wanted):
                self._watch(fd)
            return [number for number in seen if number in self._views]

    def counters(self, numbers: Iterable[int]) -> Counters:
        """Of some of them together, as far as they live."""
        with self._lock:
            return _sum(self._views[number].counters for number in numbers if number in self._views)

    def _fold(self) -> None:
        """Whose processes have all ended is over: what was inside was cut."""
        for number, view in list(self._views.items()):
            slots = view.slots()
            if any(start_time(slot.pid) == slot.started for slot in slots):
                continue
            ended = view.counters
            ended.forced += ended.active
            for name in TOTALS:
                self.past[name] += getattr(ended, name)
            view.close()
            del self._views[number]

    def totals(self, own: Counters | None = None) -> dict[str, int]:
        """Of all generations; ``own`` are those of this process."""
        with self._lock:
            self._fold()
            living = _sum([*(view.counters for view in self._views.values()), *([own] if own is not None else [])])
            found = {name: self.past[name] + getattr(living, name) for name in TOTALS}
        return {**found, **{name: getattr(living, name) for name in _PRESENT}}

    def summary(self) -> dict[str, int]:
        """What is over."""
        with self._lock:
            self._fold()
            return dict(self.past)

    # --- from one process to the next ---------------------------------------------------------------------------

    def files(self) -> dict[str, int]:
        """What the next generation's ledger begins with, as descriptors by name, which stay ours."""
        with self._lock:
            self._fold()
            if not hasattr(os, "memfd_create"):
                return {}  # where counters can't be shared either
            if self._handed < 0:
                self._handed = os.memfd_create("fdhandoff-past", os.MFD_CLOEXEC)
            os.ftruncate(self._handed, os.pwrite(self._handed, dumps(self.past).encode(), 0))
            views = {f"{LEDGER}counters-{place}": view.fileno() for place, view in enumerate(self._views.values())}
            return {f"{LEDGER}past": self._handed, **views}

    def keep(self) -> None:
        """What was to be given away stays: nobody took it, or who did is over."""
        with self._lock:
            self._fold()
            if self._handed >= 0:
                os.close(self._handed)
            self._handed = -1

    def begin(self, files: Mapping[str, int], counters_fd: int) -> None:
        """From those of the generation before. Takes ``files``; ``counters_fd`` (-1: none) stays the caller's."""
        for name, fd in files.items():
            if name != f"{LEDGER}past":
                self._watch(fd)
                continue
            try:
                self.restore(loads(os.pread(fd, _MOST, 0)))
            except ValueError:
                pass  # of a release that says it in another way: the totals begin anew
            finally:
                os.close(fd)
        if counters_fd >= 0:
            self._watch(os.dup(counters_fd))

    def restore(self, past: object) -> None:
        """``past``, as it was."""
        for name in self.past:
            value = past.get(name) if isinstance(past, dict) else None
            if isinstance(value, int) and value >= 0:
                self.past[name] = value


def _sum(counters: Iterable[Counters]) -> Counters:
    found = Counters()
    for each in counters:
        for name in Counters.__slots__:
            setattr(found, name, getattr(found, name) + getattr(each, name))
    return found
