"""A session joined to its channel: say a message, hear the next one, notice that the peer died.

Both sides are driven by the same two calls. The thread that runs a conversation is the only one that touches it; others
make its wake descriptor readable.
"""

from __future__ import annotations

from .deadline import FOREVER, after, passed
from .errors import DeadlineExceeded, PeerGone, ProtocolError
from .protocol.messages import Abort, Message
from .system.channel import Woken, wait
from .system.fds import close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .protocol.session import Session
    from .system.channel import Channel
    from .system.process import Peer, Process

# How long a peer that hung up may take to be proved dead. A killed process closes its descriptors a moment before its
# pidfd tells; one with much memory, or one that dumps its core, takes longer.
PROOF_SECONDS = 5.0
# A courtesy message to a peer that fails anyway must not hold us up.
COURTESY_SECONDS = 1.0
# How often a peer without a pidfd is looked at once it hung up.
LOOK_SECONDS = 0.05


class Conversation:
    """``peer`` are the kernel's facts about the other side, ``process`` a handle that proves its death (``None`` where the
    system gives none). ``wake_fd`` is borrowed."""

    def __init__(
        self, session: Session, channel: Channel, peer: Peer, process: Process | None = None, wake_fd: int = -1
    ) -> None:
        self.session = session
        self.channel = channel
        self.peer = peer
        self.process = process
        self.wake_fd = wake_fd
        # Decoded, and not heard yet: the session learns of a message when the caller does, however many came at once.
        self._heard: list[tuple[Message, list[int]]] = []
        self._nonsense: ProtocolError | None = None  # what came after them
        self.dead = False  # proved
        self._hung_up = False

    # --- talking --------------------------------------------------------------------------------------------

    def say(self, message: Message, fds: Sequence[int] = (), *, deadline: int = FOREVER) -> None:
        """Sends it, with ``fds`` (borrowed). ``PeerGone``, ``DeadlineExceeded``, ``Woken``."""
        data = self.session.say(message, len(fds))
        self.channel.send([(data, len(fds))], fds, deadline, self.wake_fd)

    def hear(self, deadline: int) -> tuple[Message, list[int]]:
        """The next message and its descriptors (now the caller's); the session's state has changed with it.

        Raises ``PeerGone`` with ``.proved`` (whether the peer is proved dead) when no message can come any more,
        ``DeadlineExceeded``, ``Woken``, or ``ProtocolError``; the session is told of none of these, the caller decides.
        """
        while True:
            if self._heard:
                return self._next()
            if self._nonsense is not None:
                raise self._nonsense
            self._fill(deadline)

    def _next(self) -> tuple[Message, list[int]]:
        message, fds = self._heard.pop(0)
        try:
            self.session.receive(message)
        except ProtocolError:
            close_all(fds)
            raise
        return message, fds

    @property
    def heard(self) -> bool:
        """Whether ``hear`` has something already that was read together with what it gave back last."""
        return bool(self._heard) or self._nonsense is not None

    def check(self) -> None:
        """Raises what is known to be wrong with the stream behind the last word that was heard."""
        if self._nonsense is not None and not self._heard:
            raise self._nonsense

    def poll(self) -> bool:
        """Whether ``hear`` would return or raise at once."""
        if self._heard or self._nonsense is not None:
            return True
        try:
            self._fill(0)
        except DeadlineExceeded:
            return False
        return True

    def _fill(self, deadline: int) -> None:
        """One wait and what it brings."""
        proof = self.process.pidfd if self.process is not None else -1
        waiting = [fd for fd in (proof, -1 if self._hung_up else self.channel.fileno()) if fd >= 0]
        if proof < 0 and self._hung_up:
            self._look(deadline)
            return
        ready = wait(waiting, (), deadline, self.wake_fd, "the peer said nothing")
        hung_up_before = self._hung_up
        if not self._hung_up:
            # Also when only the death was seen: what the peer had sent before comes first.
            self._read()
            if self._heard or self._nonsense is not None:
                return
        if proof in ready:
            self.dead = True
            raise Gone(proved=True)
        if self._hung_up and not hung_up_before:
            raise Gone(proved=False)

    def _look(self, deadline: int) -> None:
        """Without a pidfd, a peer that hung up is looked at now and then: its pid and start time, if those are known."""
        if self.process is not None and not self.process.alive():
            self.dead = True
            raise Gone(proved=True)
        try:
            wait((), (), min(deadline, after(LOOK_SECONDS)), self.wake_fd)
        except DeadlineExceeded:
            if passed(deadline):
                raise

    def _read(self) -> None:
        """Reads on until a message is whole, nothing more is there, or the end: a peer that never stops keeps nobody."""
        while not (self._hung_up or self._heard or self._nonsense is not None):
            try:
                arrived = self.channel.receive()
                if arrived is None:
                    return
                data, fds = arrived
                if not data:
                    self._hung_up = True
                    return
                for heard in self.session.decode(data, fds):
                    self._heard.append(heard)
            except PeerGone:
                self._hung_up = True
            except ProtocolError as error:
                self._nonsense = error

    def last_words(self) -> list[tuple[Message, list[int]]]:
        """What the peer had said before it hung up and nobody has heard yet, as far as it makes sense."""
        words: list[tuple[Message, list[int]]] = []
        try:
            while True:
                self._read()
                if not self._heard:
                    return words
                words.append(self._next())
        except ProtocolError:
            return words

    def deafen(self) -> None:
        """Listens to no further word of a peer that talks nonsense; its death is still noticed."""
        self._hung_up = True
        self._nonsense = None

    def prove(self, seconds: float = PROOF_SECONDS) -> bool:
        """After the peer hung up: whether it is proved dead, within ``seconds``. What it is (our child, say) is not reaped."""
        self._hung_up = True
        deadline = after(seconds)
        try:
            while self.process is not None:
                self._fill(deadline)
        except Gone as gone:
            return gone.proved
        except (DeadlineExceeded, Woken):
            return False
        return False

    # --- the end --------------------------------------------------------------------------------------------

    def abort(self, code: str, reason: str) -> None:
        """Tells the peer, where the table lets us and the peer still listens, that this side gives up."""
        if not self.session.may_say(Abort):
            return
        data = self.session.say(Abort(code=code, reason=reason))
        try:
            self.channel.send([(data, 0)], (), after(COURTESY_SECONDS))
        except (PeerGone, DeadlineExceeded):
            return  # it will see the end of the stream instead

    def close(self) -> None:
        """Closes the channel and every descriptor that came and was not taken."""
        for _, fds in self._heard:
            close_all(fds)
        self._heard = []
        close_all(self.session.pending_fds)
        self.session.pending_fds.clear()
        self.channel.close()
        if self.process is not None:
            self.process.close()


class Gone(PeerGone):
    """The peer will say nothing more. ``proved``: it is dead; otherwise it only hung up."""

    def __init__(self, *, proved: bool) -> None:
        super().__init__("the peer died" if proved else "the peer hung up")
        self.proved = proved
