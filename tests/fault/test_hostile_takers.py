"""Whoever connects to the path and means no good, or speaks no sense, is refused; the owner serves on and keeps nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdhandoff
from fdhandoff.control import FIRST_WORD_SECONDS, GUESTS_MAX
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import (
    Ack,
    Commit,
    Hello,
    Message,
    Offer,
    Ready,
    Refused,
    Request,
    Response,
    Serving,
    State,
    Taken,
)
from tests.conftest import needs_that
from tests.support.cast import Actor, Cast, only_answers
from tests.support.stranger import HELLO, Stranger

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc")


@pytest.fixture(scope="module")
def owners() -> Iterator[Cast]:
    """One owner for the whole module: it survives everything that is done to it here."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    found = Cast(directory)
    found.owner(extra=3, mode=0o666)
    yield found
    found.close()
    shutil.rmtree(directory)


@pytest.fixture
def owner(owners: Cast) -> Iterator[Actor]:
    actor = owners.actors[0]
    rest = owners.at_rest(actor)
    yield actor
    owners.offers(actor)
    assert only_answers(owners.port) == actor.pid
    assert owners.at_rest(actor) == rest
    assert os.listdir(owners.directory) == ["h.sock"]


def header(magic: bytes = b"FDHO", kind: int = 1, flags: int = 0, n_fds: int = 0, length: int = 0) -> bytes:
    return frames.HEADER.pack(magic, kind, flags, n_fds, length)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak this protocol"),
        (bytes(64), "does not speak this protocol"),
        (header(kind=99), "unknown type 99"),
        (header(flags=128), "unknown flags"),
        (header(length=2**32 - 1), "a payload of 4294967295 bytes"),
        (header(n_fds=65535), "65535 descriptors with Hello; at most 1"),
        (header(n_fds=1), "1 descriptors were sent with Hello, 0 arrived"),
        (header(length=3) + b"abc", "ends inside a field's head"),
        (header(), "lacks min_version"),
        (frames.encode(Ready()), "does not begin with Ready"),
        (frames.encode(Commit()), "does not begin with Commit"),
        (frames.encode(Response(code="ok")), "does not begin with Response"),
        (frames.encode(HELLO) + frames.encode(Ready()), "more came than the first message"),
        (frames.encode(HELLO) + b"F", "more came than the first message"),
        (frames.encode(Hello(min_version=3, max_version=2)), "versions from 3 to 2"),
    ],
)
def test_a_first_word_that_makes_no_sense_is_refused_in_words(
    owners: Cast, owner: Actor, data: bytes, sentence: str
) -> None:
    with Stranger.connected(owners.path) as guest:
        guest.raw(data)
        refused = guest.hear()
        assert isinstance(refused, Refused)
        assert refused.code in ("protocol", "refused")
        assert sentence in refused.reason
        assert guest.at_end()


@pytest.mark.parametrize("n_fds", [2, 5, 253])
def test_more_descriptors_than_are_said_are_closed(owners: Cast, owner: Actor, n_fds: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        with Stranger.connected(owners.path) as guest:
            guest.say(HELLO, [null] * n_fds, n_fds=1)
            refused = guest.hear()
            assert isinstance(refused, Refused)
            assert refused.code == "protocol"
    finally:
        os.close(null)


def test_descriptors_without_a_word_are_closed(owners: Cast, owner: Actor) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        with Stranger.connected(owners.path) as guest:
            guest.raw(frames.encode(HELLO)[:5], [null] * 100)
    finally:
        os.close(null)


@pytest.mark.parametrize("size", [0, 1, 11, 12, 20])
def test_a_guest_that_hangs_up_inside_its_first_word_is_forgotten(owners: Cast, owner: Actor, size: int) -> None:
    with Stranger.connected(owners.path) as guest:
        guest.raw(frames.encode(HELLO)[:size])


def test_a_descriptor_that_is_no_pidfd_proves_nothing(owners: Cast, owner: Actor) -> None:
    """/dev/null is readable at once, as the pidfd of a dead process is."""
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        with Stranger.connected(owners.path) as guest:
            guest.say(HELLO, [null])
            guest.hear_until(Offer)
            guest.raw(b"x" * 12)
        failed = owner.hears("failed")
        assert failed["error"] in ("ProtocolError", "PeerGone")
        assert failed["serving"] == "old"
    finally:
        os.close(null)


def test_an_unknown_version_is_refused_with_both_sides_numbers(owners: Cast, owner: Actor) -> None:
    with Stranger.connected(owners.path) as guest:
        guest.say(Hello(min_version=7, max_version=9))
        refused = guest.hear()
        assert isinstance(refused, Refused)
        assert (refused.code, refused.min_version, refused.max_version) == ("version", 1, 1)
    failed = owner.hears("failed")
    assert (failed["error"], failed["serving"]) == ("VersionMismatch", "old")
    assert "7 to 9" in failed["sentence"]
    assert "1 to 1" in failed["sentence"]


@pytest.mark.parametrize(
    "message",
    [Ready(), Serving(), Taken(items=5), Taken(items=0), Ack(items=10**6), Commit(), State(data=b"x"), HELLO],
    ids=lambda message: type(message).__name__,
)
def test_a_taker_that_breaks_the_order_is_given_up(owners: Cast, owner: Actor, message: Message) -> None:
    with Stranger.connected(owners.path) as guest:
        guest.say(HELLO)
        guest.hear_until(Offer)
        guest.say(message)
        assert guest.at_end()
    failed = owner.hears("failed")
    assert (failed["error"], failed["serving"]) == ("ProtocolError", "old")


def test_a_taker_that_turns_to_nonsense_after_the_offer_is_given_up(owners: Cast, owner: Actor) -> None:
    with Stranger.connected(owners.path) as guest:
        guest.say(HELLO)
        guest.hear_until(Offer)
        guest.raw(b"\0" * 4096)
        assert guest.at_end()
    assert owner.hears("failed")["error"] == "ProtocolError"


def test_one_byte_a_second_keeps_nobody_waiting(owners: Cast, owner: Actor) -> None:
    slow = Stranger.connected(owners.path)
    hello = frames.encode(HELLO)
    began = time.monotonic()
    with slow:
        for at in range(3):
            slow.raw(hello[at : at + 1])
            assert fdhandoff.ask(owners.path, "status", timeout=2)["pid"] == owner.pid  # others are heard meanwhile
        refused = slow.hear()
        assert isinstance(refused, Refused)
        assert refused.code == "silent"
    assert time.monotonic() - began < FIRST_WORD_SECONDS + 3


def test_a_crowd_of_silent_guests_is_told_that_there_is_no_room(owners: Cast, owner: Actor) -> None:
    crowd = [Stranger.connected(owners.path) for _ in range(GUESTS_MAX)]
    try:
        with Stranger.connected(owners.path) as one_more:
            refused = one_more.hear()
            assert isinstance(refused, Refused)
            assert refused.code == "busy"
    finally:
        for guest in crowd:
            guest.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Request(min_version=1, max_version=1, verb="explode"), "unknown-verb"),
        (Request(min_version=1, max_version=1, verb="status", body=b"{"), "malformed"),
        (Request(min_version=1, max_version=1, verb="status", body=b"[1]"), "malformed"),
        (Request(min_version=1, max_version=1, verb="status", body=b"\xff"), "malformed"),
        (Request(min_version=2, max_version=3, verb="status"), "version"),
    ],
    ids=["verb", "json", "array", "bytes", "version"],
)
def test_a_question_that_makes_no_sense_is_answered_so(
    owners: Cast, owner: Actor, request_: Request, code: str
) -> None:
    with Stranger.connected(owners.path) as guest:
        guest.say(request_)
        response = guest.hear()
        assert isinstance(response, Response)
        assert response.code == code
        assert json.loads(response.body)["error"]
        assert guest.at_end()


def test_another_user_is_refused_by_the_kernels_word(owners: Cast, owner: Actor) -> None:
    needs_that(os.geteuid() == 0, "root, to become another user")
    taker = owners.taker(uid=65534)
    failed = taker.hears("failed")
    assert failed["error"] == "PeerRefused"
    assert "uid 65534 is not allowed" in failed["sentence"]
    assert taker.ended() == 3
    taker.close()
    pid = os.fork()
    if not pid:
        os.setuid(65534)
        with Stranger.connected(owners.path) as guest:
            guest.say(HELLO)
            answer = guest.hear()
            os._exit(0 if isinstance(answer, Refused) and answer.code == "untrusted" else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_another_user_takes_over_where_that_is_allowed(cast: Cast) -> None:
    needs_that(os.geteuid() == 0, "root, to become another user")
    directory = Path(tempfile.mkdtemp())
    try:
        directory.chmod(0o755)
        cast.path = str(directory / "h.sock")
        owner = cast.owner(mode=0o666, allow_uids=[65534], extra=700, state=1 << 20)
        taker = cast.taker(uid=65534, soft=1024)
        assert len(taker.hears("taken")["names"]) == 701
        taker.hears("serving")
        assert owner.ended() == 0
        assert only_answers(cast.port) == taker.pid
    finally:
        cast.close()
        cast.actors.clear()
        shutil.rmtree(directory)


def test_a_socket_that_refuses_to_be_read_does_not_block_the_path(owners: Cast, owner: Actor) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.connect(owners.path)
        mute.sendall(frames.encode(Request(min_version=1, max_version=1, verb="status")))
        assert fdhandoff.ask(owners.path, "status", timeout=5)["pid"] == owner.pid
