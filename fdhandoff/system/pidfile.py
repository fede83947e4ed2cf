"""The pidfile: the number that others look for, locked by who lives, replaced in one step, removed by its owner alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


class Pidfile:
    """``path`` is resolved now, so that a later ``chdir`` changes nothing."""

    __slots__ = ("_fd", "_owner", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None: ...
    def claim(self, pid: int | None = None) -> None:
        """``PidfileLocked`` when another live process holds it."""

    def take_over(self, pid: int | None = None) -> None:
        """For a successor: replaces the file although the predecessor lives and holds its lock."""

    def release(self) -> bool:
        """Gives the lock back, and removes the file if it is still ours; whether it did."""
        ...


def read(path: str | os.PathLike[str]) -> int | None:
    """The pid in the file; ``None`` when there is no file, or no number in it."""
    ...
