"""The conversation as a table: state x input -> next state, for each role.

An input is ``say X`` (this side sends message X), ``got X`` (X arrived), or an event:

- ``death``: the peer is *proved* dead (its pidfd, or its pid and start time), and all that it had sent was read;
- ``eof``: the peer hung up, or the stream broke, and it is *not* proved dead;
- ``deadline``: the time that this state may last is over;
- ``bad``: the peer sent what the protocol does not allow here;
- ``unsent``: the commit, or the word that gives the service back, could not be put into the channel (the peer had
  closed its end), so nobody can have read it;
- ``over``: probation has ended (the old side's clock).

``OWNS`` says in which states a side may accept. No pair of states that the two sides can be in at once has both; that, and
that somebody always does, is what the fault and property tests hold against this very table. Diagrams and the kill matrix
are generated from it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OWNER: Final = "owner"  # the old side
TAKER: Final = "taker"  # the new side
GIVER: Final = "giver"  # who has connections that shall go on elsewhere
RECEIVER: Final = "receiver"  # where they go on

EVENTS: Final = ("death", "eof", "deadline", "bad", "unsent", "over")

_FAIL_OLD = {"got ABORT": "ABORTED", "say ABORT": "ABORTED", "eof": "ABORTED", "death": "ABORTED",
             "deadline": "ABORTED", "bad": "ABORTED"}  # fmt: skip
_FAIL_NEW = {"got ABORT": "FAILED", "say ABORT": "FAILED", "eof": "FAILED", "death": "FAILED",
             "deadline": "FAILED", "bad": "FAILED"}  # fmt: skip

OWNER_TABLE: Final[dict[str, dict[str, str]]] = {
    # Connected and allowed by the kernel's word; nothing was said.
    "AWAITING": {**_FAIL_OLD, "got HELLO": "GREETED"},
    "GREETED": {**_FAIL_OLD, "say REFUSED": "REFUSED", "say OFFER": "OFFERING"},
    "OFFERING": {**_FAIL_OLD, "say ITEMS": "OFFERING", "say STATE": "OFFERING", "got ACK": "OFFERING",
                 "got TAKEN": "OFFERED"},
    # The new side boots; the old one serves on.
    "OFFERED": {**_FAIL_OLD, "got READY": "CLOSING"},
    # Ready was said: the gate closes, the final state is made. Still undone by anything.
    "CLOSING": {**_FAIL_OLD, "say STATE": "CLOSING", "say COMMIT": "COMMITTED"},
    # Commit was sent. A hung-up or mad peer is no proof: it may have read the commit and serve. Only its own word that it
    # did not (ABORT) or its proved death gives the service back.
    "COMMITTED": {"got SERVING": "PROBATION", "got ABORT": "RECLAIMING", "death": "TAKEN_BACK",
                  "unsent": "ABORTED", "eof": "COMMITTED", "deadline": "COMMITTED", "bad": "COMMITTED"},
    "PROBATION": {"say ITEMS": "PROBATION", "got ACK": "PROBATION", "say PROGRESS": "PROBATION",
                  "got ABORT": "RECLAIMING", "death": "TAKEN_BACK", "eof": "PROBATION", "bad": "PROBATION",
                  "over": "DRAINING"},
    # The new side does not accept and asks us to; it waits for our word. If it no longer listens it holds nothing.
    "RECLAIMING": {"say ABORT": "TAKEN_BACK", "unsent": "TAKEN_BACK", "death": "TAKEN_BACK"},
    # The listeners are closed here; what is inside finishes. A new side that would give the service back is too late.
    "DRAINING": {"say ITEMS": "DRAINING", "got ACK": "DRAINING", "say PROGRESS": "DRAINING", "got ABORT": "DRAINING",
                 "say REFUSED": "DRAINING", "eof": "DRAINING", "death": "DRAINING", "bad": "DRAINING",
                 "say DRAINED": "DONE", "deadline": "DONE"},
    "REFUSED": {},
    "ABORTED": {},
    "TAKEN_BACK": {},
    "DONE": {},
}  # fmt: skip

TAKER_TABLE: Final[dict[str, dict[str, str]]] = {
    "CONNECTED": {"say HELLO": "GREETING", "eof": "FAILED", "death": "FAILED", "deadline": "FAILED", "bad": "FAILED"},
    "GREETING": {**_FAIL_NEW, "got OFFER": "TAKING", "got REFUSED": "REFUSED"},
    "TAKING": {**_FAIL_NEW, "got ITEMS": "TAKING", "got STATE": "TAKING", "say ACK": "TAKING", "say TAKEN": "TAKEN"},
    # Everything is here and verified; the application boots. From here on a dead owner leaves the service to us.
    "TAKEN": {**_FAIL_NEW, "say READY": "WAITING", "death": "ORPHANED"},
    # An owner that lives and hung up without a commit has not committed: it serves.
    "WAITING": {**_FAIL_NEW, "got STATE": "WAITING", "got COMMIT": "OWNING", "death": "ORPHANED"},
    "OWNING": {"say SERVING": "SERVING", "say ABORT": "GIVING_BACK", "eof": "OWNING", "death": "OWNING",
               "bad": "OWNING", "deadline": "OWNING"},
    "SERVING": {"got ITEMS": "SERVING", "say ACK": "SERVING", "got PROGRESS": "SERVING", "got DRAINED": "COMPLETE",
                "say ABORT": "GIVING_BACK", "eof": "COMPLETE", "death": "COMPLETE", "bad": "COMPLETE"},
    # We accept nothing and hold everything until the old side has said that it is the owner again. If it can't say so any
    # more, it has not taken the service back: it is ours. Nonsense may have been that very word.
    "GIVING_BACK": {"got ABORT": "GAVE_BACK", "got REFUSED": "COMPLETE", "got DRAINED": "COMPLETE",
                    "got ITEMS": "GIVING_BACK", "got PROGRESS": "GIVING_BACK", "unsent": "COMPLETE", "eof": "COMPLETE",
                    "death": "COMPLETE", "bad": "GIVING_BACK", "deadline": "GIVING_BACK"},
    "REFUSED": {},
    "FAILED": {},
    "ORPHANED": {},
    "GAVE_BACK": {},
    "COMPLETE": {},
}  # fmt: skip

# The other conversation: single connections move, after a handoff or under a master. What was acknowledged is the receiver's,
# everything else the giver's, however it ends: so whoever ends it needs no word for that.
_END_GIVING = {"got ABORT": "ENDED", "eof": "ENDED", "death": "ENDED", "deadline": "ENDED", "bad": "ENDED"}
_END_RECEIVING = {"eof": "CLOSED", "death": "CLOSED", "deadline": "CLOSED", "bad": "CLOSED"}

GIVER_TABLE: Final[dict[str, dict[str, str]]] = {
    "CALLING": {**_END_GIVING, "say HELLO": "CALLED"},
    "CALLED": {**_END_GIVING, "got REFUSED": "ENDED", "got ACK": "GIVING"},
    "GIVING": {**_END_GIVING, "say ITEMS": "GIVING", "got ACK": "GIVING"},
    "ENDED": {},
}
RECEIVER_TABLE: Final[dict[str, dict[str, str]]] = {
    "OPEN": {**_END_RECEIVING, "got HELLO": "GREETED"},
    # Its first acknowledgement, of nothing, is the welcome.
    "GREETED": {**_END_RECEIVING, "say REFUSED": "CLOSED", "say ACK": "RECEIVING"},
    # It touches no connection before it has acknowledged it.
    "RECEIVING": {**_END_RECEIVING, "say ABORT": "CLOSED", "got ITEMS": "RECEIVING", "say ACK": "RECEIVING"},
    "CLOSED": {},
}

TABLES: Final = {OWNER: OWNER_TABLE, TAKER: TAKER_TABLE}
MOVING: Final = {GIVER: GIVER_TABLE, RECEIVER: RECEIVER_TABLE}
FIRST: Final = {OWNER: "AWAITING", TAKER: "CONNECTED", GIVER: "CALLING", RECEIVER: "OPEN"}

_ALL: Final = {**TABLES, **MOVING}

OWNS: Final = {
    OWNER: frozenset({"AWAITING", "GREETED", "OFFERING", "OFFERED", "CLOSING", "REFUSED", "ABORTED", "TAKEN_BACK"}),
    TAKER: frozenset({"OWNING", "SERVING", "COMPLETE", "ORPHANED"}),
    GIVER: frozenset(),
    RECEIVER: frozenset(),
}


def is_final(role: str, state: str) -> bool:
    return not _ALL[role][state]


def transition(role: str, state: str, step: str) -> str | None:
    """The next state, or ``None`` where the table has no such step."""
    return _ALL[role][state].get(step)
