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
from .conversation import Conversation, Gone
from .deadline import after
from .errors import OLD, DeadlineExceeded, HandoffError, PeerGone, PeerUntrusted, ProtocolError
from .handoff import SOFTWARE
from .heir import heir_of, make_directory, name_heir, place_of, receptions_of, remove_directory
from .inventory import entry_of, verify
from .listener import KIND_CONNECTION, Connection
from .protocol.messages import VERSION_MAX, VERSION_MIN, Abort, Ack, Hello, Items, Packed, Refused
from .protocol.session import ITEMS_PER_FRAME, Session, agree
from .protocol.states import GIVER, RECEIVER
from .system.batches import Arrived, pack, unpack
from .system.channel import Channel, Woken, descriptors_in_flight
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


class Reception:
    """Where connections for ``generation`` arrive, in ``directory``. ``take(connections)`` is called in a thread of the
    reception's own, with those that have just become ours. ``verbs``: what else may be asked here. ``allow_uids``: who may
    give besides us and root."""

    def __init__(
        self,
        directory: str,
        generation: int,
        take: Callable[[Iterable[Connection]], object],
        *,
        verbs: dict[str, Verb] | None = None,
        allow_uids: Iterable[int] = (),
    ) -> None:
        """``PathError`` or ``SystemCallError`` when nothing can be bound there."""
        make_directory(directory)
        place, mode = place_of(directory)
        self.path = os.path.join(place, f"{generation}-{os.getpid()}.sock")
        self._take = take
        self._wake = Wake()
        self._guests: set[threading.Thread] = set()
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
        while guests := self._snapshot():
            for guest in guests:
                guest.join()
        registry.remove(self.path)
        self._wake.close()

    def _snapshot(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._guests)

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
        guest = Conversation(
            session, conversation.channel, conversation.peer, conversation.process, self._wake.fileno()
        )
        thread = threading.Thread(target=self._receive, args=(guest,), name="fdhandoff-reception", daemon=True)
        with self._lock:
            self._guests.add(thread)
        thread.start()

    def _receive(self, conversation: Conversation) -> None:
        """Until the giver has no more, or we want no more."""
        received = 0
        try:
            conversation.say(Ack(items=0), deadline=after(_WELCOME_SECONDS))
            while True:
                message, fds = conversation.hear(after(None))
                assert isinstance(message, Items)  # the table lets nothing else through
                entries: Any = message.entries
                if isinstance(entries, Arrived):
                    entries.own(fds)
                connections = entries if isinstance(entries, Arrived) else _verified(entries, fds)
                received += len(connections)
                try:
                    conversation.say(Ack(items=received), deadline=after(_WELCOME_SECONDS))
                except BaseException:
                    # Whether it was read or not: the giver has hung up, or will find that we have, and keeps them.
                    entries.close() if isinstance(entries, Arrived) else _close(connections)
                    raise
                self._take(connections)
        except (Gone, PeerGone, DeadlineExceeded):
            pass  # it has given all that it wanted to give, or died: what was not acknowledged is its own
        except Woken:
            conversation.abort("stopped", "no more connections are taken here")
        except (HandoffError, OSError) as error:
            conversation.abort("protocol" if isinstance(error, ProtocolError) else "mismatch", str(error))
        except Exception:
            # The application's: what it did not take is lost, which must be seen.
            sys.excepthook(*sys.exc_info())
        finally:
            conversation.close()
            with self._lock:
                self._guests.discard(threading.current_thread())


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
    try:
        found = connect_control(path, after(timeout))
    except DeadlineExceeded:
        return 0
    if found.sock is None:
        return 0
    channel = Channel(found.sock)
    try:
        who = peer(found.sock)
        if who.uid not in {0, os.geteuid(), *allow_uids}:
            raise PeerUntrusted(f"uid {who.uid} would take our connections at {path}: they stay here", serving=OLD)
        conversation = Conversation(Session(GIVER), channel, who, peer_process(found.sock))
    except BaseException:
        channel.close()
        raise
    try:
        return _give(conversation, connections, timeout, generation)
    finally:
        conversation.close()


def _give(conversation: Conversation, connections: Sequence[Connection], timeout: float, generation: int) -> int:
    session = conversation.session
    session.window = descriptors_in_flight()
    hello = Hello(
        min_version=VERSION_MIN, max_version=VERSION_MAX, pid=os.getpid(), software=SOFTWARE, generation=generation
    )
    try:
        conversation.say(hello, deadline=after(timeout))
        going = _heard(conversation, after(timeout))
        for batch in _batches(connections):
            entries, fds = _described(batch)
            while going and session.window_left < len(batch):
                going = _heard(conversation, after(timeout))
            if not going:
                break
            conversation.say(Items(first=session.items_sent, entries=entries), fds, deadline=after(timeout))
        while going and session.items_acked < session.items_sent:
            going = _heard(conversation, after(timeout))
    except (PeerGone, DeadlineExceeded):
        pass  # what it acknowledged counts
    # From here on it can't acknowledge anything more: it is told so by the kernel, and closes what it has not acknowledged.
    # What it said before is read to the end.
    conversation.channel.socket.shutdown(socket.SHUT_RDWR)
    for _, fds in conversation.last_words():
        close_all(fds)
    return session.items_acked


def _described(batch: Sequence[Connection]) -> tuple[Any, list[int]]:
    """Their entries, and their descriptors."""
    packed = pack(batch)
    if packed is not None:
        return Packed(packed[0], len(batch)), packed[1]
    fds = [one.fileno() for one in batch]
    return [entry_of(one.name, fd, KIND_CONNECTION, one.state) for one, fd in zip(batch, fds, strict=True)], fds


def _heard(conversation: Conversation, deadline: int) -> bool:
    """One answer; false when there is to be none any more."""
    try:
        message, fds = conversation.hear(deadline)
    except ProtocolError:
        return False
    close_all(fds)
    return not isinstance(message, (Abort, Refused))


def _batches(connections: Sequence[Connection]) -> Iterable[list[Connection]]:
    batch: list[Connection] = []
    size = 0
    for connection in connections:
        weight = 256 + len(connection.name) + len(connection.state)
        if batch and (len(batch) == BATCH or size + weight > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(connection)
        size += weight
    if batch:
        yield batch


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
    staying = list(connections)
    heir = heir_of(directory)
    paths = receptions_of(directory, heir) if heir and heir != generation else []
    while paths and staying:
        willing = []
        for place, path in enumerate(paths):
            share = -(-len(staying) // (len(paths) - place))
            part, staying = staying[:share], staying[share:]
            given = give(path, part, timeout=timeout, generation=generation, allow_uids=allow_uids)
            if given == len(part):
                willing.append(path)
            staying += part[given:]  # for the others, if there are any
        paths = willing
    return staying


class Crossing:
    """A process's part in it: its own reception, if it takes connections, and the way to the heir's. ``directory`` is empty
    where connections can't move. ``appoints``: whether who serves names itself the heir; under a master that does."""

    def __init__(self, directory: str, *, appoints: bool) -> None:
        self.directory = directory
        self.take: Callable[[Iterable[Connection]], object] | None = None
        self.leaves = False  # whether who takes no connections can be asked to drain, too
        self._appoints = appoints
        self._reception: Reception | None = None
        self._door = ""

    def open(self, generation: int, verbs: dict[str, Verb], allow_uids: Iterable[int] = ()) -> None:
        """Our generation serves: takes connections from here on, if there is a ``take``."""
        if self.directory and self.take is not None:
            self._reception = Reception(self.directory, generation, self.take, verbs=verbs, allow_uids=allow_uids)
            self.appoint(generation)
        elif self.directory and self.leaves and not self._appoints:
            make_directory(self.directory)
            place, mode = place_of(self.directory)
            self._door = os.path.join(place, f"{generation}-{os.getpid()}.ask")
            registry.obtain(self._door, mode=mode).verbs.update(verbs)

    def appoint(self, generation: int) -> None:
        if self.directory and self._appoints and self.take is not None:
            name_heir(self.directory, generation)

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
        return give_to_heir(self.directory, connections, generation=generation, allow_uids=allow_uids)

    def close(self, *, final: bool) -> None:
        """Takes nothing more. ``final``: no generation comes after us."""
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
        self._door = ""
