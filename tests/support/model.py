"""The two tables against each other: every order of words, deaths, lost words and closed channels that can happen.

A world is what both sides are in, what is on its way, and who lives. ``moves`` are the ways in which it can go on; whoever
explores them all has seen every interleaving. Words are names only: what is in them is the session's business, except that
the offer has exactly one ITEMS, which TAKEN waits for.
"""

from __future__ import annotations

from typing import NamedTuple

from fdhandoff.protocol.states import FIRST, OWNER, OWNS, TABLES, TAKER, is_final

OTHER = {OWNER: TAKER, TAKER: OWNER}
ON_ITS_WAY = 3  # at most so many words in one direction
# Where an application may stop listening without a word: the call returned, or gave up waiting for SERVING.
MAY_LEAVE = {OWNER: {"COMMITTED", "DRAINING"}, TAKER: {"SERVING"}}


class Side(NamedTuple):
    state: str
    alive: bool = True
    open: bool = True  # its end of the channel
    deaf: bool = False  # it heard nonsense and listens no more
    told: bool = False  # the end of the stream was noticed
    items: bool = False  # the offer's ITEMS: said, or got
    inbox: tuple[str, ...] = ()


class World(NamedTuple):
    owner: Side
    taker: Side

    def side(self, role: str) -> Side:
        return self.owner if role == OWNER else self.taker

    def but(self, role: str, side: Side) -> World:
        return World(side, self.taker) if role == OWNER else World(self.owner, side)

    def owners(self) -> list[str]:
        """Who may accept: the dead don't."""
        return [role for role in (OWNER, TAKER) if self.side(role).alive and self.side(role).state in OWNS[role]]


START = World(Side(FIRST[OWNER]), Side(FIRST[TAKER]))


def moves(world: World) -> list[tuple[str, World]]:
    return [move for role in (OWNER, TAKER) for move in _moves_of(world, role)]


def forced(world: World) -> list[tuple[str, World]]:
    """What happens without anybody's will: words arrive, ends and deaths are noticed, an answer that is due is given."""
    due = (" got ", " eof", " death", " lost")
    return [(what, to) for what, to in moves(world) if any(word in what for word in due[:3]) or "RECLAIMING" in what]


def _moves_of(world: World, role: str) -> list[tuple[str, World]]:
    me, peer = world.side(role), world.side(OTHER[role])
    found: list[tuple[str, World]] = []
    if not me.alive:
        return found
    found.append((f"{role} killed in {me.state}", world.but(role, me._replace(alive=False, open=False, inbox=()))))
    if not me.open:
        return found
    if me.state in MAY_LEAVE[role]:
        found.append((f"{role} leaves {me.state}", world.but(role, me._replace(open=False, inbox=()))))
    table = TABLES[role][me.state]
    for step in table:
        word = step.partition(" ")[2]
        if step.startswith("say ") and _may_say(me, peer, role, word):
            found.append((f"{role} {step} in {me.state}", _say(world, role, word)))
    if me.inbox and not me.deaf:
        word = me.inbox[0]
        heard = world.but(role, me._replace(inbox=me.inbox[1:], items=me.items or word == "ITEMS"))
        to = _step(heard, role, f"got {word}") if f"got {word}" in table else _fail(heard, role, "bad")
        found.append((f"{role} got {word} in {me.state}", to))
        # Whatever came can also arrive as nonsense: its descriptors were lost, say.
        found.append((f"{role} lost {word} in {me.state}", _fail(world.but(role, me._replace(inbox=())), role, "bad")))
    if not peer.open and not (me.inbox and not me.deaf):
        if not me.told and "eof" in table:
            found.append((f"{role} eof in {me.state}", _step(world.but(role, me._replace(told=True)), role, "eof")))
        if not peer.alive and "death" in table:
            found.append((f"{role} death in {me.state}", _step(world, role, "death")))
    for event in ("deadline", "over"):
        if event in table:
            found.append((f"{role} {event} in {me.state}", _fail(world, role, event)))
    return [(what, to) for what, to in found if to != world]


def _may_say(me: Side, peer: Side, role: str, word: str) -> bool:
    if len(peer.inbox) >= ON_ITS_WAY or word == "ACK":
        return False
    if role == OWNER and me.state == "OFFERING" and word in ("ITEMS", "STATE"):
        return word == "ITEMS" and not me.items
    if word == "PROGRESS" or (word in ("ITEMS", "STATE", "REFUSED") and me.state not in ("OFFERING", "GREETED")):
        return word not in peer.inbox  # once more changes nothing
    return word != "TAKEN" or me.items


def _say(world: World, role: str, word: str) -> World:
    me, peer = world.side(role), world.side(OTHER[role])
    if not peer.open:
        # The kernel says that nobody listens any more.
        table = TABLES[role][me.state]
        if word == "COMMIT":
            return _step(_step(world, role, "say COMMIT"), role, "unsent")
        if word == "ABORT":
            gone = _step(world, role, "say ABORT")
            return _step(gone, role, "unsent") if "unsent" in TABLES[role][gone.side(role).state] else gone
        return _step(world, role, "eof") if "eof" in table else world
    after = _step(world, role, f"say {word}")
    after = after.but(role, after.side(role)._replace(items=me.items or word == "ITEMS"))
    return after.but(OTHER[role], peer._replace(inbox=(*peer.inbox, word)))


def _fail(world: World, role: str, event: str) -> World:
    """``bad`` and ``deadline``: where the table has an abort for it, that is said; elsewhere a side that heard nonsense is
    deaf from here on."""
    table = TABLES[role][world.side(role).state]
    if event in table and "say ABORT" in table and is_final(role, table[event]) and table[event] == table["say ABORT"]:
        return _say(world, role, "ABORT")
    after = _step(world, role, event) if event in table else world
    if event == "bad" and after.side(role).open:
        after = after.but(role, after.side(role)._replace(deaf=True, told=True, inbox=()))
    return after


def _step(world: World, role: str, step: str) -> World:
    me = world.side(role)
    state = TABLES[role][me.state][step]
    me = me._replace(state=state)
    if is_final(role, state):  # the conversation is over: this side closes it
        me = me._replace(open=False, inbox=(), deaf=False, told=False)
    return world.but(role, me)


def explore() -> dict[World, tuple[World | None, str]]:
    """Every world that can come about, with how: its predecessor and the move."""
    seen: dict[World, tuple[World | None, str]] = {START: (None, "")}
    todo = [START]
    while todo:
        world = todo.pop()
        for what, to in moves(world):
            if to not in seen:
                seen[to] = (world, what)
                todo.append(to)
    return seen


def story(seen: dict[World, tuple[World | None, str]], world: World) -> str:
    """How ``world`` came about, for a failing test."""
    steps = []
    at: World | None = world
    while at is not None:
        at, what = seen[at]
        steps.append(what)
    return "\n  ".join([*reversed(steps), f"=> {world}"])
