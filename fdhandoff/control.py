"""Whoever answers at the handoff path: one thread of the process that accepts, checks who it is, reads the first message,
and passes it on. Takers go to whoever offers at the moment; operators' verbs are answered here.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from _thread import allocate_lock, get_ident  # as threading has them: a master need not carry the rest
from collections import deque

from .conversation import Conversation
from .deadline import after, passed, remaining
from .errors import DeadlineExceeded, HandoffError, PeerGone, ProtocolError, SystemCallError
from .listener import KIND_LISTENER
from .notation import dumps, loads
from .protocol import frames
from .protocol.messages import (
    VERSION_MAX,
    VERSION_MIN,
    Event,
    Hello,
    Message,
    Refused,
    Request,
    Response,
)
from .protocol.session import Session, agree
from .protocol.states import OWNER
from .system.channel import Channel
from .system.fds import close_all, listener_queue
from .system.process import Peer, Process, peer, peer_process
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from threading import Thread
    from typing import Any

    from .listener import Entry

    Greeter = Callable[[Conversation, Hello], None]
    Verb = Callable[[dict[str, Any], "Reply"], None]

# A guest that connects and says nothing is shown out; so many may stand in the hall at once.
FIRST_WORD_SECONDS = 5.0
GUESTS_MAX = 64
ANSWER_SECONDS = 2.0
# While the process is out of descriptors.
PAUSE_SECONDS = 0.1


class Reply:
    """The way back to whoever asked a verb: events, then one answer. Usable from any thread; a client that hung up or does
    not read is forgotten."""

    def __init__(self, channel: Channel, asker: Peer) -> None:
        self._channel = channel
        self.asker = asker
        self._lock = allocate_lock()

    def event(self, body: dict[str, Any]) -> bool:
        """Whether the asker is still there."""
        return self._send(Event(body=_dump(body)))

    def done(self, body: dict[str, Any] | None = None) -> None:
        self._finish(Response(code="ok", body=_dump(body or {})))

    def fileno(self) -> int:
        """The descriptor of the way back, for the program that this process becomes to answer by; -1 where nobody waits."""
        return self._channel.fileno()

    def fail(self, code: str, sentence: str, **more: Any) -> None:
        self._finish(Response(code=code, body=_dump({"error": sentence, **more})))

    def _finish(self, message: Message) -> None:
        self._send(message)
        with self._lock:
            self._channel.close()

    def _send(self, message: Message) -> bool:
        with self._lock:
            if self._channel.closed:
                return False
            try:
                self._channel.send([(frames.encode(message), 0)], (), after(ANSWER_SECONDS))
            except (PeerGone, DeadlineExceeded):
                self._channel.close()
                return False
            return True


def _dump(body: dict[str, Any]) -> bytes:
    return dumps({"schema": 1, **body}).encode()


class Endpoint:
    """One handoff path that this process answers. ``greeter`` gets takers (``None``: nobody offers), ``verbs`` the rest.

    The fields are changed by any thread; the loop reads them when a guest has spoken.
    """

    def __init__(
        self, path: str, sock: socket.socket, identity: tuple[int, int] | None, allow_uids: frozenset[int] = frozenset()
    ) -> None:
        sock.setblocking(False)
        self.path = path
        self.socket = sock
        self.identity = identity
        self.allow_uids = allow_uids
        self.generation = 0
        self._answering = allocate_lock()
        self._silent = False
        self.greeter: Greeter | None = None
        self.why_not = "starting"
        self.taker: Peer | None = None
        self.verbs: dict[str, Verb] = {"status": self._status}
        # What status tells besides: since when this process answers here, what it offers (borrowed), how the last upgrade
        # ended, and whatever else the owner knows.
        self.since = time.time()
        self.items: Sequence[tuple[Entry, int]] = ()
        self.last_upgrade: dict[str, Any] | None = None
        self.details: Callable[[], dict[str, Any]] = dict

    def accept(self) -> socket.socket | None:
        """The next guest, unless the path is somebody else's meanwhile."""
        with self._answering:
            return None if self._silent else self.socket.accept()[0]

    def fall_silent(self) -> None:
        """When it returns nobody is accepted any more, and the loop need not have been asked: a commit waits for this."""
        with self._answering:
            self._silent = True

    def speak_again(self) -> None:
        with self._answering:
            self._silent = False

    def begin_offer(
        self,
        greeter: Greeter,
        allow_uids: frozenset[int] = frozenset(),
        items: Sequence[tuple[Entry, int]] = (),
    ) -> None:
        self.allow_uids |= allow_uids
        self.taker = None
        self.items = items
        self.greeter = greeter

    def end_offer(self) -> None:
        self.greeter = None
        self.items = ()
        self.taker = None

    def note(self, result: str, reason: str, to: int, began: float) -> None:
        """How an upgrade to generation ``to``, begun at ``time.monotonic()`` ``began``, ended: for status."""
        self.last_upgrade = {
            "result": result,
            "reason": reason,
            "from": to - 1,
            "to": to,
            "seconds": time.monotonic() - began,
            "at": time.time(),
        }

    def _status(self, _: dict[str, Any], reply: Reply) -> None:
        """Its schema is in docs/reference/cli.md: keys are only ever added."""
        taker = self.taker
        word = "handing over" if taker else "offering" if self.greeter else self.why_not
        reply.done(
            {
                "master": None,
                "pid": os.getpid(),
                "uid": os.geteuid(),
                "since": self.since,
                "state": word,
                "generation": max(self.generation, 1),
                "path": self.path,
                "taker": taker.pid if taker else None,
                "listeners": [_listening(entry, fd) for entry, fd in self.items if entry.kind == KIND_LISTENER],
                "last_upgrade": self.last_upgrade,
                **self.details(),
            }
        )

    # --- called by the loop ---------------------------------------------------------------------------------

    def allows(self, guest: Peer) -> bool:
        return guest.uid in self.allow_uids or guest.uid in (0, os.geteuid())

    def greet(self, channel: Channel, guest: Peer, hello: Hello, fds: list[int]) -> None:
        """A taker: passed to the greeter, or refused at once."""
        greeter = self.greeter
        if greeter is None or self.taker is not None:
            close_all(fds)
            if self.taker is not None:
                refuse(channel, "in-progress", f"{self.taker} is taking over already", self.taker.pid)
            else:
                refuse(
                    channel, "starting", f"the owner (pid {os.getpid()}) does not offer the service yet", os.getpid()
                )
            return
        session = Session(OWNER)
        try:
            session.receive(hello)
        except ProtocolError:
            close_all(fds)
            raise
        try:
            process = identify(channel, guest, fds)
        except ProtocolError as error:
            refuse(channel, "untrusted", str(error), 0)
            return
        if guest.pid <= 0 and process is not None:
            guest = Peer(process.pid, guest.uid, guest.gid)
        self.taker = guest
        greeter(Conversation(session, channel, guest, process), hello)

    def answer(self, channel: Channel, guest: Peer, request: Request) -> None:
        reply = Reply(channel, guest)
        if agree(request.min_version, request.max_version) is None:
            reply.fail("version", f"this owner speaks protocol versions {VERSION_MIN} to {VERSION_MAX}")
            return
        verb = self.verbs.get(request.verb)
        if verb is None:
            known = ", ".join(sorted(self.verbs))
            reply.fail("unknown-verb", f"{request.verb!r} can't be asked of this process; it knows {known}")
            return
        try:
            body = loads(request.body or b"{}")
            if not isinstance(body, dict):
                raise ValueError("not an object")
        except ValueError as error:
            reply.fail("malformed", f"the body of {request.verb!r} is not a JSON object: {error}")
            return
        try:
            verb(body, reply)
        except HandoffError as error:
            reply.fail("refused", str(error), serving=error.serving)


def _listening(entry: Entry, fd: int) -> dict[str, Any]:
    try:
        queue = listener_queue(fd)
    except SystemCallError:
        queue = None  # closed meanwhile: the offer has just ended
    return {
        "name": entry.name,
        "address": entry.address,
        "queue": queue[0] if queue else None,
        "backlog": queue[1] if queue else None,
    }


def identify(channel: Channel, guest: Peer, fds: list[int]) -> Process | None:
    """The process to watch for: the kernel's word (SO_PEERPIDFD), else the pidfd that the guest sent of itself. Where both
    are known they must agree: whoever lets another process speak for it can't be watched. Takes ``fds``."""
    told = Process.from_pidfd(fds[0]) if fds else None
    try:
        kernel = peer_process(channel.socket)
    except BaseException:
        if told is not None:
            told.close()
        raise
    if told is None or kernel is None:
        return kernel if told is None else told
    same = told.id() == kernel.id() if told.id() and kernel.id() else told.pid in (kernel.pid, 0) or kernel.pid <= 0
    told.close()
    if not same:
        kernel.close()
        raise ProtocolError(f"{guest} connected, but another process speaks")
    return kernel


def refuse(channel: Channel, code: str, reason: str, pid: int) -> None:
    """Says no and hangs up."""
    message = Refused(code=code, reason=reason, pid=max(pid, 0), min_version=VERSION_MIN, max_version=VERSION_MAX)
    try:
        channel.send([(frames.encode(message), 0)], (), after(ANSWER_SECONDS))
    except (PeerGone, DeadlineExceeded):
        pass  # it does not want to know
    finally:
        channel.close()


class _Guest:
    """Somebody who connected and has not spoken a whole message yet."""

    __slots__ = ("channel", "deadline", "decoder", "endpoint", "peer")

    def __init__(self, endpoint: Endpoint, channel: Channel, who: Peer) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.peer = who
        self.decoder = frames.Decoder()
        self.deadline = after(FIRST_WORD_SECONDS)


class Loop:
    """The thread that answers. Endpoints come and go by ``add`` and ``remove``.

    Where the caller has a loop of its own no thread is needed (``own_thread=False``): then all happens in the caller's thread,
    which calls ``turn`` when ``fileno()`` is readable or ``patience()`` is over.
    """

    def __init__(self, *, own_thread: bool = True) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = Wake()
        self._calls: deque[Callable[[], None]] = deque()
        self._guests: dict[int, _Guest] = {}
        self._paused: dict[int, int] = {}
        # Lets an operator in when the process has run out of descriptors.
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._wake.close()
            self._selector.close()
            raise
        self._endpoints: dict[int, Endpoint] = {}
        self._selector.register(self._wake.fileno(), selectors.EVENT_READ, None)
        self._running = True
        self.own_thread = own_thread
        self._thread: Thread | None = None
        self._ident = 0 if own_thread else get_ident()
        if own_thread:
            from threading import Thread

            self._thread = Thread(target=self._run, name="fdhandoff-control", daemon=True)
            self._thread.start()

    # --- called by others -----------------------------------------------------------------------------------

    def add(self, endpoint: Endpoint) -> None:
        """Soon it is answered there; nobody need wait for that, for the listener's queue does."""
        self._calls.append(lambda: self._add(endpoint))
        self._wake.set()

    def remove(self, endpoint: Endpoint) -> None:
        """When it returns nobody is accepted any more; whoever stands in the hall may still speak."""
        self._call(lambda: self._remove(endpoint))

    def stop(self) -> None:
        self._call(self._stop)
        if self._thread is not None:
            self._thread.join()
        else:
            self._close()

    def _call(self, what: Callable[[], None]) -> None:
        if get_ident() == self._ident:
            what()
            return
        done = allocate_lock()
        done.acquire()

        def call() -> None:
            try:
                what()
            finally:
                done.release()

        self._calls.append(call)
        self._wake.set()
        done.acquire()

    def forget_in_child(self) -> None:
        """After fork, in the child, which has no such thread: its copies of the descriptors are closed, nothing else."""
        for guest in self._guests.values():
            guest.channel.close()
        for endpoint in self._endpoints.values():
            endpoint.socket.close()
        self._selector.close()
        self._wake.close()
        close_all([self._spare])

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ident = get_ident()
        while self._running:
            self.turn(self.patience())
        self._close()

    def fileno(self) -> int:
        """Readable when there is something to do."""
        return self._selector.fileno()

    def turn(self, seconds: float | None = 0.0) -> None:
        """Does what there is to do, if need be after a wait of ``seconds`` at most (``None``: of any length)."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._wake.clear()
                while self._calls:
                    self._calls.popleft()()
            elif isinstance(key.data, Endpoint):
                self._accept(key.data)
            elif key.fd in self._guests:
                self._listen(self._guests[key.fd])
        self._tidy()

    def _close(self) -> None:
        self._selector.close()
        self._wake.close()
        close_all([self._spare] if self._spare >= 0 else [])

    def _stop(self) -> None:
        self._running = False
        for guest in list(self._guests.values()):
            self._show_out(guest)

    def patience(self) -> float | None:
        """Seconds after which there is something to do even if nobody speaks; ``None``: never."""
        moments = [guest.deadline for guest in self._guests.values()]
        moments += self._paused.values()
        return remaining(min(moments)) if moments else None

    def _tidy(self) -> None:
        for guest in [guest for guest in self._guests.values() if passed(guest.deadline)]:
            refuse(self._leave(guest), "silent", f"nothing was said within {FIRST_WORD_SECONDS:g} s", 0)
        for fd in [fd for fd, until in self._paused.items() if passed(until)]:
            del self._paused[fd]
            if fd in self._endpoints:
                self._selector.register(fd, selectors.EVENT_READ, self._endpoints[fd])
        if self._spare < 0:
            self._refill()

    def _add(self, endpoint: Endpoint) -> None:
        fd = endpoint.socket.fileno()
        if fd in self._endpoints:
            return
        self._endpoints[fd] = endpoint
        self._selector.register(fd, selectors.EVENT_READ, endpoint)

    def _remove(self, endpoint: Endpoint) -> None:
        fd = endpoint.socket.fileno()
        if self._endpoints.pop(fd, None) is not None and self._paused.pop(fd, None) is None:
            self._selector.unregister(fd)

    def _accept(self, endpoint: Endpoint) -> None:
        try:
            sock = endpoint.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            # Out of descriptors. The spare lets one in; without it, a pause, or this would spin.
            if self._spare >= 0:
                os.close(self._spare)
                self._spare = -1
                return
            fd = endpoint.socket.fileno()
            self._selector.unregister(fd)
            self._paused[fd] = after(PAUSE_SECONDS)
            return
        if sock is None:
            self._remove(endpoint)  # it fell silent; it is added again if it shall speak
            return
        try:
            who = peer(sock)
            channel = Channel(sock)
        except BaseException:
            sock.close()
            raise
        if not endpoint.allows(who):
            refuse(channel, "untrusted", f"uid {who.uid} is not allowed here", 0)
        elif len(self._guests) >= GUESTS_MAX:
            refuse(channel, "busy", f"{GUESTS_MAX} others are waiting to be heard", 0)
        else:
            guest = self._guests[channel.fileno()] = _Guest(endpoint, channel, who)
            self._selector.register(channel.fileno(), selectors.EVENT_READ, guest)

    def _refill(self) -> None:
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = -1  # still out of them; the next round tries again

    def _listen(self, guest: _Guest) -> None:
        try:
            arrived = guest.channel.receive()
            if arrived is None:
                return
            data, fds = arrived
            if not data:
                self._show_out(guest)
                return
            guest.decoder.feed(data, fds)
            first = next(guest.decoder.messages(), None)
        except (PeerGone, ProtocolError, HandoffError) as error:
            channel = self._leave(guest)
            refuse(channel, "protocol", str(error), 0)
            return
        if first is None:
            return
        message, own = first
        channel = self._leave(guest)
        try:
            self._serve(guest, channel, message, own)
        except HandoffError as error:
            refuse(channel, "refused", str(error), 0)
        except Exception:
            # A fault in one answer must not make the path deaf for all others: it is shown, and the guest told.
            sys.excepthook(*sys.exc_info())
            refuse(channel, "internal", "the owner failed to answer; its error output says why", 0)

    def _serve(self, guest: _Guest, channel: Channel, message: Message, own: list[int]) -> None:
        if guest.decoder.mid_frame or guest.decoder.pending_fds:
            close_all(own)
            refuse(channel, "protocol", "more came than the first message, which must be answered before the next", 0)
        elif isinstance(message, Hello):
            guest.endpoint.greet(channel, guest.peer, message, own)
        elif isinstance(message, Request) and not own:
            guest.endpoint.answer(channel, guest.peer, message)
        else:
            close_all(own)
            refuse(channel, "protocol", f"a conversation does not begin with {type(message).__name__}", 0)

    def _leave(self, guest: _Guest) -> Channel:
        del self._guests[guest.channel.fileno()]
        self._selector.unregister(guest.channel.fileno())
        close_all(guest.decoder.pending_fds)
        return guest.channel

    def _show_out(self, guest: _Guest) -> None:
        self._leave(guest).close()
