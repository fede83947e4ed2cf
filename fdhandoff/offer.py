"""``send``: the call that offers listeners at a path and returns once somebody serves them."""

from __future__ import annotations

import os
import threading
import time

from . import registry
from .control import refuse
from .deadline import after
from .errors import OLD, Aborted, DeadlineExceeded, HandoffError, InProgress, RolledBack
from .handoff import Handed, Handoff, Offering
from .inventory import collect, entry_of
from .listener import KIND_CONTROL, KIND_COUNTERS
from .protocol.session import STATE_MAX
from .system.channel import Woken, wait
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .control import Endpoint
    from .conversation import Conversation
    from .gate import Gate
    from .inventory import Item
    from .listener import Entry
    from .protocol.messages import Hello

CONTROL_NAME = "fdhandoff.control"
COUNTERS_NAME = "fdhandoff.counters"


def send(
    sock_path: str | os.PathLike[str],
    listeners: Mapping[str, Item] | Iterable[Item],
    *,
    state: bytes = b"",
    timeout: float | None = None,
    ready_timeout: float = 60.0,
    serving_timeout: float | None = 60.0,
    probation: float = 0.0,
    gate: Gate | None = None,
    on_commit: Callable[[], bytes | None] | None = None,
    allow_uids: Iterable[int] = (),
    mode: int = 0o600,
    group: int | str | None = None,
    keep_path: bool = False,
    wake_fd: int = -1,
    on_step: Callable[[str, str, str], object] | None = None,
) -> Handed:
    """Offers ``listeners`` at ``sock_path`` and blocks until a successor has them, is ready, and serves. Returns who took them.

    ``listeners``: a mapping by name, or a sequence; each a socket, a descriptor, a ``Listener``, ``File`` or ``Connection``.
    They are borrowed: close them yourself when this returns, never ``shutdown`` them. ``state``: up to 64 MiB for the
    successor. ``timeout``: seconds to wait for a taker (``None``: for ever); ``ready_timeout``: for it to become ready;
    ``serving_timeout``: from commit to its word that it serves; ``probation``: seconds to stay after that, taking the
    service back if the new owner dies.

    ``gate``: closed between *ready* and commit, reopened if the service stays here: then exactly one side accepts at any
    moment. ``on_commit()`` is called at the same point: stop accepting, and return the final state, or ``None``. Without
    either, both sides accept from the commit until this returns and the caller stops.

    ``allow_uids``, ``mode``, ``group`` open the path to other users on purpose. ``keep_path``: the path is not handed over, so
    that a holder can go on offering at it; whoever takes then answers nowhere. ``wake_fd``: a (borrowed) descriptor; when it
    becomes readable the offer is withdrawn with ``Aborted``, and after the commit probation ends early. ``on_step(before, step,
    after)`` is called after every step of the protocol.

    Every exception has ``.serving``: ``"old"`` means that the caller still serves. After ``DeadlineExceeded`` (no taker
    came), ``NotReady``, ``SuccessorDied``, ``PeerGone``, ``PeerAborted``, ``Aborted``, ``VersionMismatch`` and ``RolledBack``
    call again to offer again. ``Unconfirmed``: the taker owns the service but hangs. ``InProgress``, ``PathInUse``,
    ``PathError``, ``ListenerError``: nothing was begun.
    """
    path = os.fspath(sock_path)
    if len(state) > STATE_MAX:
        raise ValueError(f"the state is at most {STATE_MAX} bytes, not {len(state)}")
    items = collect(listeners)
    endpoint = registry.obtain(path, mode=mode, group=group)
    if endpoint.greeter is not None:
        raise InProgress(f"this process offers its listeners at {path} already, in another thread")
    number = max(endpoint.generation, 1) + 1
    offering = Offering(
        [*items, *internal_items(None if keep_path else endpoint, gate)],
        generation=number,
        state=state,
        ready_timeout=ready_timeout,
        serving_timeout=serving_timeout,
        probation=probation,
        strict=gate is not None or on_commit is not None,
        close_gate=lambda: _close(gate, on_commit),
        reopen_gate=lambda: gate.reopen() if gate is not None else None,
        release_control=lambda: None if keep_path else registry.release(endpoint),
        resume_control=lambda: None if keep_path else registry.resume(endpoint),
    )
    hall = _Hall()
    endpoint.begin_offer(hall.greet, frozenset(allow_uids), items)
    try:
        conversation, hello = hall.wait(path, timeout, wake_fd)
        conversation.session.observe(on_step)
        conversation.wake_fd = wake_fd
        handoff = Handoff(conversation, offering)
        began = time.monotonic()
        try:
            if on_step is not None:  # the control thread has taken this step
                on_step("AWAITING", "got HELLO", conversation.session.state)
            handed = handoff.run(hello)
        except HandoffError as error:
            endpoint.note("rolled back" if isinstance(error, RolledBack) else "failed", str(error), number, began)
            raise
        finally:
            handoff.close()
            if not conversation.session.owns:
                if keep_path:
                    endpoint.generation = number
                else:
                    registry.forget(path)
        endpoint.note("done", "", number, began)
        return handed
    finally:
        endpoint.end_offer()
        hall.close()


class _Hall:
    """Where the taker that the control thread let in waits for the thread that offers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = Wake()
        self._guests: list[tuple[Conversation, Hello]] | None = []

    def greet(self, conversation: Conversation, hello: Hello) -> None:
        with self._lock:
            if self._guests is not None:
                self._guests.append((conversation, hello))
                self._came.set()
                return
        # The offer ended while this one came in: it tries again.
        refuse(conversation.channel, "starting", "the offer was withdrawn at this moment", os.getpid())
        conversation.close()

    def wait(self, path: str, timeout: float | None, wake_fd: int) -> tuple[Conversation, Hello]:
        try:
            wait((self._came.fileno(),), (), after(timeout), wake_fd)
        except DeadlineExceeded:
            raise DeadlineExceeded(
                f"no taker came to {path} within {timeout:g} s; this process serves on", serving=OLD
            ) from None
        except Woken:
            raise Aborted(f"the offer at {path} was withdrawn; this process serves on", serving=OLD) from None
        with self._lock:
            assert self._guests
            return self._guests.pop()

    def close(self) -> None:
        with self._lock:
            guests, self._guests = self._guests or [], None
            self._came.close()
        for conversation, _ in guests:
            refuse(conversation.channel, "starting", "the offer was withdrawn at this moment", os.getpid())
            conversation.close()


def internal_items(endpoint: Endpoint | None, gate: Gate | None) -> list[tuple[Entry, int]]:
    """What travels beside the application's items: the handoff path's own listener (unless the path stays with us), and the
    gate's live counters."""
    items: list[tuple[Entry, int]] = []
    if endpoint is not None:
        control = endpoint.socket.fileno()
        items.append((entry_of(CONTROL_NAME, control, KIND_CONTROL), control))
    if gate is not None:
        items.append((entry_of(COUNTERS_NAME, gate.memory_fd, KIND_COUNTERS), gate.memory_fd))
    return items


def _close(gate: Gate | None, on_commit: Callable[[], bytes | None] | None) -> bytes | None:
    if gate is not None:
        gate.close()
    return on_commit() if on_commit is not None else None
