"""A log file as standard output and error: opened to append, and opened again when somebody has moved it away."""

from __future__ import annotations

import os

from ..errors import SystemCallError

_STREAMS = (1, 2)


def open_log(path: str) -> int:
    """A descriptor that appends; the file is made with mode 0640 if it is not there. ``SystemCallError``."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        raise SystemCallError("open", error.errno or 0, doing=f"opening the log file {path}") from None


def stand_in(fd: int) -> None:
    """What ``fd`` leads to is standard output and error from now on, also of children that are started later. Takes ``fd``."""
    for stream in _STREAMS:
        os.dup2(fd, stream)
    if fd not in _STREAMS:
        os.close(fd)


def reopen(path: str) -> None:
    """The file that is at ``path`` now. ``SystemCallError`` when there can be none: then everything stays as it is."""
    stand_in(open_log(path))
