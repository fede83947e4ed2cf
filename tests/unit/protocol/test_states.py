"""Every transition of the table, and every step that it does not have."""

from __future__ import annotations

import pytest

from fdhandoff.errors import LocalProtocolError, ProtocolError
from fdhandoff.protocol import frames
from fdhandoff.protocol.states import EVENTS, FIRST, OWNER, OWNS, TABLES, TAKER, is_final, transition
from tests.support.pair import OTHER, WORDS, Pair, all_steps, pair_in

STATES = [(role, state) for role, table in TABLES.items() for state in table]
CONVERSATION_WORDS = [name for name in WORDS if name not in ("REQUEST", "EVENT", "RESPONSE")]


def _take(pair: Pair, role: str, step: str) -> None:
    """Makes ``role`` take ``step``, whatever the other side is in."""
    kind, _, name = step.partition(" ")
    session = pair.sessions[role]
    if kind == "say":
        message, fds = pair.word(role, name)
        session.say(message, len(fds))
    elif kind == "got":
        # The other side's table may forbid what this test wants to arrive: it is put on the wire by hand.
        message, fds = _arriving(pair, role, name)
        session.feed(frames.encode(message, len(fds)), fds)
    else:
        session.happen(step)


def _arriving(pair: Pair, role: str, name: str):
    message, fds = pair.word(OTHER[role], name)
    session = pair.sessions[role]
    if name == "ITEMS":
        message.first = session.items_received
    elif name == "ACK":
        message.items = session.items_sent
    elif name == "TAKEN":
        session.items_acked = session.items_sent = session.items_total = 1
        message.items = 1
    return message, fds


@pytest.mark.parametrize(("role", "state", "step"), all_steps())
def test_every_transition_of_the_table_is_taken(role: str, state: str, step: str) -> None:
    pair = pair_in(role, state)
    if step in ("say ITEMS", "say TAKEN") and state in ("OFFERING", "TAKING"):
        pair = Pair().run("t:HELLO", "o:OFFER")
        if step == "say TAKEN":
            pair.run("o:ITEMS", "t:ACK")
    elif step == "got ITEMS" and state == "TAKING":
        pair = Pair().run("t:HELLO", "o:OFFER")
    elif step == "got STATE" and state == "TAKING":
        pair = Pair(state=b"x").run("t:HELLO", "o:OFFER")
    pair.changes.clear()
    _take(pair, role, step)
    after = TABLES[role][state][step]
    assert pair.sessions[role].state == after
    assert (role, state, step, after) in pair.changes
    assert pair.sessions[role].owns == (after in OWNS[role])
    assert pair.sessions[role].final == is_final(role, after)


@pytest.mark.parametrize(("role", "state"), STATES)
def test_a_word_that_the_table_does_not_have_raises_and_changes_nothing(role: str, state: str) -> None:
    for name in CONVERSATION_WORDS:
        if f"say {name}" not in TABLES[role][state]:
            pair = pair_in(role, state)
            message, fds = pair.word(role, name)
            assert not pair.sessions[role].may_say(type(message))
            with pytest.raises(LocalProtocolError):
                pair.sessions[role].say(message, len(fds))
            assert pair.sessions[role].state == state
        if f"got {name}" not in TABLES[role][state]:
            pair = pair_in(role, state)
            message, fds = pair.word(OTHER[role], name)
            with pytest.raises(ProtocolError, match=f"got {name}.*{state}"):
                pair.sessions[role].feed(frames.encode(message, len(fds)), fds)
            assert pair.sessions[role].state == state
            assert pair.sessions[role].pending_fds == fds  # whoever fed them closes them


@pytest.mark.parametrize("name", ["REQUEST", "EVENT", "RESPONSE"])
@pytest.mark.parametrize(("role", "state"), STATES)
def test_an_operators_words_have_no_place_in_a_handoff(role: str, state: str, name: str) -> None:
    assert transition(role, state, f"say {name}") is None
    assert transition(role, state, f"got {name}") is None


@pytest.mark.parametrize(("role", "state"), STATES)
def test_an_event_that_a_state_does_not_know_changes_nothing(role: str, state: str) -> None:
    for event in EVENTS:
        if event not in TABLES[role][state]:
            pair = pair_in(role, state)
            assert pair.sessions[role].happen(event) == state
            assert pair.changes == []


def test_steps_are_words_or_events_and_what_one_side_says_the_other_can_get() -> None:
    for role, table in TABLES.items():
        said = {step[4:] for steps in table.values() for step in steps if step.startswith("say ")}
        got = {step[4:] for steps in TABLES[OTHER[role]].values() for step in steps if step.startswith("got ")}
        assert said == got
        assert said <= set(CONVERSATION_WORDS)
        events = {step for steps in table.values() for step in steps if not step.startswith(("say ", "got "))}
        assert events <= set(EVENTS)


def test_the_old_side_owns_until_the_commit_and_the_new_one_from_it() -> None:
    pair = Pair().run("t:HELLO", "o:OFFER", "o:ITEMS", "t:ACK", "t:TAKEN", "t:READY")
    assert (pair.owner.owns, pair.taker.owns) == (True, False)
    pair.say(OWNER, pair.word(OWNER, "COMMIT")[0])
    assert (pair.owner.owns, pair.taker.owns) == (False, False)
    pair.hear(TAKER)
    assert (pair.owner.owns, pair.taker.owns) == (False, True)


def test_a_late_ready_is_refused() -> None:
    pair = Pair().run("t:HELLO", "o:OFFER", "o:ITEMS", "t:ACK", "t:TAKEN")
    pair.say(TAKER, pair.word(TAKER, "READY")[0])
    pair.run("o!deadline")
    with pytest.raises(ProtocolError):
        pair.hear(OWNER)
    assert pair.owner.state == "ABORTED"
    assert pair.owner.owns


def test_an_abort_that_crosses_the_commit_gives_the_service_back() -> None:
    pair = Pair().run("t:HELLO", "o:OFFER", "o:ITEMS", "t:ACK", "t:TAKEN", "t:READY")
    pair.say(OWNER, pair.word(OWNER, "COMMIT")[0])
    pair.say(TAKER, pair.word(TAKER, "ABORT")[0])
    assert pair.states == ("COMMITTED", "FAILED")
    pair.hear(OWNER)
    pair.owner.happen("unsent")  # the new side does not wait for a confirmation
    assert pair.states == ("TAKEN_BACK", "FAILED")


def test_the_first_states_are_the_first() -> None:
    assert {role: Pair().sessions[role].state for role in (OWNER, TAKER)} == {role: FIRST[role] for role in TABLES}
