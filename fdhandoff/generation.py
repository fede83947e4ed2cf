"""Who a generation is: its number, and a process named so that a recycled pid can't be taken for it."""

from __future__ import annotations


class Generation:
    """One run of the server. ``number`` counts from 1. The process is named by ``pid`` *and* ``started`` (clock ticks since
    boot, field 22 of ``/proc/PID/stat``; 0 where unknown): a pid alone is reused by the kernel, the pair is not until the
    next boot. ``pid`` is 0 when the process lives in a pid namespace that we can't see into.
    """

    __slots__ = ("number", "pid", "started")

    def __init__(self, number: int, pid: int, started: int = 0) -> None:
        if number < 1:
            raise ValueError(f"generations are numbered from 1, not {number}")
        self.number = number
        self.pid = pid
        self.started = started

    def __repr__(self) -> str:
        return f"Generation(number={self.number}, pid={self.pid}, started={self.started})"

    def __str__(self) -> str:
        return f"generation {self.number} (pid {self.pid})" if self.pid else f"generation {self.number}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Generation):
            return NotImplemented
        return (self.number, self.pid, self.started) == (other.number, other.pid, other.started)

    def __hash__(self) -> int:
        return hash((self.number, self.pid, self.started))
