"""The gate from the inside: how what entered leaves again."""

from __future__ import annotations

import os
from types import MethodType

from .system.native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Door:
    """The gate as this process's connections hold it: it outlives ``Gate.release``, and after a fork the child's copies of
    the parent's connections do nothing at it, for the parent counts them."""

    __slots__ = ("detached", "handle", "leave", "leave_forced", "note")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.leave: Callable[[], None] = MethodType(lib.fdh_gate_leave, handle)
        self.leave_forced: Callable[[], None] = MethodType(lib.fdh_gate_leave_forced, handle)
        self.note: Callable[[int, int], None] = MethodType(lib.fdh_gate_note, handle)
        # Descriptors that were detached from their connection objects: they count until they are closed.
        self.detached: dict[int, tuple[int, int]] = {}

    def disarm(self) -> None:
        self.leave = self.leave_forced = nothing
        self.note = nothing
        self.detached = {}

    def follow(self, fd: int, identity: tuple[int, int] | None = None) -> None:
        """``fd``, a connection that is inside, belongs to somebody else now; it counts until it is closed, also before this.
        ``identity``: what it was, where it is known."""
        self.leave_detached(fd)  # an earlier one of that number has been closed, for the kernel gave it again
        try:
            present = identity_of(fd)
        except OSError:
            present = None
        if present is None or present != (identity or present):
            # Closed already: a loop that closes descriptors by itself (uvloop) lets the socket object know afterwards.
            self.leave()
            return
        self.detached[fd] = present
        self.note(0, 1)

    def leave_detached(self, fd: int) -> bool:
        """Leaves for ``fd``, if it still counts."""
        if self.detached.pop(fd, None) is None:
            return False
        self.note(0, -1)
        self.leave()
        return True

    def sweep(self) -> int:
        """Leaves for every detached descriptor that was closed meanwhile; how many."""
        return sum(
            not _is(fd, identity) and self.detached.get(fd) is identity and self.leave_detached(fd)
            for fd, identity in list(self.detached.items())
        )


def identity_of(fd: int) -> tuple[int, int]:
    """What no other open file has at the same time. ``OSError`` where it is not open."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _is(fd: int, identity: tuple[int, int]) -> bool:
    try:
        return identity_of(fd) == identity
    except OSError:
        return False


def nothing(*_: object) -> None:
    return None
