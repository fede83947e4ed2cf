"""A session joined to a real channel: what is heard, in which order, and what is known of the peer's end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from fdhandoff.conversation import Conversation, Gone
from fdhandoff.deadline import after
from fdhandoff.errors import DeadlineExceeded, ProtocolError
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Abort, Hello, Offer, Ready, Taken
from fdhandoff.protocol.session import Session
from fdhandoff.protocol.states import OWNER
from fdhandoff.system.channel import Channel, Woken
from fdhandoff.system.process import Peer, Process
from fdhandoff.system.wake import Wake
from tests.support.stranger import HELLO, Stranger


@pytest.fixture
def pair() -> Iterator[tuple[Conversation, Stranger]]:
    ours, theirs = socket.socketpair()
    conversation = Conversation(Session(OWNER), Channel(ours), Peer(os.getpid(), 0, 0))
    with Stranger(theirs) as stranger:
        yield conversation, stranger
    conversation.close()


def greeted(conversation: Conversation, stranger: Stranger) -> None:
    stranger.say(HELLO)
    assert isinstance(conversation.hear(after(5))[0], Hello)
    conversation.say(Offer(version=1, generation=2, items=0, state_size=0))


def test_the_state_changes_when_a_word_is_heard_however_many_came(pair: tuple[Conversation, Stranger]) -> None:
    conversation, stranger = pair
    greeted(conversation, stranger)
    stranger.raw(frames.encode(Taken(items=0)) + frames.encode(Ready()) + frames.encode(Abort()))
    seen = []
    for _ in range(3):
        message, _ = conversation.hear(after(5))
        seen.append((type(message).__name__, conversation.session.state))
    assert seen == [("Taken", "OFFERED"), ("Ready", "CLOSING"), ("Abort", "ABORTED")]


def test_what_was_said_before_nonsense_is_heard_first(pair: tuple[Conversation, Stranger]) -> None:
    conversation, stranger = pair
    greeted(conversation, stranger)
    stranger.raw(frames.encode(Taken(items=0)) + b"nonsense, and a lot of it")
    conversation.hear(after(5))
    with pytest.raises(ProtocolError):
        conversation.check()
    with pytest.raises(ProtocolError):
        conversation.hear(after(5))
    conversation.deafen()
    with pytest.raises(DeadlineExceeded):
        conversation.hear(after(0.02))


def test_what_was_said_before_the_end_is_heard_first(pair: tuple[Conversation, Stranger]) -> None:
    conversation, stranger = pair
    stranger.say(HELLO)
    stranger.close()
    conversation.hear(after(5))
    with pytest.raises(Gone) as caught:
        conversation.hear(after(5))
    assert not caught.value.proved
    assert not conversation.prove(0.02)


def test_a_death_is_proved_after_the_last_word(pair: tuple[Conversation, Stranger]) -> None:
    conversation, stranger = pair
    pid = os.fork()
    if not pid:
        stranger.say(HELLO)
        os._exit(0)
    conversation.process = Process.from_pid(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert isinstance(conversation.hear(after(5))[0], Hello)
    with pytest.raises(Gone) as caught:  # the stranger here holds the channel open
        conversation.hear(after(5))
    assert caught.value.proved
    assert conversation.dead
    os.waitpid(pid, 0)


def test_a_wake_ends_a_wait(pair: tuple[Conversation, Stranger]) -> None:
    conversation, _ = pair
    wake = Wake()
    conversation.wake_fd = wake.fileno()
    wake.set()
    with pytest.raises(Woken):
        conversation.hear(after(5))
    wake.close()


def test_descriptors_that_nobody_took_are_closed_with_it(pair: tuple[Conversation, Stranger]) -> None:
    conversation, stranger = pair
    null = os.open("/dev/null", os.O_RDONLY)
    stranger.say(HELLO, [null])
    stranger.raw(frames.encode(Taken(items=0))[:7], [null, null])
    os.close(null)
    assert conversation.poll()  # decoded, and never heard
    conversation.close()


def test_an_abort_is_said_only_where_the_table_has_one(pair: tuple[Conversation, Stranger]) -> None:
    conversation, stranger = pair
    greeted(conversation, stranger)
    stranger.hear()
    conversation.abort("deadline", "too slow")
    conversation.abort("deadline", "again")
    heard = stranger.hear()
    assert isinstance(heard, Abort)
    assert (heard.code, heard.reason) == ("deadline", "too slow")
    conversation.close()
    assert stranger.hear() is None
