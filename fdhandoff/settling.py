"""What no ``leave`` tells: processes that died while something of theirs was inside a gate, and descriptors that left their
connection objects and were closed by somebody else."""

from __future__ import annotations

import errno
from _thread import allocate_lock

from .counters import slots_of
from .errors import SystemCallError
from .system.native import check, ffi, lib
from .system.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .counters import Slot
    from .door import Door


class Settler:
    """Holds a handle on each other process that shares the gate, so that its death can be proved and waited for."""

    __slots__ = ("_door", "_handle", "_lock", "_processes")

    def __init__(self, handle: Any, door: Door) -> None:
        self._handle = handle
        self._door: Door | None = door
        self._lock = allocate_lock()
        self._processes: dict[int, Process] = {}

    def settle(self) -> int:
        """Counts out whatever is known to be gone; how many."""
        # Not waited for: who has it does the same, and may be what a signal handler that comes here interrupted.
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            if self._door is None:
                return 0
            settled = self._door.sweep()
            for index, slot in self._others():
                if self._is_dead(index, slot):
                    settled += self._settle_slot(index, slot)
            return settled
        finally:
            self._lock.release()

    def pidfds(self) -> list[int]:
        """Each readable once one of the other processes has ended."""
        held = list(self._processes.values())
        return [process.pidfd for process in held if process.pidfd >= 0]

    def forget(self) -> None:
        """Closes the handles; ``settle`` takes new ones."""
        while self._processes:
            self._processes.popitem()[1].close()

    def close(self) -> None:
        """``settle`` does nothing any more, and nothing is held."""
        with self._lock:
            self._handle = self._door = None
        self.forget()

    def __del__(self) -> None:
        self.forget()

    def _settle_slot(self, index: int, slot: Slot) -> int:
        inside = ffi.new("uint64_t *")
        result = lib.fdh_gate_settle(self._handle, index, slot.pid, inside)
        if result == -errno.ESRCH:
            return 0  # another process was faster
        check("settle", result, f"settling the gate for process {slot.pid}")
        return int(inside[0])

    def _others(self) -> list[tuple[int, Slot]]:
        others = [(index, slot) for index, slot in slots_of(self._handle) if index != self._handle.slot_index]
        for index in self._processes.keys() - {index for index, _ in others}:
            self._processes.pop(index).close()
        return others

    def _is_dead(self, index: int, slot: Slot) -> bool:
        held = self._processes.get(index)
        if held is not None and held.pid == slot.pid and (not slot.started or held.started == slot.started):
            return not held.alive()
        if held is not None:
            self._processes.pop(index).close()
        try:
            self._processes[index] = Process.from_pid(slot.pid, slot.started)
        except SystemCallError as error:
            return error.errno == errno.ESRCH  # anything else, such as EMFILE, proves nothing
        return False
