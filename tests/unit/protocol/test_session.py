"""The counts that both sides must agree on: items, acknowledgements, state, versions."""

from __future__ import annotations

import pytest

from fdhandoff.errors import LocalProtocolError, ProtocolError
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Ack, Commit, Hello, Items, Message, Offer, Ready, State, Taken
from fdhandoff.protocol.session import ITEMS_MAX, STATE_MAX, WINDOW, Session, agree
from fdhandoff.protocol.states import OWNER, TAKER
from tests.support.pair import TAKEN, TAKING, WAITING, Pair, entry


def offer(items: int = 1, state_size: int = 0, version: int = 1) -> Offer:
    return Offer(version=version, generation=2, items=items, state_size=state_size)


def taking(items: int = 1, state_size: int = 0) -> Session:
    session = Session(TAKER)
    session.say(Hello(min_version=1, max_version=1))
    session.feed(frames.encode(offer(items, state_size)))
    return session


def batch(first: int, count: int) -> Items:
    return Items(first=first, entries=[entry(f"l{first + i}") for i in range(count)])


def put(session: Session, message: Message, n_fds: int = 0) -> list[tuple[Message, list[int]]]:
    return session.feed(frames.encode(message, n_fds), list(range(100, 100 + n_fds)))


def test_a_whole_conversation_makes_the_taker_the_owner() -> None:
    pair = Pair(items=3, state=b"").run(*TAKING)
    for _ in range(3):
        pair.run("o:ITEMS", "t:ACK")
    pair.run("t:TAKEN", "t:READY", "o:COMMIT", "t:SERVING", "o:PROGRESS", "o!over", "o:PROGRESS", "o:DRAINED")
    assert pair.states == ("DONE", "COMPLETE")
    assert pair.owner.complete
    assert pair.taker.complete


@pytest.mark.parametrize(
    ("low", "high", "agreed"), [(1, 1, 1), (1, 9, 1), (0, 1, 1), (2, 9, None), (0, 0, None), (5, 3, None)]
)
def test_the_newest_version_that_both_speak_is_agreed(low: int, high: int, agreed: int | None) -> None:
    assert agree(low, high) == agreed


def test_versions_that_end_before_they_begin_are_nonsense() -> None:
    with pytest.raises(ProtocolError, match="versions from 3 to 2"):
        put(Session(OWNER), Hello(min_version=3, max_version=2))


@pytest.mark.parametrize(
    "message",
    [offer(items=ITEMS_MAX + 1), offer(state_size=STATE_MAX + 1), offer(version=2), offer(version=0)],
)
def test_an_offer_beyond_the_limits_is_refused(message: Offer) -> None:
    session = Session(TAKER)
    session.say(Hello(min_version=1, max_version=1))
    with pytest.raises(ProtocolError):
        put(session, message)


def test_the_window_holds_back_what_is_not_acknowledged() -> None:
    session = Session(OWNER)
    put(session, Hello(min_version=1, max_version=1))
    session.say(offer(items=1000))
    session.say(batch(0, 252), 252)
    session.say(batch(252, 252), 252)
    assert session.window_left == WINDOW - 504 == 0
    with pytest.raises(LocalProtocolError, match="window"):
        session.say(batch(504, 1), 1)
    put(session, Ack(items=100))
    assert session.window_left == 100
    session.say(batch(504, 100), 100)


@pytest.mark.parametrize("acknowledged", [0, 1])
def test_more_acknowledged_than_sent_or_less_than_before_is_nonsense(acknowledged: int) -> None:
    pair = Pair(items=3).run(*TAKING, "o:ITEMS", "o:ITEMS")
    put(pair.owner, Ack(items=2))
    with pytest.raises(ProtocolError, match="acknowledged"):
        put(pair.owner, Ack(items=3 if acknowledged else 1))


def test_entries_and_descriptors_must_be_as_many() -> None:
    pair = Pair().run(*TAKING)
    for entries, n_fds in (([entry()], 0), ([entry(), entry("b")], 1), ([], 0)):
        with pytest.raises(LocalProtocolError):
            pair.owner.say(Items(first=0, entries=entries), n_fds)
    with pytest.raises(ProtocolError, match="1 entries with 2 descriptors"):
        pair.taker.feed(frames.encode(batch(0, 1), 2), [5, 6])
    assert pair.taker.pending_fds == [5, 6]


@pytest.mark.parametrize("first", [1, 7, 2**64 - 1])
def test_items_come_in_order(first: int) -> None:
    pair = Pair(items=2).run(*TAKING)
    with pytest.raises(LocalProtocolError):
        pair.owner.say(batch(first, 1), 1)
    with pytest.raises(ProtocolError, match="expected 0"):
        put(pair.taker, batch(first, 1), 1)


def test_more_items_than_offered_are_nonsense() -> None:
    session = taking(items=1)
    with pytest.raises(ProtocolError, match="2 items of 1"):
        put(session, batch(0, 2), 2)


def test_more_state_than_offered_is_nonsense() -> None:
    session = taking(state_size=3)
    put(session, State(data=b"ab"))
    assert not session.complete
    with pytest.raises(ProtocolError, match="4 bytes of state"):
        put(session, State(data=b"cd"))


def test_taken_is_said_when_everything_came() -> None:
    session = taking(items=1, state_size=1)
    put(session, batch(0, 1), 1)
    with pytest.raises(LocalProtocolError, match="not everything"):
        session.say(Taken(items=1))
    put(session, State(data=b"x"))
    session.say(Taken(items=1))
    assert session.state == "TAKEN"


def test_taken_without_acknowledgement_is_nonsense() -> None:
    pair = Pair().run(*TAKING, "o:ITEMS")
    with pytest.raises(ProtocolError, match="not all acknowledged"):
        put(pair.owner, Taken(items=1))


def test_taken_of_another_number_is_nonsense() -> None:
    pair = Pair().run(*TAKING, "o:ITEMS", "t:ACK")
    with pytest.raises(ProtocolError, match="2 items taken of 1"):
        put(pair.owner, Taken(items=2))


def test_the_final_state_replaces_the_offered_one() -> None:
    pair = Pair(items=1, state=b"offered").run(*TAKING, "o:ITEMS", "t:ACK", "o:STATE", "t:TAKEN")
    assert pair.taker.take_state() == b"offered"
    pair.run("t:READY")
    pair.tell(OWNER, State(data=b"fi"))
    pair.tell(OWNER, State(data=b"nal"))
    pair.tell(OWNER, Commit(final=1, state_size=5))
    assert pair.taker.state == "OWNING"
    assert pair.taker.final_state
    assert pair.taker.take_state() == b"final"


def test_an_empty_final_state_is_told_from_none() -> None:
    for commit, final in ((Commit(final=1, state_size=0), True), (Commit(), False)):
        pair = Pair().run(*WAITING)
        pair.tell(OWNER, commit)
        assert pair.taker.final_state is final


@pytest.mark.parametrize("commit", [Commit(final=1, state_size=3), Commit(final=0, state_size=2)])
def test_a_final_state_of_another_size_is_nonsense(commit: Commit) -> None:
    pair = Pair().run(*WAITING)
    pair.tell(OWNER, State(data=b"ab"))
    with pytest.raises(ProtocolError, match="final state"):
        put(pair.taker, commit)


def test_nonsense_behind_a_message_keeps_no_descriptor_of_it() -> None:
    session = taking(items=2)
    good = frames.encode(batch(0, 1), 1)
    with pytest.raises(ProtocolError):
        session.feed(good + b"nonsense....", [100])
    assert session.pending_fds == [100]


def test_decoding_alone_changes_no_state() -> None:
    session = Session(OWNER)
    data = frames.encode(Hello(min_version=1, max_version=1))
    messages = list(session.decode(data))
    assert session.state == "AWAITING"
    session.receive(messages[0][0])
    assert session.state == "GREETED"


def test_many_words_in_one_piece_are_as_good_as_one_by_one() -> None:
    pair = Pair().run(*TAKEN)
    pair.taker.say(Ready())
    taken_again = frames.encode(Ready())
    assert [type(message) for message, _ in pair.owner.feed(taken_again)] == [Ready]
    owner = Session(OWNER)
    assert len(owner.feed(frames.encode(Hello(min_version=1, max_version=1)))) == 1
    owner.say(offer(items=0))
    both = owner.feed(frames.encode(Taken(items=0)) + frames.encode(Ready()))
    assert [type(message) for message, _ in both] == [Taken, Ready]
    assert owner.state == "CLOSING"
