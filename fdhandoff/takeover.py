"""The new side: it takes what is offered, verifies it, and becomes the owner when the old side commits."""

from __future__ import annotations

import os
import threading

from . import registry
from .conversation import Conversation, Gone
from .deadline import after, passed
from .errors import (
    NEW,
    OLD,
    UNKNOWN,
    Aborted,
    DeadlineExceeded,
    HandoffError,
    InProgress,
    ListenerMissing,
    LocalProtocolError,
    PeerAborted,
    PeerGone,
    PeerRefused,
    PeerUntrusted,
    ProtocolError,
    SystemCallError,
    Unconfirmed,
    VersionMismatch,
)
from .generation import Generation
from .handoff import SOFTWARE
from .inventory import verify
from .listener import (
    HEALTH,
    KIND_CONNECTION,
    KIND_CONTROL,
    KIND_COUNTERS,
    KIND_FILE,
    KIND_LISTENER,
    LEDGER,
    Connection,
    Entry,
    Listeners,
)
from .protocol.messages import (
    VERSION_MAX,
    VERSION_MIN,
    Abort,
    Ack,
    Drained,
    Hello,
    Items,
    Offer,
    Progress,
    Ready,
    Refused,
    Serving,
    State,
    Taken,
)
from .protocol.session import Session
from .protocol.states import TAKER
from .system.channel import Channel, Woken, wait
from .system.fds import close_all, socket_from_fd
from .system.paths import ABSENT, STALE, connect_control
from .system.process import Peer, Process, is_pidfd, peer, peer_process
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from typing import Any

_RETRY_FIRST, _RETRY_LAST = 0.005, 0.1


def receive(
    sock_path: str | os.PathLike[str],
    *,
    timeout: float | None = 30.0,
    allow_uids: Iterable[int] = (),
    require: Iterable[str] = (),
    generation: int = 0,
    on_step: Callable[[str, str, str], object] | None = None,
) -> Takeover:
    """Takes over from the owner that answers at ``sock_path``, waiting up to ``timeout`` seconds (``None``: for ever) for one
    that offers. Returns when everything has come and was verified; the old side serves on until ``Takeover.ready()``.

    ``allow_uids``: users besides our own and root from whom we take. ``require``: names that must be among the listeners.
    ``generation``: the number that the starter of this process gave it (0: any). ``on_step(before, step, after)`` is called
    after every step of the protocol.

    Raises ``InProgress`` (somebody else is taking), ``PeerRefused``, ``VersionMismatch``, ``PeerUntrusted``, ``PathError``,
    ``ListenerMismatch``, ``ListenerMissing``, ``PeerGone``, ``DeadlineExceeded``. After any of them this process holds nothing
    of what was offered, and whoever served before serves on.
    """
    takeover = take(
        os.fspath(sock_path),
        timeout=timeout,
        allow_uids=allow_uids,
        require=require,
        generation=generation,
        on_step=on_step,
        absent_ok=False,
    )
    assert takeover is not None  # only absent_ok allows it
    return takeover


def take(
    path: str,
    *,
    timeout: float | None,
    allow_uids: Iterable[int] = (),
    require: Iterable[str] = (),
    generation: int = 0,
    on_step: Callable[[str, str, str], object] | None = None,
    absent_ok: bool,
    wake_fd: int = -1,
    software: str = SOFTWARE,
    whole: bool = False,
) -> Takeover | None:
    """``receive``; with ``absent_ok`` ``None`` at once where no owner lives, so that the caller may become it. ``wake_fd``
    ends the wait with ``Woken``. ``software``: what we say that we are. ``whole``: also what one ``Service`` tells the next."""
    deadline = after(timeout)
    allowed = frozenset(allow_uids)
    pause = _RETRY_FIRST
    while True:
        try:
            takeover, why = _attempt(path, deadline, allowed, frozenset(require), generation, on_step, software)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"nothing was taken over at {path}: {error}", serving=UNKNOWN) from error
        if takeover is not None:
            if not whole:
                takeover.drop_aside()
            return takeover
        if absent_ok and why in (ABSENT, STALE):
            return None
        if passed(deadline):
            why = {ABSENT: "there is no such socket", STALE: "its owner has ended"}.get(why, why)
            raise DeadlineExceeded(f"nobody handed over at {path} within {timeout:g} s: {why}", serving=UNKNOWN)
        try:
            wait((), (), min(deadline, after(pause)), wake_fd)
        except DeadlineExceeded:
            pause = min(pause * 2, _RETRY_LAST)


def _attempt(
    path: str,
    deadline: int,
    allowed: frozenset[int],
    require: frozenset[str],
    generation: int,
    on_step: Callable[[str, str, str], object] | None,
    software: str,
) -> tuple[Takeover | None, str]:
    """One connection: the takeover, or why nobody offers yet."""
    connection = connect_control(path, deadline)
    if connection.sock is None:
        return None, connection.why
    sock = connection.sock
    try:
        owner = peer(sock)
        if owner.uid not in allowed | {os.geteuid(), 0}:
            raise PeerUntrusted(
                f"the owner at {path} runs as uid {owner.uid}: taking from it must be allowed on purpose (allow_uids)",
                serving=OLD,
            )
        wake = Wake()
    except BaseException:
        sock.close()
        raise
    conversation = Conversation(Session(TAKER, on_step), Channel(sock), owner, None, wake.fileno())
    takeover = Takeover(path, conversation, wake)
    try:
        takeover._take(deadline, require, generation, software)
    except PeerRefused as refusal:
        takeover.close()
        if refusal.code == "starting":
            return None, str(refusal)
        raise
    except Gone:
        # The owner ended between our connect and its answer; its successor, if any, answers the next attempt.
        stage = conversation.session.state
        takeover._fail()
        if stage in ("CONNECTED", "GREETING"):
            return None, "the owner hung up before it answered"
        raise PeerGone(
            f"{owner} died or hung up while it handed over at {path}; nothing was taken, and nobody serves unless it lives",
            serving=UNKNOWN,
        ) from None
    except BaseException as error:
        takeover._fail(error)
        raise
    return takeover, ""


class Takeover:
    """What came, before and after the commit.

    ``listeners``: ``Listeners``, a sequence in the sender's order and a mapping by name. ``files``: descriptors by name.
    ``connections``: established connections with their state. ``state``: the application's bytes, the final ones after
    ``ready()``. ``peer``: who gave. ``generation``: our number. ``orphaned``: the old side died before it could commit, so
    ``state`` is the offered one. ``strict``: the old side has stopped accepting when ``ready()`` returns. ``counters_fd``: the
    counters of the old side's gate, for ``CountersView``; -1 where it sent none. What came is
    the caller's to close after ``ready()``.

    As a context manager it aborts when left without ``ready()``.
    """

    def __init__(self, path: str, conversation: Conversation, wake: Wake) -> None:
        self.path = path
        self.listeners = Listeners((), ())
        self.files: dict[str, int] = {}
        self.health: list[socket.socket] = []
        self.counted: dict[str, int] = {}
        self.connections: list[Connection] = []
        self.state = b""
        self.peer: Peer = conversation.peer
        self.generation = Generation(1, os.getpid())
        self.strict = False
        self.orphaned = False
        self.probation = 0.0
        self.counters_fd = -1
        self.drain: Progress | Drained | None = None
        self._conversation = conversation
        self._wake = wake
        self._control: socket.socket | None = None
        self._listening_pid = 0
        self._lock = threading.Lock()
        self._closed = False
        self._probation_ends = 0

    # --- taking ---------------------------------------------------------------------------------------------

    def _take(self, deadline: int, require: frozenset[str], generation: int, software: str) -> None:
        conversation = self._conversation
        hello = Hello(
            min_version=VERSION_MIN,
            max_version=VERSION_MAX,
            pid=os.getpid(),
            software=software,
            generation=generation,
        )
        with Process.from_pid(os.getpid()) as own:
            try:
                conversation.say(hello, [own.pidfd] if own.pidfd >= 0 else [], deadline=deadline)
            except PeerGone:
                pass  # what it said before it hung up is heard next
        answer, fds = conversation.hear(deadline)
        if isinstance(answer, Refused):
            raise _refusal(answer, self.path)
        if not isinstance(answer, Offer):
            close_all(fds)
            raise _aborted(answer)
        if fds and not is_pidfd(fds[0]):
            close_all(fds)
            raise ProtocolError("what came as the owner's pidfd is none", serving=OLD)
        conversation.process = Process.from_pidfd(fds[0]) if fds else peer_process(conversation.channel.socket)
        if conversation.process is not None and conversation.process.pid > 0:
            self.peer = conversation.peer = Peer(conversation.process.pid, self.peer.uid, self.peer.gid)
        self.strict = bool(answer.strict)
        self.probation = answer.probation_ms / 1000
        self.generation = Generation(max(1, answer.generation), os.getpid())
        self._collect(deadline)
        missing = require - set(self.listeners.names)
        if missing:
            raise ListenerMissing(
                f"{self.peer} offers no listener named {', '.join(sorted(missing))}; "
                f"it offers {', '.join(self.listeners.names) or 'none'}",
                serving=OLD,
            )
        conversation.check()
        try:
            conversation.say(Taken(items=conversation.session.items_total), deadline=deadline)
        except PeerGone:
            pass  # everything is here: whether the owner died, and the service is ours, is for ready() to find out
        self.state = conversation.session.take_state()
        if self._control is not None:
            registry.prepare()

    def _collect(self, deadline: int) -> None:
        """Items and state, until everything is here."""
        conversation = self._conversation
        session = conversation.session
        names: list[str] = []
        sockets: list[socket.socket] = []
        try:
            # The session counts what has arrived, which may be more than what was heard here so far.
            kept = 0
            while kept < session.items_total or not session.complete:
                message, fds = conversation.hear(deadline)
                if isinstance(message, Items):
                    self._keep(message.entries, fds, names, sockets)  # type: ignore[arg-type]
                    kept += len(message.entries)
                    conversation.say(Ack(items=kept), deadline=deadline)
                elif not isinstance(message, State):
                    raise _aborted(message)
        finally:
            # Also after a failure: what came so far is closed with the rest.
            self.listeners = Listeners(names, sockets)

    def _keep(self, entries: list[Entry], fds: list[int], names: list[str], sockets: list[socket.socket]) -> None:
        fds.reverse()  # pop() takes them from the front; what is left at a failure is closed below
        try:
            for entry in entries:
                description = verify(entry, fds[-1])
                if entry.kind == KIND_LISTENER and entry.name == HEALTH:
                    self.health.append(socket_from_fd(fds[-1], description))
                elif entry.kind == KIND_LISTENER:
                    sockets.append(socket_from_fd(fds[-1], description))
                    names.append(entry.name)
                elif entry.kind == KIND_CONNECTION:
                    self.connections.append(Connection(entry.name, socket_from_fd(fds[-1], description), entry.state))
                elif entry.kind == KIND_CONTROL and self._control is None:
                    self._control = socket_from_fd(fds[-1], description)
                    self._listening_pid = _listening_pid(self._control)
                elif entry.kind == KIND_COUNTERS and self.counters_fd < 0:
                    self.counters_fd = fds[-1]
                elif entry.kind == KIND_FILE and entry.name.startswith(LEDGER) and entry.name not in self.counted:
                    self.counted[entry.name] = fds[-1]
                elif entry.kind == KIND_FILE and entry.name not in self.files:
                    self.files[entry.name] = fds[-1]
                else:
                    raise ProtocolError(
                        f"item {entry.name!r} of kind {entry.kind} is unknown or came twice", serving=OLD
                    )
                fds.pop()
        finally:
            close_all(fds)

    # --- the turning point ----------------------------------------------------------------------------------

    def ready(self, timeout: float | None = 60.0) -> None:
        """Says that this process can serve, and returns when it is the owner: accept from here on, not before.

        Raises ``PeerAborted``, ``PeerGone`` (the old side lives and serves), ``DeadlineExceeded`` when no commit came in
        ``timeout`` seconds (the handoff is aborted then), ``Aborted`` after ``abort()``. After any of them everything that
        came is closed. If the old side died instead, this process is the owner, and ``orphaned`` is true.
        """
        with self._lock:
            session = self._conversation.session
            if session.owns:
                raise LocalProtocolError("ready() was said already", serving=NEW)
            if session.final or self._closed:
                raise Aborted("the takeover has ended: it was aborted, or closed", serving=UNKNOWN)
            try:
                self._await_commit(after(timeout))
            except BaseException as error:
                self._fail(error)
                raise
            self._own()

    async def ready_async(self, timeout: float | None = 60.0) -> None:
        """``ready()`` without blocking the event loop; cancelling it aborts the takeover."""
        from .awaiting import in_thread

        await in_thread(lambda: self.ready(timeout), self._wake.set)

    def _await_commit(self, deadline: int) -> None:
        conversation = self._conversation
        session = conversation.session
        try:
            conversation.say(Ready(), deadline=deadline)
            while session.state != "OWNING":
                message, fds = conversation.hear(deadline)
                close_all(fds)
                if isinstance(message, Abort):
                    raise _aborted(message)
        except PeerGone as gone:
            self._judge(gone)
        except ProtocolError:
            if not session.owns:  # nonsense behind the commit does not undo it
                raise
        except DeadlineExceeded:
            raise DeadlineExceeded(
                f"{self.peer} did not commit in time; the takeover is given up and {self.peer} serves on", serving=OLD
            ) from None
        except Woken:
            raise Aborted(f"the takeover was given up; {self.peer} serves on", serving=OLD) from None

    def _judge(self, gone: PeerGone) -> None:
        """The old side is silent for ever: dead, then the service is ours; or alive, then it is its."""
        conversation = self._conversation
        session = conversation.session
        for message, fds in conversation.last_words():
            close_all(fds)
            if isinstance(message, Abort):
                raise _aborted(message)
        if session.state == "OWNING":
            return
        if (isinstance(gone, Gone) and gone.proved) or conversation.prove():
            if self._superseded():
                session.happen("eof")
                raise PeerGone(f"{self.peer} gave us up, handed over to another process, and ended", serving=UNKNOWN)
            session.happen("death")
            self.orphaned = True
            return
        session.happen("eof")
        raise PeerGone(f"{self.peer} hung up without a commit and lives; it serves on", serving=OLD)

    def _superseded(self) -> bool:
        """Whether somebody became the owner behind our back. Each owner calls ``listen`` on the path's socket when it becomes
        it, and a listening socket's own SO_PEERCRED is who did so last."""
        return self._control is not None and _listening_pid(self._control) != self._listening_pid

    def _own(self) -> None:
        """The service is ours: the path too. What follows must not fail the caller: nobody else serves."""
        conversation = self._conversation
        session = conversation.session
        if not self.orphaned:
            final = session.take_state()
            if session.final_state:
                self.state = final
        if self._control is not None:
            registry.adopt(self.path, self._control, self.generation.number)
            self._control = None
        self._probation_ends = after(self.probation)
        if session.may_say(Serving):
            try:
                conversation.say(Serving(), deadline=after(5.0))
            except (PeerGone, DeadlineExceeded, Woken):
                return  # it died after its commit, or reads no more: the service is ours all the same

    # --- afterwards -----------------------------------------------------------------------------------------

    def wait_old(self, timeout: float | None = None) -> bool:
        """Waits until the old process has ended; whether it has. Its last report is in ``drain`` meanwhile."""
        deadline = after(timeout)
        while True:
            try:
                message, fds = self._conversation.hear(deadline)
            except Gone as gone:
                self._conversation.session.happen("death" if gone.proved else "eof")
                if gone.proved:
                    return True
                continue
            except ProtocolError:
                self._conversation.session.happen("bad")
                self._conversation.deafen()
                continue
            except (DeadlineExceeded, Woken):
                return False
            close_all(fds)
            if isinstance(message, (Progress, Drained)):
                self.drain = message

    def fileno(self) -> int:
        """Readable when the old side said something or hung up: ``ready()`` will then learn it at once."""
        return self._conversation.channel.fileno()

    def abort(self, reason: str = "", timeout: float | None = 30.0) -> None:
        """Gives up, also from another thread: a ``ready()`` that waits raises ``Aborted``. The old side serves on. Nothing
        happens when it has ended already.

        Once the service is ours it gives it back, which only works in the old side's probation: stop accepting before, and
        accept again if this raises ``PeerGone`` with ``.serving == "new"``: the old side can't take it, it stays ours.
        ``Unconfirmed`` after ``timeout`` seconds (``None``: never): the old side lives and says nothing; the service is its as
        soon as it goes on, so this process must not accept."""
        self._wake.set()
        with self._lock:
            if self._closed:
                return
            self._conversation.wake_fd = -1
            if self._conversation.session.owns:
                self._give_back(reason, after(timeout))
            else:
                self._fail(Aborted(reason or "the new side gave up", serving=OLD))

    def _give_back(self, reason: str, deadline: int) -> None:
        """Nothing is let go before the old side has said that it has the service."""
        conversation = self._conversation
        session = conversation.session
        if session.may_say(Abort):
            data = session.say(Abort(code="given-back", reason=reason))
            try:
                conversation.channel.send([(data, 0)])
            except PeerGone:
                session.happen("unsent")
        while session.state == "GIVING_BACK":
            try:
                _, fds = conversation.hear(deadline)
                close_all(fds)
            except DeadlineExceeded:
                session.happen("deadline")
                registry.forget(self.path)  # it is no longer for us to remove
                raise Unconfirmed(
                    f"{self.peer} was asked to take the service back and has not answered; it has it as soon as it goes on",
                    serving=OLD,
                ) from None
            except Gone as gone:
                session.happen("death" if gone.proved else "eof")
            except ProtocolError:
                session.happen("bad")
                conversation.deafen()
        if session.owns:
            raise PeerGone(f"{self.peer} can't take the service back any more: this process owns it", serving=NEW)
        self.close()

    @property
    def in_probation(self) -> bool:
        """Whether the service is ours and could still go back."""
        return self.owns and not passed(self._probation_ends)

    @property
    def owns(self) -> bool:
        """Whether the service is ours, by what was said so far."""
        return self._conversation.session.owns

    def give_back(self, reason: str) -> bool:
        """In probation: the old side takes the service back at once, not only when this process is proved dead. Stop
        accepting before. False where it is too late for that, or nobody is there to take it."""
        process = self._conversation.process
        if not self.in_probation or process is None:
            return False
        if process.alive():
            try:
                self.abort(reason)
            except PeerGone:
                return False  # its probation was over at this very moment: the service stays ours
            except Unconfirmed:
                return True  # it is asked, and nobody else may accept: the service is its when it goes on
        return self._conversation.session.state == "GAVE_BACK"

    @property
    def path_comes(self) -> bool:
        """Whether the handoff path is among what came, and not kept by a holder."""
        return self._control is not None

    def cancel(self) -> None:
        """Makes a ``ready()`` that waits, or comes, give up with ``Aborted``; nothing once the service is ours."""
        self._wake.set()

    def forget_in_child(self) -> None:
        """After fork, in the child: its copies of the conversation's descriptors are closed, nothing is said."""
        if not self._closed:
            self._closed = True
            self._conversation.close()
            self._wake.close()

    def close(self) -> None:
        """Ends the conversation. Before the commit everything that came is closed; afterwards it is the application's."""
        if self._closed:
            return
        self._closed = True
        if not self._conversation.session.owns:
            if self._conversation.session.state == "GAVE_BACK":
                registry.forget(self.path)
            self._drop()
            registry.rest()
        self._conversation.close()
        self._wake.close()

    def _fail(self, error: BaseException | None = None) -> None:
        """The end without a takeover."""
        code = "aborted"
        if isinstance(error, DeadlineExceeded):
            code = "deadline"
        elif isinstance(error, ProtocolError):
            code = "protocol"
        elif isinstance(error, HandoffError) and not isinstance(error, Aborted):
            code = "mismatch"
        self._conversation.abort(code, str(error) if isinstance(error, HandoffError) else "")
        self.close()

    def drop_aside(self) -> None:
        """Closes what only a ``Service`` has a use for."""
        for sock in self.health:
            sock.close()
        close_all(self.counted.values())
        self.health, self.counted = [], {}

    def _drop(self) -> None:
        self.listeners.close()
        close_all(self.files.values())
        self.files = {}
        self.drop_aside()
        for connection in self.connections:
            connection.target.close()
        self.connections = []
        close_all([self.counters_fd] if self.counters_fd >= 0 else [])
        self.counters_fd = -1
        if self._control is not None:
            self._control.close()
            self._control = None

    def __enter__(self) -> Takeover:
        return self

    def __exit__(self, *_: object) -> None:
        if self._conversation.session.owns:
            self.close()
        else:
            self.abort("the new side left without ready()")

    def __repr__(self) -> str:
        return f"<Takeover of {self.path} from {self.peer}: {self._conversation.session.state}>"


def _listening_pid(sock: socket.socket) -> int:
    try:
        return peer(sock).pid
    except SystemCallError:
        return 0  # this system tells it of connected sockets only


def _refusal(refused: Refused, path: str) -> PeerRefused:
    by = f" (pid {refused.pid})" if refused.pid else ""
    message = f"the owner at {path} refuses: {refused.reason or refused.code}{by}"
    if refused.code == "in-progress":
        return InProgress(message)
    if refused.code == "version":
        return VersionMismatch(
            f"{message}; this side speaks {VERSION_MIN} to {VERSION_MAX}, "
            f"the owner {refused.min_version} to {refused.max_version}"
        )
    return PeerRefused(message, code=refused.code)


def _aborted(message: Any) -> HandoffError:
    if isinstance(message, Abort):
        return PeerAborted(
            f"the owner gave the handoff up ({message.code}): {message.reason}; it serves on", serving=OLD
        )
    return ProtocolError(f"a {type(message).__name__} where it makes no sense", serving=OLD)
