"""Counters that another process keeps in shared memory, found by their name and mode in /proc."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: A service's own counters have this mode; an application may have gates of its own.
COUNTERS_MODE = 0o600
_LINK = "/memfd:fdhandoff-gate (deleted)"
# Whoever counts makes its memory early: it is among a process's first descriptors, however many there are.
_FIRST = 256


def open_counters(pid: int, wanted: Callable[[int], bool]) -> list[int]:
    """Descriptors, read only, of those that process ``pid`` has, its own or others', and whose inode is ``wanted``; the
    caller's. Of a process that has ended, that we may not look into, or that does not count: none."""
    found = []
    for number in range(_FIRST):
        place = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(place) != _LINK:
                continue
            what = os.stat(place)
            if stat.S_IMODE(what.st_mode) == COUNTERS_MODE and wanted(what.st_ino):
                found.append(os.open(place, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except OSError:
            break  # not ours to look into
    return found
