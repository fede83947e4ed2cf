"""Who may still enter, how many are inside, and when the last one has left.

The gate is a few words of shared memory: every process that shares it counts in a slot of its own, and ``enter`` is one
atomic addition and one load. So nothing slips in between "is it still open?" and "one more inside", a crash cannot
leave two counts that disagree, and anybody who was given the memory reads the counters without asking the server.
"""

from __future__ import annotations

import errno
import os
import select
import weakref
from types import MethodType

from .counters import Counters, CountersView, Slot, counters_of, new_handle, slots_of
from .deadline import FOREVER, after, passed, remaining
from .door import Door, nothing
from .errors import DeadlineExceeded, GateClosed, Unsupported
from .settling import Settler
from .system.native import FDH_AGAIN, check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

__all__ = ["Counters", "CountersView", "Gate", "Slot"]

# How often a wait looks for what no descriptor tells: detached connections that were closed, processes without a pidfd,
# processes that joined meanwhile.
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


def _happen(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _refuse() -> bool:
    return False


class Gate:
    """Counts who is inside, lets nobody in once it is closed, and says when the last one has left.

    ``enter()`` is one more inside: true, or false (counted as refused) when the gate is closed or full; it never waits.
    ``leave()`` is one fewer, exactly once for each ``enter``; ``leave_forced()`` is the same for what was cut short.
    ``with gate:`` enters, waiting for room where there is a limit, and raises ``GateClosed`` when the gate is closed.

    ``limit``: at most so many inside at once, 0 for no limit. Threads share the object. A forked child counts on its own
    from the fork on: what its parent had entered, the parent leaves. Processes that share a gate live in one pid namespace.
    """

    __slots__ = ("__weakref__", "_door", "_handle", "_settler", "enter", "leave", "leave_forced")

    enter: Callable[[], bool]
    leave: Callable[[], None]
    leave_forced: Callable[[], None]

    def __init__(self, limit: int = 0) -> None:
        handle = new_handle()
        check("memfd_create", lib.fdh_gate_create(handle), "making a gate")
        self._take(handle)
        if limit:
            self.limit = limit

    def _take(self, handle: Any) -> None:
        self._handle = handle
        self._bind()
        _gates.add(self)

    def _bind(self) -> None:
        # Bound methods of C functions: nothing of ours runs between the caller and the two atomic operations.
        self._door = Door(self._handle)
        self._settler = Settler(self._handle, self._door)
        self.enter = MethodType(lib.fdh_gate_enter, self._handle)
        self.leave = self._door.leave
        self.leave_forced = self._door.leave_forced

    # --- inside and outside -----------------------------------------------------------------------------------

    def __enter__(self) -> Gate:
        if self.enter() or self._enter_when_room(FOREVER):
            return self
        raise GateClosed("the gate is closed: nothing enters any more")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.leave()

    def enter_wait(self, timeout: float | None = None) -> bool:
        """``enter``, waiting for room; false when the gate is closed or the time is over. Every attempt that finds the gate
        full counts as refused."""
        return self.enter() or self._enter_when_room(after(timeout))

    def _enter_when_room(self, deadline: int) -> bool:
        handle = self._handle
        while not self.closed and not passed(deadline):
            # This says that room is wanted and looks once more, so a leave from here on is told.
            if lib.fdh_gate_wait_room(handle, 0) == FDH_AGAIN:
                self._poll((handle.room_fd, handle.closed_fd), deadline)
                self.settle()
            elif self.enter():
                self.tell_room()
                return True
        return False

    def tell_room(self) -> None:
        """Wakes who waits for room, if there is some: one that was woken may have hidden the signal from the next."""
        handle = self._handle
        if handle is not None and self.active < self.limit:
            fd = handle.signal_fds[2]
            try:
                os.write(fd if fd >= 0 else handle.room_fd, (1).to_bytes(8, "little"))
            except BlockingIOError:
                pass  # readable already

    # --- open and closed --------------------------------------------------------------------------------------

    def close(self, timeout: float | None = _CLOSE_SECONDS) -> None:
        """Nobody enters from here on: when this returns, no connection is accepted through this gate any more, by any
        process that shares it, and ``active`` only falls. Accept calls under way (microseconds) are waited for;
        ``DeadlineExceeded`` when one does not end, as in a stopped process: the gate is closed even then."""
        handle, deadline = self._handle, after(timeout)
        if handle is None:
            return
        pause = after(0.02)
        while check("close", lib.fdh_gate_close(handle, min(pause, deadline)), "closing a gate") == FDH_AGAIN:
            self.settle()  # somebody may have died while accepting
            if passed(deadline):
                raise DeadlineExceeded("the gate is closed, but a process that shares it is stopped while accepting")
            pause = after(0.02)

    def reopen(self) -> None:
        """Open again."""
        check("reopen", lib.fdh_gate_reopen(self._living()), "reopening a gate")

    @property
    def closed(self) -> bool:
        return self._handle is None or bool(lib.fdh_gate_is_closed(self._handle))

    @property
    def limit(self) -> int:
        """At most so many inside at once, all processes together; 0 for no limit. May be changed at any time; who is inside
        stays."""
        return 0 if self._handle is None else int(lib.fdh_gate_limit(self._handle))

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"a gate's limit is 0 (none) or more, not {limit}")
        check("limit", lib.fdh_gate_set_limit(self._living(), limit), "limiting a gate")

    # --- counting ---------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """How many are inside, all processes together."""
        return 0 if self._handle is None else int(lib.fdh_gate_active(self._handle))

    @property
    def counters(self) -> Counters:
        """Totals, all processes together."""
        return counters_of(self._living())

    def slots(self) -> list[Slot]:
        """The processes that share the gate."""
        return [slot for _, slot in slots_of(self._living())]

    def note(self, idle: int = 0, detached: int = 0) -> None:
        """Adds to the gauges: so many more (or fewer) of those inside are idle, or detached."""
        self._door.note(idle, detached)

    def leave_detached(self, fd: int) -> bool:
        """One fewer inside: ``fd``, which was detached from its ``CountedSocket``, is closed right now. Without this it is
        noticed a moment later, by ``settle`` or ``wait``. False when it did not count any more."""
        return self._door.leave_detached(fd)

    def settle(self) -> int:
        """Counts as forced what is inside of processes that are proved dead, and leaves for detached descriptors that
        were closed. Returns how many went out by that. ``wait`` does this by itself."""
        return 0 if self._handle is None else self._settler.settle()

    # --- waiting ----------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the gate is closed and nobody is inside; false when that is not so after ``timeout`` seconds."""
        deadline = after(timeout)
        while not self._drained():
            if passed(deadline):
                return False
            self._poll(self._watched(), deadline)
        return True

    async def wait_async(self, timeout: float | None = None) -> bool:
        """``wait`` for asyncio."""
        import asyncio  # late: it costs more than all of this package

        loop, deadline = asyncio.get_running_loop(), after(timeout)
        while not self._drained():
            left = remaining(deadline)
            if left == 0:
                return False
            changed = loop.create_future()
            # Duplicates: a loop has one callback for one descriptor, and several may wait.
            fds = [os.dup(fd) for fd in self._watched()]
            try:
                for fd in fds:
                    loop.add_reader(fd, _happen, changed)
                await asyncio.wait((changed,), timeout=_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS))
            finally:
                for fd in fds:
                    loop.remove_reader(fd)
                    os.close(fd)
        return True

    def fileno(self) -> int:
        """Readable while the gate is closed and nobody is inside, for any event loop. Who waits by it alone calls
        ``settle()`` now and then, for processes that die and descriptors that were detached."""
        return int(self._living().drained_fd)

    def closed_fileno(self) -> int:
        """Readable while the gate is closed."""
        return int(self._living().closed_fd)

    def room_fileno(self) -> int:
        """Readable once there is room again, after ``want_room()`` said false."""
        return int(self._living().room_fd)

    def want_room(self) -> bool:
        """Whether there is room now (or the gate is closed); if not, ``room_fileno()`` becomes readable when there is."""
        handle = self._handle
        return handle is None or check("poll", lib.fdh_gate_wait_room(handle, 0), "waiting for room") == 0

    def _drained(self) -> bool:
        self.settle()
        return self._handle is None or (self.closed and self.active == 0)

    def _watched(self) -> list[int]:
        """The drained descriptor, and those that tell the end of the other processes."""
        return [self.fileno(), *self._settler.pidfds()]

    def _poll(self, fds: list[int] | tuple[int, ...], deadline: int) -> None:
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        left = remaining(deadline)
        poller.poll((_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)) * 1000)

    # --- other processes --------------------------------------------------------------------------------------

    @property
    def memory_fd(self) -> int:
        """The shared memory, for ``CountersView`` in another process; -1 where the system has no such thing."""
        return -1 if self._handle is None else int(self._handle.memory_fd)

    def share(self) -> tuple[int, int, int, int]:
        """The four descriptors that make this gate, borrowed: a process that has them makes its own ``Gate.from_fds``."""
        handle = self._living()
        if handle.memory_fd < 0:
            raise Unsupported("sharing a gate needs memfd_create (Linux 3.17); only forked children share it here")
        return handle.memory_fd, handle.closed_fd, handle.drained_fd, handle.room_fd

    @classmethod
    def from_fds(cls, memory_fd: int, closed_fd: int, drained_fd: int, room_fd: int) -> Gate:
        """The gate that another process shares. Takes the descriptors, also when it fails."""
        handle = new_handle()
        result = lib.fdh_gate_map_consume(handle, memory_fd, closed_fd, drained_fd, room_fd, False)
        check("mmap", result, "joining a gate")
        check(
            "attach", lib.fdh_gate_attach(handle), f"joining a gate, which has room for {lib.FDH_GATE_SLOTS} processes"
        )
        gate = cls.__new__(cls)
        gate._take(handle)
        return gate

    def release(self) -> None:
        """Ends the use of this object and closes its descriptors; while something of this process is inside, only when that
        has left and the object is garbage. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        _gates.discard(self)
        self.enter = _refuse
        inside = ffi.new("struct fdh_slot_info *")
        lib.fdh_gate_slot_read(handle, handle.slot_index, inside)
        if inside.counters.active == 0:
            self._door = Door(ffi.NULL)
            self._door.disarm()
            self.leave = self.leave_forced = nothing
        self._settler.close()

    def _living(self) -> Any:
        if self._handle is None:
            raise GateClosed("this gate was released")
        return self._handle

    def _after_fork(self) -> None:
        self._door.disarm()
        self._bind()
        if lib.fdh_gate_attach(self._handle) == -errno.ENOSPC:
            self.settle()
            # With no slot left the child counts in its parent's: right as long as neither is killed.
            lib.fdh_gate_attach(self._handle)

    def __repr__(self) -> str:
        if self._handle is None:
            return "<Gate released>"
        limit = f" of {self.limit}" if self.limit else ""
        return f"<Gate {'closed' if self.closed else 'open'}, {self.active}{limit} inside>"


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for gate in list(_gates):
        gate._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
