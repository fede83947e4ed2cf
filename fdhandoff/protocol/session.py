"""One side of one conversation: the table of states, the frames, and the counts that both sides must agree on.

No I/O: ``say`` returns bytes to send, ``feed`` takes bytes that came and returns messages, ``happen`` takes events. What the
table does not allow raises ``LocalProtocolError`` when this side tries it and ``ProtocolError`` when the peer did it; the
caller then lets ``bad`` (or an abort) happen.
"""

from __future__ import annotations

from ..errors import LocalProtocolError, ProtocolError
from . import frames
from .messages import (
    VERSION_MAX,
    VERSION_MIN,
    Ack,
    Commit,
    Hello,
    Items,
    Message,
    Offer,
    State,
    Taken,
)
from .states import FIRST, OWNER, OWNS, is_final, transition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Descriptors that may be sent and not yet acknowledged, where the sender knows no better. The kernel counts a user's
# descriptors in flight against the open-files limit of the sender (1,024 for many), and another conversation of the same
# user may run beside this one.
WINDOW = 504
ITEMS_PER_FRAME = frames.FDS_MAX
# Bytes of state in a frame.
CHUNK = 256 * 1024
STATE_MAX = 64 * 1024 * 1024
ITEMS_MAX = 1_000_000


def agree(theirs_min: int, theirs_max: int) -> int | None:
    """The newest version that both speak, or ``None``."""
    version = min(VERSION_MAX, theirs_max)
    return version if version >= max(VERSION_MIN, theirs_min) else None


class Session:
    """``role`` is ``OWNER`` or ``TAKER``, ``GIVER`` or ``RECEIVER``. ``on_change(old_state, step, new_state)`` is called after
    every transition."""

    def __init__(
        self,
        role: str,
        on_change: Callable[[str, str, str], object] | None = None,
        *,
        open_items: frames.Open | None = None,
    ) -> None:
        self.role = role
        self.state = FIRST[role]
        self._on_change = on_change
        self._decoder = frames.Decoder(open_items)
        self.window = WINDOW
        self.items_total = 0
        self.items_sent = 0
        self.items_acked = 0
        self.items_received = 0
        self.state_total = 0
        self._state_sent = 0
        self._state_pieces: list[bytes] = []
        self._state_received = 0
        self.final_state = False  # new side: whether the commit brought a final state

    def observe(self, on_change: Callable[[str, str, str], object] | None) -> None:
        self._on_change = on_change

    # --- where we are ---------------------------------------------------------------------------------------

    @property
    def final(self) -> bool:
        return is_final(self.role, self.state)

    @property
    def owns(self) -> bool:
        """Whether this side may accept."""
        return self.state in OWNS[self.role]

    @property
    def window_left(self) -> int:
        """How many more descriptors may be sent before an acknowledgement."""
        return self.window - (self.items_sent - self.items_acked)

    @property
    def pending_fds(self) -> list[int]:
        """Descriptors that came and that no message has yet: to be closed when the conversation fails."""
        return self._decoder.pending_fds

    def may_say(self, cls: type[Message]) -> bool:
        return transition(self.role, self.state, f"say {cls.__name__.upper()}") is not None

    def take_state(self) -> bytes:
        """The state that came since the last call, as one piece."""
        state = b"".join(self._state_pieces)
        self._state_pieces = []
        self._state_received = 0
        return state

    # --- steps ----------------------------------------------------------------------------------------------

    def _step(self, step: str, error: type[LocalProtocolError] | type[ProtocolError]) -> None:
        before = self.state
        after = transition(self.role, before, step)
        if after is None:
            who = "this side can't" if error is LocalProtocolError else "the peer may not"
            raise error(f"{who} '{step}' while the {self.role} is {before}")
        self.state = after
        if self._on_change is not None:
            self._on_change(before, step, after)

    def happen(self, event: str) -> str:
        """Lets an event of the table happen; returns the new state. An event that the state does not know changes nothing."""
        if transition(self.role, self.state, event) is not None:
            self._step(event, LocalProtocolError)
        return self.state

    def say(self, message: Message, n_fds: int = 0) -> bytes:
        """The bytes to send, the state already changed: send them or give the conversation up."""
        self._check_outgoing(message, n_fds)
        data = frames.encode(message, n_fds)
        self._step(f"say {type(message).__name__.upper()}", LocalProtocolError)
        if isinstance(message, Offer):
            self.items_total = message.items
            self.state_total = message.state_size
        elif isinstance(message, Items):
            self.items_sent += n_fds
        elif isinstance(message, State):
            self._state_sent += len(message.data)
        return data

    def _check_outgoing(self, message: Message, n_fds: int) -> None:
        if isinstance(message, Items):
            if n_fds != len(message.entries) or n_fds == 0:
                raise LocalProtocolError(f"{len(message.entries)} entries for {n_fds} descriptors")
            if message.first != self.items_sent:
                raise LocalProtocolError(f"item {message.first} is said to be next, it is {self.items_sent}")
            if n_fds > self.window_left:
                raise LocalProtocolError(f"{n_fds} descriptors, but the window has room for {self.window_left}")
        elif isinstance(message, Taken) and not self.complete:
            raise LocalProtocolError("not everything has come yet")

    @property
    def complete(self) -> bool:
        """New side: whether everything that was offered has come. Old side: whether it was sent and acknowledged."""
        if self.role == OWNER:
            return self.items_acked >= self.items_total and self._state_sent >= self.state_total
        return self.items_received >= self.items_total and self._state_received >= self.state_total

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[tuple[Message, list[int]]]:
        """What arrived together → the messages that are complete, each with its descriptors, the state changed by each.

        On ``ProtocolError`` nothing of this call is returned: all its descriptors are in ``pending_fds``, to be closed.
        """
        done: list[tuple[Message, list[int]]] = []
        try:
            for message, own_fds in self.decode(data, fds):
                done.append((message, own_fds))
                self.receive(message)
        except ProtocolError:
            # What was complete before the nonsense is lost with it: the conversation ends here, so keep nothing.
            for _, own_fds in done:
                self._decoder.pending_fds.extend(own_fds)
            raise
        return done

    def decode(self, data: bytes, fds: Sequence[int] = ()) -> Iterator[tuple[Message, list[int]]]:
        """As ``feed``, but the state does not change: ``receive`` each message when its turn has come."""
        self._decoder.feed(data, fds)
        return self._decoder.messages()

    def receive(self, message: Message) -> None:
        """The state changes by a message that was decoded (here, or by whoever answers at the path)."""
        self._step(f"got {type(message).__name__.upper()}", ProtocolError)
        if isinstance(message, Hello):
            if message.min_version > message.max_version:
                raise ProtocolError(f"versions from {message.min_version} to {message.max_version}")
        elif isinstance(message, Offer):
            if message.items > ITEMS_MAX or message.state_size > STATE_MAX:
                raise ProtocolError(f"an offer of {message.items} items and {message.state_size} bytes of state")
            if not VERSION_MIN <= message.version <= VERSION_MAX:
                raise ProtocolError(f"an offer in version {message.version}, which was not among ours")
            self.items_total, self.state_total = message.items, message.state_size
        elif isinstance(message, Items):
            if message.first != self.items_received:
                raise ProtocolError(f"items from {message.first} on, expected {self.items_received}")
            self.items_received += len(message.entries)
            if self.state == "TAKING" and self.items_received > self.items_total:
                raise ProtocolError(f"{self.items_received} items of {self.items_total} offered")
        elif isinstance(message, Ack):
            if not self.items_acked <= message.items <= self.items_sent:
                raise ProtocolError(f"{message.items} items acknowledged, {self.items_sent} were sent")
            self.items_acked = message.items
        elif isinstance(message, State):
            self._state_received += len(message.data)
            limit = self.state_total if self.state == "TAKING" else STATE_MAX
            if self._state_received > limit:
                raise ProtocolError(f"{self._state_received} bytes of state, at most {limit} expected")
            self._state_pieces.append(message.data)
        elif isinstance(message, Taken):
            if message.items != self.items_total or not self.complete:
                raise ProtocolError(f"{message.items} items taken of {self.items_total}, not all acknowledged")
        elif isinstance(message, Commit):
            if message.state_size != (self._state_received if message.final else 0):
                raise ProtocolError(f"a final state of {message.state_size} bytes, {self._state_received} came")
            self.final_state = bool(message.final)
