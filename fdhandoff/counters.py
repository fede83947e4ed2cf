"""A gate's counters, read from its shared memory: by the process that counts, or by any other that was given the memory."""

from __future__ import annotations

from .system.native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Counters:
    """Totals since the gate was made: ``accepted == finished + forced + active`` at any quiet moment.

    ``refused``: not let in, because the gate was closed or full. Of the ``active`` ones, ``idle`` wait for their client's
    next request and ``detached`` left the server's own books; the server says so.
    """

    __slots__ = ("accepted", "active", "detached", "finished", "forced", "idle", "refused")

    def __init__(
        self,
        *,
        accepted: int = 0,
        finished: int = 0,
        forced: int = 0,
        refused: int = 0,
        active: int = 0,
        idle: int = 0,
        detached: int = 0,
    ) -> None:
        self.accepted = accepted
        self.finished = finished
        self.forced = forced
        self.refused = refused
        self.active = active
        self.idle = idle
        self.detached = detached

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Counters) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Counters({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"


class Slot:
    """One process's part: its ``pid``, when it ``started`` (clock ticks since boot, 0 where unknown), its ``counters``,
    with those of the processes that had the slot before."""

    __slots__ = ("counters", "pid", "started")

    def __init__(self, pid: int, started: int, counters: Counters) -> None:
        self.pid = pid
        self.started = started
        self.counters = counters

    def __repr__(self) -> str:
        return f"Slot(pid={self.pid}, started={self.started}, {self.counters})"


class CountersView:
    """Another generation's counters, read live from its gate's memory. Takes ``memory_fd``, also when it fails."""

    __slots__ = ("_handle",)

    def __init__(self, memory_fd: int) -> None:
        handle = new_handle()
        check("mmap", lib.fdh_gate_map_consume(handle, memory_fd, -1, -1, -1, True), "reading a gate's counters")
        self._handle: Any = handle

    @property
    def counters(self) -> Counters:
        return counters_of(self._living())

    @property
    def active(self) -> int:
        return int(lib.fdh_gate_active(self._living()))

    @property
    def closed(self) -> bool:
        return bool(lib.fdh_gate_is_closed(self._living()))

    @property
    def limit(self) -> int:
        return int(lib.fdh_gate_limit(self._living()))

    def slots(self) -> list[Slot]:
        """The processes that share the gate."""
        return [slot for _, slot in slots_of(self._living())]

    def fileno(self) -> int:
        """The memory's descriptor, which stays the view's."""
        return int(self._living().memory_fd)

    def close(self) -> None:
        """Idempotent."""
        self._handle = None

    def _living(self) -> Any:
        if self._handle is None:
            raise ValueError("this view was closed")
        return self._handle

    def __enter__(self) -> CountersView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_handle() -> Any:
    """A zeroed handle that gives everything back once nobody refers to it."""
    return ffi.gc(ffi.new("struct fdh_gate *"), lib.fdh_gate_deinit)


def counters_of(handle: Any) -> Counters:
    """Totals of all processes."""
    raw = ffi.new("struct fdh_counters *")
    lib.fdh_gate_counters(handle, raw)
    return _from_raw(raw)


def _from_raw(raw: Any) -> Counters:
    return Counters(**{name: int(getattr(raw, name)) for name in Counters.__slots__})


def slots_of(handle: Any) -> Iterator[tuple[int, Slot]]:
    """The slots that a process has, with their numbers."""
    raw = ffi.new("struct fdh_slot_info *")
    for index in range(lib.FDH_GATE_SLOTS):
        if lib.fdh_gate_slot_read(handle, index, raw) == 0 and raw.pid:
            yield index, Slot(int(raw.pid), int(raw.started), _from_raw(raw.counters))
