"""The old side: it offers its listeners, waits for *ready*, closes its gate, commits, and stays until the new side has proved
itself.
"""

from __future__ import annotations

import os

from .conversation import Gone
from .deadline import after, passed
from .errors import (
    NEW,
    OLD,
    Aborted,
    DeadlineExceeded,
    HandoffError,
    NotReady,
    PeerAborted,
    PeerGone,
    ProtocolError,
    RolledBack,
    SuccessorDied,
    Unconfirmed,
    VersionMismatch,
)
from .generation import Generation
from .protocol.messages import (
    VERSION_MAX,
    VERSION_MIN,
    Abort,
    Commit,
    Drained,
    Hello,
    Items,
    Message,
    Offer,
    Progress,
    Refused,
    State,
)
from .protocol.session import CHUNK, ITEMS_PER_FRAME, STATE_MAX, agree
from .system.channel import Woken, descriptors_in_flight
from .system.fds import close_all
from .system.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .conversation import Conversation
    from .listener import Entry
    from .system.process import Peer

SOFTWARE = "fdhandoff"
# A payload has room for 1 MiB; entries with long paths or connections with state fill a frame before its descriptors do.
_FRAME_BYTES = 512 * 1024


class Offering:
    """What is offered, and what the owner does at the turning points.

    ``items``: pairs of entry and descriptor (borrowed). ``close_gate()`` is called once *ready* has come: it stops accepting
    and returns the final state, or ``None`` when the offered one holds. ``reopen_gate()`` undoes it. ``release_control()`` and
    ``resume_control()`` do the same with the handoff path. All are called in the thread that runs the handoff.
    """

    __slots__ = (
        "close_gate",
        "generation",
        "items",
        "probation",
        "ready_timeout",
        "release_control",
        "reopen_gate",
        "resume_control",
        "serving_timeout",
        "state",
        "strict",
    )

    def __init__(
        self,
        items: Sequence[tuple[Entry, int]],
        *,
        generation: int,
        state: bytes = b"",
        ready_timeout: float = 60.0,
        serving_timeout: float | None = 60.0,
        probation: float = 0.0,
        strict: bool = False,
        close_gate: Callable[[], bytes | None] = lambda: None,
        reopen_gate: Callable[[], None] = lambda: None,
        release_control: Callable[[], None] = lambda: None,
        resume_control: Callable[[], None] = lambda: None,
    ) -> None:
        if len(state) > STATE_MAX:
            raise ValueError(f"the state is at most {STATE_MAX} bytes, not {len(state)}")
        self.items = list(items)
        self.state = state
        self.generation = generation
        self.ready_timeout = ready_timeout
        self.serving_timeout = serving_timeout
        self.probation = probation
        self.strict = strict
        self.close_gate = close_gate
        self.reopen_gate = reopen_gate
        self.release_control = release_control
        self.resume_control = resume_control


class Handed:
    """Who took the service: ``peer`` (pid, uid, gid as the kernel says), ``generation``, ``items`` (how many went)."""

    __slots__ = ("generation", "items", "peer")

    def __init__(self, peer: Peer, generation: Generation, items: int) -> None:
        self.peer = peer
        self.generation = generation
        self.items = items

    def __repr__(self) -> str:
        return f"<Handed {self.items} items to {self.generation}>"


class Handoff:
    """One attempt. ``offer()`` takes it to *taken*, ``await_ready()`` to *ready*, ``commit()`` over the turning point,
    ``watch()`` through probation. Each raises with ``.serving`` told; before the commit every failure leaves this side the
    owner, gate open. ``run()`` is all four."""

    def __init__(self, conversation: Conversation, offering: Offering) -> None:
        self.conversation = conversation
        self.offering = offering
        self._gate_closed = False
        self._control_released = False

    # --- the steps ------------------------------------------------------------------------------------------

    def run(self, hello: Hello | None = None) -> Handed:
        self.offer(hello)
        self.await_ready()
        self.commit()
        self.watch()
        return self.handed

    @property
    def handed(self) -> Handed:
        process = self.conversation.process
        started = process.started if process is not None else 0
        peer = self.conversation.peer
        return Handed(peer, Generation(self.offering.generation, peer.pid, started), len(self.offering.items))

    def offer(self, hello: Hello | None = None) -> None:
        """Sends everything; returns when the new side has verified and taken it. ``hello`` is given when it was heard."""
        conversation, offering = self.conversation, self.offering
        deadline = after(offering.ready_timeout)
        with self._before_commit("taking the offer"):
            if hello is None:
                hello = self._hear(Hello, deadline)
            version = agree(hello.min_version, hello.max_version)
            if version is None:
                reason = (
                    f"no common protocol version: the taker speaks {hello.min_version} to {hello.max_version}, "
                    f"this owner {VERSION_MIN} to {VERSION_MAX}"
                )
                refusal = Refused(
                    code="version",
                    reason=reason,
                    pid=os.getpid(),
                    min_version=VERSION_MIN,
                    max_version=VERSION_MAX,
                )
                conversation.say(refusal, deadline=deadline)
                raise VersionMismatch(f"{reason}; this process serves on", serving=OLD)
            with Process.from_pid(os.getpid()) as own:
                conversation.say(
                    Offer(
                        version=version,
                        generation=offering.generation,
                        items=len(offering.items),
                        state_size=len(offering.state),
                        pid=os.getpid(),
                        software=SOFTWARE,
                        ready_ms=_milliseconds(offering.ready_timeout),
                        probation_ms=_milliseconds(offering.probation),
                        strict=int(offering.strict),
                    ),
                    [own.pidfd] if own.pidfd >= 0 else [],
                    deadline=deadline,
                )
            self._send_items(deadline)
            self._send_state(offering.state, deadline)
            while conversation.session.state == "OFFERING":
                self._hear(None, deadline)

    def await_ready(self) -> None:
        """The new side boots; this one serves on."""
        deadline = after(self.offering.ready_timeout)
        with self._before_commit("becoming ready"):
            while self.conversation.session.state != "CLOSING":
                self._hear(None, deadline)

    def commit(self) -> None:
        """Closes the gate, sends the final state and the commit; returns when the new side says that it serves."""
        conversation, offering = self.conversation, self.offering
        deadline = after(offering.serving_timeout)
        with self._before_commit("committing"):
            self._gate_closed = True
            final = offering.close_gate()
            if final is not None:
                if len(final) > STATE_MAX:
                    raise ValueError(f"the final state is at most {STATE_MAX} bytes, not {len(final)}")
                self._send_state(final, deadline)
            self._control_released = True
            offering.release_control()
            message = Commit(final=int(final is not None), state_size=len(final or b""))
            data = conversation.session.say(message)
            try:
                # So small a frame is queued whole or not at all, so a failure here means that nobody can read it. A
                # stop request no longer counts: the commit is either made or not.
                conversation.channel.send([(data, 0)], (), deadline)
            except HandoffError:
                conversation.session.happen("unsent")
                raise
        self.await_serving(deadline)

    def await_serving(self, deadline: int) -> None:
        """``Unconfirmed`` when nothing is known at ``deadline``; may be called again."""
        conversation = self.conversation
        wake_fd, conversation.wake_fd = conversation.wake_fd, -1
        try:
            while conversation.session.state == "COMMITTED":
                try:
                    self._hear_after_commit(deadline)
                except DeadlineExceeded:
                    conversation.session.happen("deadline")
                    raise Unconfirmed(
                        f"{conversation.peer} was given the service and has not said that it serves; it owns the "
                        "service: end it if it hangs, then the next start binds afresh",
                        serving=NEW,
                    ) from None
        finally:
            conversation.wake_fd = wake_fd
        self._check_rollback()

    def watch(self, until: int | None = None) -> None:
        """Stays for the probation time (or until the moment ``until``), ready to take the service back on proof of death
        or the new side's own word. ``RolledBack`` then; a wake-up ends the wait early."""
        if until is None:
            until = after(self.offering.probation)
        conversation = self.conversation
        while conversation.session.state == "PROBATION" and not passed(until):
            try:
                self._hear_after_commit(until)
            except DeadlineExceeded:
                break
            except Woken:
                break
            self._check_rollback()
        conversation.session.happen("over")

    def report(self, active: int, oldest: float, deadline: float | None) -> None:
        """Tells the new side how the drain goes, if it still listens."""
        self._tell(
            Progress(
                active=active,
                oldest_ms=_milliseconds(oldest),
                deadline_ms=0 if deadline is None else _milliseconds(deadline),
            )
        )

    def drained(self, finished: int, forced: int) -> None:
        """The last word to the new side, if it still listens."""
        self._tell(Drained(finished=finished, forced=forced))

    def close(self) -> None:
        self.conversation.close()

    # --- pieces ---------------------------------------------------------------------------------------------

    def _tell(self, message: Message) -> None:
        session = self.conversation.session
        if not session.may_say(type(message)):
            return
        try:
            if session.state == "DRAINING":
                self._refuse_late_abort()
            self.conversation.say(message, deadline=after(1.0))
        except (PeerGone, DeadlineExceeded, Woken):
            return  # nobody depends on it: the new side sees our end, too

    def _refuse_late_abort(self) -> None:
        """The listeners are closed here: who would give the service back after probation is told that it keeps it."""
        for message, fds in self.conversation.last_words():
            close_all(fds)
            if isinstance(message, Abort):
                refusal = Refused(code="too-late", reason="probation is over", pid=os.getpid())
                self.conversation.say(refusal, deadline=after(1.0))

    def _send_items(self, deadline: int) -> None:
        conversation, items = self.conversation, self.offering.items
        session = conversation.session
        session.window = descriptors_in_flight()
        position = 0
        while position < len(items):
            room = min(ITEMS_PER_FRAME, session.window_left, len(items) - position)
            if room < min(ITEMS_PER_FRAME, len(items) - position):
                self._hear(None, deadline)  # an acknowledgement opens the window
                continue
            batch: list[tuple[Entry, int]] = []
            size = 0
            for entry, fd in items[position : position + room]:
                size += 128 + len(entry.name) + len(entry.address) + len(entry.state)
                if batch and size > _FRAME_BYTES:
                    break
                batch.append((entry, fd))
            message = Items(first=position, entries=[entry for entry, _ in batch])
            conversation.say(message, [fd for _, fd in batch], deadline=deadline)
            position += len(batch)

    def _send_state(self, state: bytes, deadline: int) -> None:
        view = memoryview(state)
        for start in range(0, len(state), CHUNK):
            self.conversation.say(State(data=bytes(view[start : start + CHUNK])), deadline=deadline)

    def _hear(self, expected: type[Hello] | None, deadline: int) -> Hello:
        """One message before the commit; ``PeerAborted`` for an abort."""
        message, fds = self.conversation.hear(deadline)
        close_all(fds)
        if isinstance(message, Abort):
            raise self._gave_up(message)
        if expected is not None and not isinstance(message, expected):
            raise ProtocolError(f"a {type(message).__name__} where {expected.__name__} was expected")
        return message  # type: ignore[return-value]

    def _gave_up(self, abort: Abort) -> PeerAborted:
        return PeerAborted(
            f"{self.conversation.peer} gave up ({abort.code}): {abort.reason or 'no reason given'}", serving=OLD
        )

    def _hear_after_commit(self, deadline: int) -> None:
        """One message, or what became of the peer, told to the session. Nonsense is no proof of anything."""
        conversation = self.conversation
        try:
            _, fds = conversation.hear(deadline)
            close_all(fds)
        except Gone as gone:
            if gone.proved:
                conversation.session.happen("death")
            else:
                conversation.session.happen("eof")
        except ProtocolError:
            conversation.session.happen("bad")
            conversation.deafen()

    def _check_rollback(self) -> None:
        conversation = self.conversation
        if conversation.session.state == "RECLAIMING":
            # The new side waits for this word and accepts nothing; without it it would think that it still owns.
            data = conversation.session.say(Abort(code="taken-back"))
            try:
                conversation.channel.send([(data, 0)])
            except PeerGone:
                pass  # it gave up before it ever owned, and holds nothing
        if conversation.session.state != "TAKEN_BACK":
            return
        self._undo()
        how = _ending(conversation)
        raise RolledBack(
            f"{conversation.peer} {how} after it had become the owner; this process took the service back and serves",
            serving=OLD,
        )

    def _undo(self) -> None:
        """This side is the owner: the gate and the path are opened again, whatever was closed."""
        if self._control_released:
            self._control_released = False
            self.offering.resume_control()
        if self._gate_closed:
            self._gate_closed = False
            self.offering.reopen_gate()

    def _before_commit(self, doing: str) -> _BeforeCommit:
        return _BeforeCommit(self, doing)


class _BeforeCommit:
    """Whatever goes wrong in the block leaves this side the owner, the peer told, and the error saying so."""

    __slots__ = ("_doing", "_handoff")

    def __init__(self, handoff: Handoff, doing: str) -> None:
        self._handoff = handoff
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        handoff, conversation = self._handoff, self._handoff.conversation
        session = conversation.session
        translated = self._translate(error)
        if not session.final:
            conversation.abort(_code(error), str(translated or error))
        if not session.final:
            session.happen("bad")
        if session.owns:
            # Not after an exception from outside (a signal handler's) just behind the commit: it may have gone out.
            handoff._undo()
        if translated is not None:
            raise translated from error

    def _translate(self, error: BaseException) -> HandoffError | None:
        conversation, doing = self._handoff.conversation, self._doing
        peer, session = conversation.peer, conversation.session
        if isinstance(error, PeerGone):
            proved = isinstance(error, Gone) and error.proved
            for message, fds in conversation.last_words():
                close_all(fds)
                if isinstance(message, Abort):
                    return self._handoff._gave_up(message)
            session.happen("death" if proved else "eof")
            if proved or conversation.prove(0.2):
                return SuccessorDied(
                    f"{peer} {_ending(conversation)} while {doing}; this process serves on", serving=OLD
                )
            return PeerGone(f"{peer} hung up while {doing}; this process serves on", serving=OLD)
        if isinstance(error, DeadlineExceeded):
            return NotReady(
                f"{peer} did not finish {doing} within {self._handoff.offering.ready_timeout:g} s; this process serves on",
                serving=OLD,
            )
        if isinstance(error, Woken):
            return Aborted(f"the handoff was stopped while {peer} was {doing}; this process serves on", serving=OLD)
        if isinstance(error, HandoffError):
            error.serving = OLD
        return None


def _code(error: BaseException) -> str:
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    if isinstance(error, ProtocolError):
        return "protocol"
    if isinstance(error, Woken):
        return "stopped"
    return "aborted"


def _ending(conversation: Conversation) -> str:
    """In words, how the peer ended."""
    return "died" if conversation.dead else "gave the service back"


def _milliseconds(seconds: float | None) -> int:
    return 0 if seconds is None else min(int(seconds * 1000), 2**63)
