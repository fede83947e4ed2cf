"""Connections that go on in another generation: one that waits for its client's next request is sent there, with what the
application knows of it as bytes, and its client never notices.

Each process that takes such connections has a *reception*, a Unix socket in the service's directory for them. Whoever drains
calls at the receptions of the *heir*, the generation that serves now. A connection is the receiver's once it was acknowledged
and the giver's until then; neither touches one that is not its own, so it is never lost and never has two owners, whoever
dies in between.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from . import registry
from .control import refuse
from .conversation import Conversation
from .deadline import FOREVER, after
from .errors import OLD, DeadlineExceeded, HandoffError, PeerGone, PeerUntrusted, ProtocolError, SystemCallError
from .handoff import SOFTWARE
from .heir import heir_of, make_directory, name_heir, place_of, receptions_of, remove_directory
from .inventory import entry_of, verify
from .listener import KIND_CONNECTION, Connection
from .protocol.messages import VERSION_MAX, VERSION_MIN, Abort, Ack, Hello, Items, Message, Packed, Refused
from .protocol.session import ITEMS_PER_FRAME, Session, agree
from .protocol.states import GIVER, RECEIVER
from .system.batches import Arrived, pack, unpack
from .system.channel import Channel, Woken, descriptors_in_flight, open_files_limit
from .system.fds import close_all, socket_from_fd
from .system.paths import connect_control
from .system.process import peer, peer_process
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from .control import Verb
    from .listener import Entry

# Connections in a message.
BATCH = ITEMS_PER_FRAME
_BATCH_BYTES = 512 * 1024
_WELCOME_SECONDS = 5.0
# Descriptors that connections which arrive leave for everything else.
_SPARE = 16


class Reception:
    """Where connections for ``generation`` arrive, in ``directory``. ``take(connections)`` is called with those that have just
    become ours, in a thread for each giver. ``verbs``: what else may be asked here. ``allow_uids``: who may give besides us and
    root.

    ``seat(guest)``, where it is said, is called instead of such a thread being made, from another thread: it has
    ``guest.attend()`` called whenever ``guest.fileno()`` is readable, by the thread that ``take`` shall be called in, and
    ``guest.close()`` once that was false. It gives back what to call when no more are to come, in any thread: then that is to
    happen soon.
    """

    def __init__(
        self,
        directory: str,
        generation: int,
        take: Callable[[Iterable[Connection]], object],
        *,
        seat: Callable[[Guest], Callable[[], object]] | None = None,
        verbs: dict[str, Verb] | None = None,
        allow_uids: Iterable[int] = (),
    ) -> None:
        """``PathError`` or ``SystemCallError`` when nothing can be bound there."""
        make_directory(directory)
        place, mode = place_of(directory)
        self.path = os.path.join(place, f"{generation}-{os.getpid()}.sock")
        self._take = take
        self._seat = seat
        self._wake = Wake()
        self._threads: set[threading.Thread] = set()
        self._seated: dict[Guest, Callable[[], object]] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._endpoint = registry.obtain(self.path, mode=mode)
        self._endpoint.generation = generation
        self._endpoint.verbs.update(verbs or {})
        self._endpoint.begin_offer(self._greet, frozenset(allow_uids))

    def close(self) -> None:
        """Takes nothing more. What was acknowledged was passed on before this returns."""
        if os.getpid() != self._pid:
            return  # a fork's copy: the reception is its parent's
        self._endpoint.end_offer()
        self._wake.set()
        registry.remove(self.path)  # nobody is greeted any more
        while threads := self._snapshot():
            for thread in threads:
                thread.join()
        with self._lock:
            seated, self._seated = self._seated, {}
        for guest, dismiss in seated.items():
            guest.send_away()
            dismiss()
        self._wake.close()

    def _snapshot(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    # --- a giver comes (in the control thread) ------------------------------------------------------------------

    def _greet(self, conversation: Conversation, hello: Hello) -> None:
        self._endpoint.taker = None  # several may give at once
        if agree(hello.min_version, hello.max_version) is None:
            refuse(
                conversation.channel, "version", f"versions {VERSION_MIN} to {VERSION_MAX} are spoken here", os.getpid()
            )
            conversation.close()
            return
        session = Session(RECEIVER, open_items=unpack)
        session.receive(hello)
        wake_fd = self._wake.fileno() if self._seat is None else -1
        guest = Guest(
            Conversation(session, conversation.channel, conversation.peer, conversation.process, wake_fd), self._take
        )
        if self._seat is not None:
            dismiss = self._seat(guest)
            with self._lock:
                self._seated = {one: how for one, how in self._seated.items() if not one.gone}
                self._seated[guest] = dismiss
            return
        thread = threading.Thread(target=self._receive, args=(guest,), name="fdhandoff-reception", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _receive(self, guest: Guest) -> None:
        """Until the giver has no more, or we want no more."""
        try:
            while guest.attend(FOREVER):
                pass
        finally:
            guest.close()
            with self._lock:
                self._threads.discard(threading.current_thread())


class Guest:
    """A giver at a reception."""

    def __init__(self, conversation: Conversation, take: Callable[[Iterable[Connection]], object]) -> None:
        self.gone = False  # it brings nothing more
        self._conversation = conversation
        self._take = take
        self._welcomed = False
        self._received = 0
        self._limit = open_files_limit()
        self._lock = threading.RLock()

    def fileno(self) -> int:
        return self._conversation.channel.fileno()

    def attend(self, deadline: int = 0) -> bool:
        """Takes what comes next of what it brings, or what is there of that; whether more may come. By default it does not
        wait."""
        with self._lock:
            if not self.gone:
                self.gone = not self._attend(deadline)
            return not self.gone

    def _attend(self, deadline: int) -> bool:
        conversation = self._conversation
        try:
            if not self._welcomed:
                self._welcomed = True
                conversation.say(Ack(items=0), deadline=self._patience(deadline))
            while True:
                try:
                    message, fds = conversation.hear(deadline)
                except DeadlineExceeded:
                    return True
                self._receive(message, fds, self._patience(deadline))
                if not conversation.heard:
                    return True
        except (PeerGone, DeadlineExceeded):
            pass  # it has given all that it wanted to give, or died: what was not acknowledged is its own
        except Woken:
            self._say_no()
        except _Full as error:
            conversation.abort("failed", str(error))
        except (HandoffError, OSError) as error:
            conversation.abort("protocol" if isinstance(error, ProtocolError) else "mismatch", str(error))
        except Exception:
            # The application's: what it did not take is lost, which must be seen.
            sys.excepthook(*sys.exc_info())
        return False

    def _patience(self, deadline: int) -> int:
        """How long it may take to read our word. Whoever does not wait need not: there is room for it."""
        return after(_WELCOME_SECONDS) if deadline else 0

    def _receive(self, message: Message, fds: list[int], deadline: int) -> None:
        assert isinstance(message, Items)  # the table lets nothing else through
        entries: Any = message.entries
        if max(fds, default=0) >= self._limit - _SPARE:  # the kernel gives the lowest that are free
            close_all(fds)
            raise _Full(
                f"pid {os.getpid()} may open {self._limit} files and takes no more connections: "
                "raise its open-files limit (ulimit -n, LimitNOFILE=)"
            )
        if isinstance(entries, Arrived):
            entries.own(fds)
        connections = entries if isinstance(entries, Arrived) else _verified(entries, fds)
        self._received += len(connections)
        try:
            self._conversation.say(Ack(items=self._received), deadline=deadline)
        except BaseException:
            # Whether it was read or not: the giver has hung up, or will find that we have, and keeps them.
            entries.close() if isinstance(entries, Arrived) else _close(connections)
            raise
        self._take(connections)

    def _say_no(self) -> None:
        self._conversation.abort("stopped", "no more connections are taken here")

    def send_away(self) -> None:
        """Nothing more is taken of it. In any thread; what was acknowledged was passed on before this returns."""
        with self._lock:
            if not self.gone:
                self.gone = True
                self._say_no()

    def close(self) -> None:
        with self._lock:
            self.gone = True
            self._conversation.close()


class _Full(HandoffError):
    """There is no room for more."""


def _verified(entries: Sequence[Entry], fds: list[int]) -> list[Connection]:
    """All or nothing: ``ListenerMismatch`` and every descriptor closed."""
    connections: list[Connection] = []
    fds.reverse()
    try:
        for entry in entries:
            if entry.kind != KIND_CONNECTION:
                raise ProtocolError(f"{entry.name!r} is no connection, but of kind {entry.kind}")
            description = verify(entry, fds[-1])
            connections.append(Connection(entry.name, socket_from_fd(fds[-1], description), entry.state))
            fds.pop()
    except BaseException:
        _close(connections)
        raise
    finally:
        close_all(fds)
    return connections


def _close(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.target.close()


# --- giving -----------------------------------------------------------------------------------------------------


def give(
    path: str,
    connections: Sequence[Connection],
    *,
    timeout: float = 2.0,
    generation: int = 0,
    allow_uids: Iterable[int] = (),
) -> int:
    """Gives ``connections`` (borrowed) to the reception at ``path``: how many of them, in their order, are the receiver's now.
    The caller closes its copies of those, and goes on with the others. ``generation``: our own number.

    ``PeerRefused`` never: a receiver that is gone, refuses, stops in the middle, or is silent for ``timeout`` seconds, has
    taken what it acknowledged. ``PeerUntrusted`` when another user answers there, ``PathError`` when we may not ask.
    """
    giver = Giver(path, timeout=timeout, generation=generation, allow_uids=allow_uids)
    try:
        return giver.give(connections)
    finally:
        giver.close()


class Giver:
    """``give``, again and again, in one conversation. One thread uses it at a time. ``why``: what the receiver said where it
    took no more, if it said something; ``silent``: whether it was waited for in vain."""

    def __init__(self, path: str, *, timeout: float = 2.0, generation: int = 0, allow_uids: Iterable[int] = ()) -> None:
        self.path = path
        self.why = ""
        self.silent = False
        self.failure: Exception | None = None
        self._timeout = timeout
        self._conversation: Conversation | None = None
        try:
            found = connect_control(path, after(timeout))
        except DeadlineExceeded:
            self.silent = True
            return
        if found.sock is None:
            return
        channel = Channel(found.sock)
        try:
            who = peer(found.sock)
            if who.uid not in {0, os.geteuid(), *allow_uids}:
                raise PeerUntrusted(f"uid {who.uid} would take our connections at {path}: they stay here", serving=OLD)
            conversation = Conversation(Session(GIVER), channel, who, peer_process(found.sock))
        except BaseException:
            channel.close()
            raise
        self._conversation = conversation
        conversation.session.window = descriptors_in_flight()
        hello = Hello(
            min_version=VERSION_MIN, max_version=VERSION_MAX, pid=os.getpid(), software=SOFTWARE, generation=generation
        )
        try:
            conversation.say(hello, deadline=after(timeout))
            if not self._heard():
                self.close()
        except (PeerGone, DeadlineExceeded) as error:
            self.silent = isinstance(error, DeadlineExceeded)
            self.close()
        except BaseException:
            self.close()
            raise

    @property
    def open(self) -> bool:
        """Whether it is known of nothing that would keep the receiver from taking more."""
        return self._conversation is not None

    def close(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.close()

    def give(self, connections: Sequence[Connection]) -> int:
        """How many of ``connections`` (borrowed), in their order, are the receiver's now. It is closed where not all are.
        Raises what went wrong here only where none is: else it is the ``failure``, as what was acknowledged must be known."""
        conversation = self._conversation
        if conversation is None:
            return 0
        session = conversation.session
        before = session.items_acked
        going = True
        self.failure = None
        try:
            try:
                for batch, states in _batches(connections):
                    entries, fds = _described(batch, states)
                    while going and session.window_left < len(batch):
                        going = self._heard()
                    if not going:
                        break
                    items = Items(first=session.items_sent, entries=entries)
                    conversation.say(items, fds, deadline=after(self._timeout))
            except (PeerGone, DeadlineExceeded):
                raise
            except Exception as error:
                self.failure = error  # what was sent before that may yet be acknowledged
            while going and session.items_acked < session.items_sent:
                going = self._heard()
            going = going and self.failure is None
        except (PeerGone, DeadlineExceeded) as error:
            going = False  # what it acknowledged counts
            self.silent = isinstance(error, DeadlineExceeded)
        except BaseException:
            self.close()
            raise
        if not going:
            # From here on it can't acknowledge anything more: it is told so by the kernel, and closes what it has not
            # acknowledged. What it said before is read to the end.
            conversation.channel.socket.shutdown(socket.SHUT_RDWR)
            for message, fds in conversation.last_words():
                close_all(fds)
                self._note(message)
            self.close()
        given = session.items_acked - before
        if self.failure is not None and not given:
            raise self.failure
        return given

    def _heard(self) -> bool:
        """One answer; false when there is to be none any more."""
        assert self._conversation is not None
        try:
            message, fds = self._conversation.hear(after(self._timeout))
        except ProtocolError:
            return False
        close_all(fds)
        return self._note(message)

    def _note(self, message: Message) -> bool:
        if isinstance(message, (Abort, Refused)):
            self.why = message.reason
            return False
        return True


def _described(batch: Sequence[Connection], states: Sequence[bytes]) -> tuple[Any, Sequence[int]]:
    """Their entries, and their descriptors."""
    packed = pack(batch, states)
    if packed is not None:
        return Packed(packed[0], len(batch)), packed[1]
    fds = [one.fileno() for one in batch]
    return [entry_of(one.name, fd, KIND_CONNECTION, one.state) for one, fd in zip(batch, fds, strict=True)], fds


def _batches(connections: Sequence[Connection]) -> Iterable[tuple[Sequence[Connection], list[bytes]]]:
    """What fits into a message each, with the states."""
    at = 0
    while batch := connections[at : at + BATCH]:
        states = [connection.state for connection in batch]
        if sum(map(len, states)) > _BATCH_BYTES:
            room = _BATCH_BYTES
            for fitting, state in enumerate(states):
                room -= len(state)
                if room < 0 and fitting:
                    batch, states = batch[:fitting], states[:fitting]
                    break
        at += len(batch)
        yield batch, states


class Givers:
    """The way from ``generation``, which is our own, to whoever serves now. Threads share it: each has a conversation to
    itself, which stays for the next."""

    def __init__(
        self, directory: str, generation: int, *, timeout: float = 2.0, allow_uids: Iterable[int] = ()
    ) -> None:
        self._directory = directory
        self._generation = generation
        self._timeout = timeout
        self._allow_uids = tuple(allow_uids)
        self._resting: list[Giver] = []
        self._lock = threading.Lock()
        self.why = ""  # what was said last where not all were taken

    def give(self, connections: Sequence[Connection]) -> list[Connection]:
        """Gives them to whoever serves now, shared out among its processes: those that stay, and are the caller's still. None
        to give: only the conversations begin. ``HandoffError`` for what went wrong here, where none was given."""
        staying = list(connections)
        failure: HandoffError | None = None
        heir = heir_of(self._directory)
        paths = receptions_of(self._directory, heir) if heir and heir != self._generation else []
        if not staying:
            for path in paths:
                _, failure = self._give(path, ())
                if failure is not None:
                    raise failure
        while paths and staying:
            willing = []
            for place, path in enumerate(paths):
                share = -(-len(staying) // (len(paths) - place))
                part, staying = staying[:share], staying[share:]
                given, error = self._give(path, part)
                if given == len(part):
                    willing.append(path)
                failure = error or failure
                staying += part[given:]  # for the others, if there are any
            paths = willing
        if failure is not None:
            if len(staying) == len(connections):
                raise failure
            self.why = str(failure)
        return staying

    def _give(self, path: str, connections: Sequence[Connection]) -> tuple[int, HandoffError | None]:
        """How many were given, and what went wrong here: whatever it was, those are not ours any more."""
        given = 0
        try:
            giver = self._rested(path)
            given = giver.give(connections) if giver is not None else 0
            # One that rested may have ended for no reason that is against the receiver.
            if giver is None or (given < len(connections) and not giver.silent):
                giver = Giver(path, timeout=self._timeout, generation=self._generation, allow_uids=self._allow_uids)
                given += giver.give(connections[given:])
        except HandoffError as error:
            return given, error
        except OSError as error:
            return given, SystemCallError("socket", error.errno or 0, doing=f"giving connections at {path}")
        if giver.open:
            with self._lock:
                self._resting.append(giver)
        self.why = giver.why or self.why
        failure = giver.failure
        if failure is None or isinstance(failure, HandoffError):
            return given, failure
        return given, SystemCallError(
            "sendmsg", getattr(failure, "errno", None) or 0, doing=f"giving connections at {path}"
        )

    def _rested(self, path: str) -> Giver | None:
        with self._lock:
            for place, giver in enumerate(self._resting):
                if giver.path == path:
                    return self._resting.pop(place)
        return None

    def close(self) -> None:
        with self._lock:
            resting, self._resting = self._resting, []
        for giver in resting:
            giver.close()


def give_to_heir(
    directory: str,
    connections: Sequence[Connection],
    *,
    generation: int,
    timeout: float = 2.0,
    allow_uids: Iterable[int] = (),
) -> list[Connection]:
    """Gives them to whoever serves now, shared out among its processes: those that stay, and are the caller's still. None goes
    to ``generation``, which is our own."""
    givers = Givers(directory, generation, timeout=timeout, allow_uids=allow_uids)
    try:
        return givers.give(connections)
    finally:
        givers.close()


class Crossing:
    """A process's part in it: its own reception, if it takes connections, and the way to the heir's. ``directory`` is empty
    where connections can't move. ``appoints``: whether who serves names itself the heir; under a master that does."""

    def __init__(self, directory: str, *, appoints: bool) -> None:
        self.directory = directory
        self.take: Callable[[Iterable[Connection]], object] | None = None
        self.seat: Callable[[Guest], Callable[[], object]] | None = None
        self.by_others = False  # whether processes of ours take connections, if this one does not
        self.moved = 0  # how many connections were given from here
        self.leaves = False  # whether who takes no connections can be asked to drain, too
        self._appoints = appoints
        self._reception: Reception | None = None
        self._givers: Givers | None = None
        self._lock = threading.Lock()
        self._door = ""

    def open(self, generation: int, verbs: dict[str, Verb], allow_uids: Iterable[int] = ()) -> None:
        """Our generation serves: takes connections from here on, if there is a ``take``."""
        if self.directory and self.take is not None:
            self._reception = Reception(
                self.directory, generation, self.take, seat=self.seat, verbs=verbs, allow_uids=allow_uids
            )
            self.appoint(generation)
        elif self.directory and self.leaves and not self._appoints:
            make_directory(self.directory)
            place, mode = place_of(self.directory)
            self._door = os.path.join(place, f"{generation}-{os.getpid()}.ask")
            registry.obtain(self._door, mode=mode).verbs.update(verbs)

    def appoint(self, generation: int) -> None:
        if self.directory and self._appoints and (self.take is not None or self.by_others):
            name_heir(self.directory, generation)

    @property
    def why(self) -> str:
        """What a receiver said last, of those that did not take all, if it said something."""
        return self._givers.why if self._givers is not None else ""

    def has_heir(self, generation: int) -> bool:
        """Whether connections of ``generation``, which is ours, could go on elsewhere."""
        heir = heir_of(self.directory) if self.directory else 0
        return heir not in (0, generation) and bool(receptions_of(self.directory, heir))

    def give(
        self, connections: Sequence[Connection], generation: int, allow_uids: Iterable[int] = ()
    ) -> list[Connection]:
        """Those that stay here."""
        if not self.directory:
            return list(connections)
        with self._lock:
            if self._givers is None:
                self._givers = Givers(self.directory, generation, allow_uids=allow_uids)
        staying = self._givers.give(connections)
        with self._lock:
            self.moved += len(connections) - len(staying)
        return staying

    def close(self, *, final: bool) -> None:
        """Takes nothing more, and gives nothing. ``final``: no generation comes after us."""
        if self._givers is not None:
            self._givers.close()
        if self._reception is not None:
            self._reception.close()
            self._reception = None
            if final and self._appoints:
                remove_directory(self.directory)
        if self._door:
            registry.remove(self._door)
            self._door = ""

    def forget_in_child(self) -> None:
        self._reception = None
        self._givers = None
        self._door = ""
