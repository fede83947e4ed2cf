"""Both sides of a conversation without sockets and without time: what one says is put into the other, word by word.

Descriptors are just numbers here. ``Pair.drive`` brings a pair to a state of the table by the shortest way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fdhandoff.listener import KIND_LISTENER, Entry
from fdhandoff.protocol.messages import (
    ALL,
    Abort,
    Ack,
    Commit,
    Drained,
    Hello,
    Items,
    Message,
    Offer,
    Progress,
    Ready,
    Refused,
    Serving,
    State,
    Taken,
)
from fdhandoff.protocol.session import Session
from fdhandoff.protocol.states import FIRST, OWNER, TABLES, TAKER

OTHER = {OWNER: TAKER, TAKER: OWNER}
WORDS = {cls.__name__.upper(): cls for cls in ALL}


def entry(name: str = "http", cookie: int = 7) -> Entry:
    return Entry(
        name, KIND_LISTENER, family=2, type=1, protocol=6, listening=True, cookie=cookie, address="127.0.0.1:80"
    )


class Pair:
    """``owner`` and ``taker`` and what is on its way between them. ``items``, ``state``: what is offered."""

    def __init__(self, items: int = 1, state: bytes = b"") -> None:
        self.changes: list[tuple[str, str, str, str]] = []
        self.sessions = {role: Session(role, self._recorder(role)) for role in (OWNER, TAKER)}
        self.wire: dict[str, deque[tuple[bytes, list[int]]]] = {OWNER: deque(), TAKER: deque()}  # by who will hear it
        self.items, self.state = items, state
        self.heard: dict[str, list[Message]] = {OWNER: [], TAKER: []}

    def _recorder(self, role: str) -> Callable[[str, str, str], object]:
        return lambda before, step, after: self.changes.append((role, before, step, after))

    @property
    def owner(self) -> Session:
        return self.sessions[OWNER]

    @property
    def taker(self) -> Session:
        return self.sessions[TAKER]

    @property
    def states(self) -> tuple[str, str]:
        return self.owner.state, self.taker.state

    def say(self, role: str, message: Message, fds: list[int] | None = None) -> None:
        self.wire[OTHER[role]].append((self.sessions[role].say(message, len(fds or [])), fds or []))

    def hear(self, role: str) -> list[tuple[Message, list[int]]]:
        """The next word on its way to ``role`` arrives."""
        data, fds = self.wire[role].popleft()
        messages = self.sessions[role].feed(data, fds)
        self.heard[role] += [message for message, _ in messages]
        return messages

    def tell(self, role: str, message: Message, fds: list[int] | None = None) -> None:
        """Said and heard at once."""
        self.say(role, message, fds)
        self.hear(OTHER[role])

    def word(self, role: str, name: str) -> tuple[Message, list[int]]:
        """A message of this kind that the session accepts now, where any is."""
        session = self.sessions[role]
        if name == "OFFER":
            return Offer(version=1, generation=2, items=self.items, state_size=len(self.state)), []
        if name == "ITEMS":
            return Items(first=session.items_sent, entries=[entry(cookie=session.items_sent + 1)]), [100]
        if name == "STATE":
            return State(data=self.state), []
        if name == "ACK":
            return Ack(items=session.items_received), []
        if name == "TAKEN":
            return Taken(items=session.items_total), []
        simple: dict[str, Message] = {
            "HELLO": Hello(min_version=1, max_version=1),
            "READY": Ready(),
            "COMMIT": Commit(),
            "SERVING": Serving(),
            "PROGRESS": Progress(active=1),
            "DRAINED": Drained(),
            "ABORT": Abort(code="aborted"),
            "REFUSED": Refused(code="busy"),
        }
        return simple[name], []

    def speak(self, role: str, name: str) -> None:
        message, fds = self.word(role, name)
        self.tell(role, message, fds)

    # --- by the shortest way --------------------------------------------------------------------------------

    def run(self, *words: str) -> Pair:
        """``o:OFFER`` lets the owner say it, ``t:HELLO`` the taker; ``o!death`` lets an event happen to the owner."""
        for word in words:
            role = OWNER if word[0] == "o" else TAKER
            if word[1] == "!":
                self.sessions[role].happen(word[2:])
            else:
                self.speak(role, word[2:])
        return self


TAKING = ("t:HELLO", "o:OFFER")
TAKEN = (*TAKING, "o:ITEMS", "t:ACK", "t:TAKEN")
WAITING = (*TAKEN, "t:READY")
OWNING = (*WAITING, "o:COMMIT")
SERVING = (*OWNING, "t:SERVING")

# How to bring each side to each of its states; the other side comes along.
WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    OWNER: {
        "AWAITING": (),
        "GREETED": ("t:HELLO",),
        "OFFERING": TAKING,
        "OFFERED": TAKEN,
        "CLOSING": WAITING,
        "COMMITTED": OWNING,
        "PROBATION": SERVING,
        "RECLAIMING": (*SERVING, "t:ABORT"),
        "DRAINING": (*SERVING, "o!over"),
        "REFUSED": ("t:HELLO", "o:REFUSED"),
        "ABORTED": (*TAKEN, "o!deadline"),
        "TAKEN_BACK": (*SERVING, "o!death"),
        "DONE": (*SERVING, "o!over", "o:DRAINED"),
    },
    TAKER: {
        "CONNECTED": (),
        "GREETING": ("t:HELLO",),
        "TAKING": TAKING,
        "TAKEN": TAKEN,
        "WAITING": WAITING,
        "OWNING": OWNING,
        "SERVING": SERVING,
        "GIVING_BACK": (*SERVING, "t:ABORT"),
        "REFUSED": ("t:HELLO", "o:REFUSED"),
        "FAILED": (*TAKEN, "o:ABORT"),
        "ORPHANED": (*WAITING, "t!death"),
        "GAVE_BACK": (*SERVING, "t:ABORT", "o:ABORT"),
        "COMPLETE": (*SERVING, "o!over", "o:DRAINED"),
    },
}


def pair_in(role: str, state: str) -> Pair:
    """A pair whose ``role`` is in ``state``."""
    pair = Pair().run(*WAYS[role][state])
    assert pair.sessions[role].state == state, (pair.states, role, state)
    pair.changes.clear()
    return pair


def all_steps() -> list[tuple[str, str, str]]:
    """Every transition of both tables: role, state, step."""
    return [(role, state, step) for role, table in TABLES.items() for state, steps in table.items() for step in steps]


assert all(set(WAYS[role]) == set(TABLES[role]) and FIRST[role] in WAYS[role] for role in TABLES)
