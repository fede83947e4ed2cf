"""``send``: the call that offers listeners at a path and returns once somebody serves them."""

from __future__ import annotations

import os
import queue
from typing import TYPE_CHECKING

from . import registry
from .deadline import after, remaining
from .errors import OLD, DeadlineExceeded, InProgress
from .handoff import Handed, Handoff, Offering
from .inventory import collect, entry_of
from .listener import KIND_CONTROL, KIND_COUNTERS

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

    ``allow_uids``, ``mode``, ``group`` open the path to other users on purpose. ``on_step(before, step, after)`` is called after
    every step of the protocol.

    Every exception has ``.serving``: ``"old"`` means that the caller still serves. After ``DeadlineExceeded`` (no taker
    came), ``NotReady``, ``SuccessorDied``, ``PeerGone``, ``PeerAborted``, ``VersionMismatch`` and ``RolledBack`` call again to
    offer again. ``Unconfirmed``: the taker owns the service but hangs. ``InProgress``, ``PathInUse``, ``PathError``,
    ``ListenerError``: nothing was begun.
    """
    path = os.fspath(sock_path)
    items = collect(listeners)
    endpoint = registry.obtain(path, mode=mode, group=group)
    arrivals: queue.SimpleQueue[tuple[Conversation, Hello]] = queue.SimpleQueue()
    if endpoint.greeter is not None:
        raise InProgress(f"this process offers its listeners at {path} already, in another thread")
    endpoint.begin_offer(lambda conversation, hello: arrivals.put((conversation, hello)), frozenset(allow_uids))
    try:
        try:
            conversation, hello = arrivals.get(timeout=remaining(after(timeout)))
        except queue.Empty:
            raise DeadlineExceeded(
                f"no taker came to {path} within {timeout:g} s; this process serves on", serving=OLD
            ) from None
        conversation.session.observe(on_step)
        offering = Offering(
            [*items, *internal_items(endpoint, gate)],
            generation=max(endpoint.generation, 1) + 1,
            state=state,
            ready_timeout=ready_timeout,
            serving_timeout=serving_timeout,
            probation=probation,
            strict=gate is not None or on_commit is not None,
            close_gate=lambda: _close(gate, on_commit),
            reopen_gate=lambda: gate.reopen() if gate is not None else None,
            release_control=lambda: registry.release(endpoint),
            resume_control=lambda: registry.resume(endpoint),
        )
        handoff = Handoff(conversation, offering)
        try:
            handed = handoff.run(hello)
        finally:
            handoff.close()
            if not conversation.session.owns:
                registry.forget(path)
        return handed
    finally:
        endpoint.end_offer()


def internal_items(endpoint: Endpoint, gate: Gate | None) -> list[tuple[Entry, int]]:
    """What travels beside the application's items: the handoff path's own listener, and the gate's live counters."""
    control = endpoint.socket.fileno()
    items = [(entry_of(CONTROL_NAME, control, KIND_CONTROL), control)]
    if gate is not None:
        items.append((entry_of(COUNTERS_NAME, gate.memory_fd, KIND_COUNTERS), gate.memory_fd))
    return items


def _close(gate: Gate | None, on_commit: Callable[[], bytes | None] | None) -> bytes | None:
    if gate is not None:
        gate.close()
    return on_commit() if on_commit is not None else None
