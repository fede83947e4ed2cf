"""Whose child a process is, and which Unix paths it answers, as ``/proc`` tells; where it does not, nothing."""

from __future__ import annotations

import os

from .paths import CONTROL_NAME

_LISTENS = 0x10000  # among the flags in /proc/net/unix


def parent_of(pid: int) -> int:
    """0 where it is not known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def listening_paths(pid: int) -> list[str]:
    """The paths of the Unix sockets that ``pid`` has open and that listen; those that are called as ours are first."""
    inodes = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = _target(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as table:
            rows = [line.rstrip("\n").split(maxsplit=7) for line in table][1:]
    except OSError:
        return []  # it has ended, or it is not ours to look into
    found = [row[7] for row in rows if len(row) == 8 and row[6] in inodes and int(row[3], 16) & _LISTENS]
    return sorted(
        (path for path in found if path.startswith("/")), key=lambda path: os.path.basename(path) != CONTROL_NAME
    )


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
