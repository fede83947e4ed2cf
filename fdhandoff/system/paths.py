"""The handoff path: where it lives, who may bind it, and when it may be removed."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    Path = str | os.PathLike[str]

ABSENT = "absent"
STALE = "stale"


def default_path(name: str, environ: Mapping[str, str], *, create: bool = True) -> str:
    """``NAME/handoff.sock`` below the first runtime directory that there is."""
    ...


def check_directory(directory: Path, *, explicit: bool = False) -> None: ...


def bind_control(path: Path, mode: int = 0o600, group: int | str | None = None) -> socket.socket:
    """A listening control socket at ``path``: made under the lock, a stale one replaced, a live one refused (``PathInUse``)."""
    ...


class Connection:
    """How connecting ended: ``sock`` when somebody answers, else ``None`` and ``why`` (``ABSENT`` or ``STALE``)."""

    __slots__ = ("sock", "why")
    sock: socket.socket | None
    why: str


def connect_control(path: Path, deadline: int) -> Connection:
    """One attempt. A full backlog is waited for until ``deadline`` (``DeadlineExceeded``)."""
    ...


def unlink_control(path: Path, sock: socket.socket, recorded: tuple[int, int] | None = None) -> bool:
    """Removes ``path`` if it is still the very socket ``sock``; whether it did."""
    ...


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at ``path``, to be recorded at bind or take-over; ``None`` when nothing is."""
    ...
