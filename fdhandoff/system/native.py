"""The one module that touches the compiled C core.

``ffi`` and ``lib`` are cffi's; ``lib`` is typed by the ``Library`` protocol below, which repeats ``fdhandoff.h`` in
Python's words. The header is the contract: what a function returns, which descriptors it takes or gives, which
conditions it may report. Every call releases the interpreter lock while it runs.
"""

from __future__ import annotations

from ..errors import SystemCallError

try:
    from .. import _native
except ImportError as error:
    raise ImportError(
        f"{__name__.rpartition('.system')[0]}._native, the compiled part, can't be loaded ({error}): "
        "install a wheel, or build it in place with: python build_ffi.py --in-place"
    ) from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Foreign(Protocol):
        """What we use of cffi's ``FFI`` object."""

        NULL: Any

        def new(self, cdecl: str, init: Any = ..., /) -> Any: ...
        def buffer(self, cdata: Any, size: int = ..., /) -> Any: ...
        def from_buffer(self, cdecl: Any, buffer: Any = ..., /, require_writable: bool = ...) -> Any: ...
        def new_allocator(self, alloc: Any = ..., free: Any = ..., should_clear_after_alloc: bool = ...) -> Any: ...
        def string(self, cdata: Any, maxlen: int = ..., /) -> Any: ...
        def unpack(self, cdata: Any, length: int, /) -> Any: ...
        def cast(self, cdecl: str, source: Any, /) -> Any: ...
        def gc(self, cdata: Any, destructor: Any, size: int = ..., /) -> Any: ...
        def memmove(self, destination: Any, source: Any, n: int, /) -> None: ...
        def addressof(self, cdata: Any, *fields: str | int) -> Any: ...
        def sizeof(self, cdecl: Any, /) -> int: ...
        def typeof(self, cdecl: Any, /) -> Any: ...

    class Library(Protocol):
        """``fdhandoff.h``. Pointers are cffi data; deadlines are absolute nanoseconds; ``int`` results as the header
        says.
        """

        FDH_ABI: int
        FDH_FDS_MAX: int
        FDH_GATE_SLOTS: int
        FDH_FOREVER: int
        FDH_ADDRESS_MAX: int
        FDH_LISTEN_PID_ROOM: int
        FDH_SWITCH_MAX: int
        FDH_RELAY_KEPT: int

        FDH_AGAIN: int
        FDH_EOF: int
        FDH_CLOSED: int
        FDH_FULL: int
        FDH_MORE: int
        FDH_PAUSE: int
        FDH_OTHER: int

        FDH_HAS_PIDFD: int
        FDH_HAS_PIDFD_GETFD: int
        FDH_HAS_PEER_PIDFD: int
        FDH_HAS_PIDFD_ID: int
        FDH_HAS_MEMFD: int
        FDH_HAS_ATOMIC_CLOEXEC: int
        FDH_HAS_CLOSE_RANGE: int
        FDH_HAS_COOKIE: int
        FDH_HAS_SWITCH: int

        FDH_STEP_FORK: int
        FDH_STEP_GROUP: int
        FDH_STEP_DIRECTORY: int
        FDH_STEP_FDS: int
        FDH_STEP_EXEC: int
        FDH_STEP_IDENTITY: int
        FDH_STEP_LIMITS: int
        FDH_STEP_ROOT: int
        FDH_STEP_PRIVILEGES: int

        def fdh_features(self) -> int: ...
        def fdh_now(self) -> int: ...
        def fdh_close(self, fd: int) -> int: ...

        def fdh_channel_send(
            self,
            sock: int,
            data: Any,
            size: int,
            fds: Any,
            n_fds: int,
            marks: Any,
            n_marks: int,
            deadline: int,
            n_bytesp: Any,
            n_fdsp: Any,
            /,
        ) -> int: ...
        def fdh_channel_receive(
            self,
            sock: int,
            buffer: Any,
            capacity: int,
            fds: Any,
            fd_capacity: int,
            deadline: int,
            n_bytesp: Any,
            n_fdsp: Any,
            /,
        ) -> int: ...
        def fdh_peer_credentials(self, sock: int, peerp: Any, /) -> int: ...
        def fdh_peer_pidfd(self, sock: int, pidfdp: Any, /) -> int: ...

        def fdh_socket_describe(self, fd: int, socketp: Any, /) -> int: ...
        def fdh_listener_queue(self, fd: int, waitingp: Any, backlogp: Any, /) -> int: ...

        def fdh_connections_pack(
            self,
            connections: Any,
            fds: Any,
            n: int,
            text: Any,
            text_size: int,
            buffer: Any,
            capacity: int,
            sizep: Any,
            /,
        ) -> int: ...
        def fdh_connections_unpack(
            self, payload: Any, size: int, fds: Any, n: int, firstp: Any, connections: Any, /
        ) -> int: ...

        def fdh_gate_create(self, gate: Any, /) -> int: ...
        def fdh_gate_map_consume(
            self, gate: Any, memory_fd: int, closed_fd: int, drained_fd: int, room_fd: int, read_only: bool, /
        ) -> int: ...
        def fdh_gate_attach(self, gate: Any, /) -> int: ...
        def fdh_gate_deinit(self, gate: Any, /) -> None: ...
        def fdh_gate_enter(self, gate: Any, /) -> bool: ...
        def fdh_gate_leave(self, gate: Any, /) -> None: ...
        def fdh_gate_leave_forced(self, gate: Any, /) -> None: ...
        def fdh_gate_close(self, gate: Any, deadline: int, /) -> int: ...
        def fdh_gate_reopen(self, gate: Any, /) -> int: ...
        def fdh_gate_is_closed(self, gate: Any, /) -> bool: ...
        def fdh_gate_wait(self, gate: Any, deadline: int, /) -> int: ...
        def fdh_gate_active(self, gate: Any, /) -> int: ...
        def fdh_gate_set_limit(self, gate: Any, limit: int, /) -> int: ...
        def fdh_gate_limit(self, gate: Any, /) -> int: ...
        def fdh_gate_wait_room(self, gate: Any, deadline: int, /) -> int: ...
        def fdh_gate_room_clear(self, gate: Any, /) -> None: ...
        def fdh_gate_note(self, gate: Any, idle: int, detached: int, /) -> None: ...
        def fdh_gate_counters(self, gate: Any, countersp: Any, /) -> None: ...
        def fdh_gate_slot_read(self, gate: Any, index: int, infop: Any, /) -> int: ...
        def fdh_gate_settle(self, gate: Any, index: int, pid: int, settledp: Any, /) -> int: ...

        def fdh_accept(self, gate: Any, listener: int, fds: Any, capacity: int, np: Any, /) -> int: ...

        def fdh_pidfd_open(self, pid: int, pidfdp: Any, /) -> int: ...
        def fdh_pidfd_getfd(self, pidfd: int, fd: int, fdp: Any, /) -> int: ...
        def fdh_pidfd_signal(self, pidfd: int, signal_number: int, /) -> int: ...
        def fdh_pidfd_id(self, pidfd: int, idp: Any, /) -> int: ...
        def fdh_pidfd_wait(self, pidfd: int, deadline: int, exitp: Any, /) -> int: ...
        def fdh_subreaper(self, on: bool, /) -> int: ...
        def fdh_capabilities_limit(self, kept: int, /) -> int: ...
        def fdh_spawn(self, spawn: Any, pidp: Any, pidfdp: Any, stepp: Any, /) -> int: ...

        def fdh_relay_create(self, memory_fdp: Any, /) -> int: ...
        def fdh_relay_start(self, relay: Any, pidp: Any, pidfdp: Any, /) -> int: ...
        def fdh_relay_read(
            self,
            memory_fd: int,
            stream: int,
            from_: int,
            buffer: Any,
            capacity: int,
            np: Any,
            readp: Any,
            droppedp: Any,
            /,
        ) -> int: ...

        def fdh_switch_compile(self, choice: Any, program: Any, capacity: int, np: Any, /) -> int: ...
        def fdh_switch_attach(self, fd: int, program: Any, n: int, /) -> int: ...
        def fdh_switch_detach(self, fd: int, /) -> int: ...


ffi: Foreign = _native.ffi
lib: Library = _native.lib

ABI = 1
if lib.FDH_ABI != ABI:
    raise ImportError(
        f"the compiled part has ABI {lib.FDH_ABI}, this Python code wants {ABI}: they are of different releases, "
        "rebuild with: python build_ffi.py --in-place"
    )

# Conditions: positive results that the caller must handle. The header's own words.
FDH_AGAIN = lib.FDH_AGAIN
FDH_EOF = lib.FDH_EOF
FDH_CLOSED = lib.FDH_CLOSED
FDH_FULL = lib.FDH_FULL
FDH_MORE = lib.FDH_MORE
FDH_PAUSE = lib.FDH_PAUSE
FDH_OTHER = lib.FDH_OTHER

FDH_FDS_MAX = lib.FDH_FDS_MAX

_FEATURES = {
    "pidfd": lib.FDH_HAS_PIDFD,
    "pidfd_getfd": lib.FDH_HAS_PIDFD_GETFD,
    "peer_pidfd": lib.FDH_HAS_PEER_PIDFD,
    "pidfd_id": lib.FDH_HAS_PIDFD_ID,
    "memfd": lib.FDH_HAS_MEMFD,
    "atomic_cloexec": lib.FDH_HAS_ATOMIC_CLOEXEC,
    "close_range": lib.FDH_HAS_CLOSE_RANGE,
    "cookie": lib.FDH_HAS_COOKIE,
    "switch": lib.FDH_HAS_SWITCH,
}


def features() -> frozenset[str]:
    """What this kernel and build can do, each tried and never guessed: a subset of ``FEATURE_NAMES``."""
    bits = lib.fdh_features()
    return frozenset(name for name, bit in _FEATURES.items() if bits & bit)


FEATURE_NAMES = tuple(_FEATURES)


def check(call: str, result: int, doing: str = "") -> int:
    """``result`` itself when it is 0 or positive; else ``SystemCallError`` of ``-result``.

    ``call`` is the name of the failed call for the message; ``doing`` says in a few words what it was for.
    """
    if result < 0:
        raise SystemCallError(call, -result, doing=doing)
    return result
