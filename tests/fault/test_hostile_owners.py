"""Whoever answers at the path and gives something else than it says: the taker keeps nothing and says what was wrong."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import fdhandoff
from fdhandoff.conversation import Conversation
from fdhandoff.inventory import entry_of
from fdhandoff.listener import KIND_CONTROL, KIND_FILE, Entry
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Abort, Commit, Items, Message, Offer, Progress, Ready, Refused, State, Taken
from fdhandoff.system.paths import PATH_MAX
from tests.support.stranger import FakeOwner, Stranger


def offer(items: int = 1, state_size: int = 0, version: int = 1) -> Offer:
    return Offer(version=version, generation=2, items=items, state_size=state_size)


@pytest.fixture
def listener() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def receive_from(tmp_path: Path, play: Callable[[Stranger], object], **options: object) -> fdhandoff.Takeover:
    path = str(tmp_path / "h.sock")
    with FakeOwner(path, play):
        return fdhandoff.receive(path, timeout=5, **options)


def saying(*said: Message | bytes | tuple[Message, list[int]]) -> Callable[[Stranger], object]:
    """An owner that hears the greeting, says all this, and waits for the end; what it heard last must be an abort."""

    def play(stranger: Stranger) -> None:
        stranger.hear()
        for one in said:
            if isinstance(one, bytes):
                stranger.raw(one)
            elif isinstance(one, tuple):
                stranger.say(*one)
            else:
                stranger.say(one)
        stranger.at_end()

    return play


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        frames.HEADER.pack(b"FDHO", 2, 0, 0, 2**32 - 1),
        frames.encode(offer(version=2)),
        frames.encode(offer(items=10**7)),
        frames.encode(offer(state_size=2**40)),
        frames.encode(Ready()),
        frames.encode(Commit()),
        frames.encode(offer()) + frames.encode(State(data=b"not offered")),
        frames.encode(offer()) + frames.encode(Commit()),
        frames.encode(offer()) + frames.encode(Progress(active=1)),
        frames.encode(offer()) + frames.encode(Items(first=1, entries=[])),
    ],
)
def test_an_owner_that_breaks_the_rules_is_left_with_a_protocol_error(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(fdhandoff.ProtocolError):
        receive_from(tmp_path, saying(said))


def _wrong(entry: Entry, **values: object) -> Entry:
    for name, value in values.items():
        setattr(entry, name, value)
    return entry


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"family": socket.AF_INET6}, "family"),
        ({"type": socket.SOCK_DGRAM}, "type"),
        ({"listening": False}, "listening"),
        ({"v6only": True}, "v6only"),
        ({"cookie": 12345}, "cookie"),
        ({"address": "127.0.0.1:1"}, "address"),
        ({"kind": KIND_FILE, "cookie": 12345}, "cookie"),
        ({"kind": KIND_FILE, "mode": 0o100600}, "mode"),
    ],
)
def test_a_listener_that_is_not_what_the_offer_says(
    tmp_path: Path, listener: socket.socket, values: dict[str, object], field: str
) -> None:
    entry = _wrong(entry_of("http", listener.fileno()), **values)
    heard: list[Message | None] = []

    def play(stranger: Stranger) -> None:
        stranger.hear()
        stranger.say(offer())
        stranger.say(Items(first=0, entries=[entry]), [listener.fileno()])
        heard.append(stranger.hear())
        stranger.at_end()

    with pytest.raises((fdhandoff.ListenerMismatch, fdhandoff.ProtocolError)) as caught:
        receive_from(tmp_path, play)
    assert field in str(caught.value)
    assert isinstance(heard[0], Abort)
    assert heard[0].code in ("mismatch", "protocol")


def test_a_file_where_a_listener_was_offered(tmp_path: Path, listener: socket.socket) -> None:
    entry = entry_of("http", listener.fileno())
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(fdhandoff.ListenerMismatch, match=r"http.*something else"):
            receive_from(tmp_path, saying(offer(), (Items(first=0, entries=[entry]), [null])))
    finally:
        os.close(null)


def test_another_file_than_was_offered(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as a, (tmp_path / "b").open("w") as b:
        entry = entry_of("log", a.fileno())
        with pytest.raises(fdhandoff.ListenerMismatch, match="inode"):
            receive_from(tmp_path, saying(offer(), (Items(first=0, entries=[entry]), [b.fileno()])))


@pytest.mark.parametrize("kind", [0, 6, 77, 2**63])
def test_an_item_of_an_unknown_kind(tmp_path: Path, listener: socket.socket, kind: int) -> None:
    entry = _wrong(entry_of("http", listener.fileno()), kind=kind)
    with pytest.raises((fdhandoff.ProtocolError, fdhandoff.ListenerMismatch)):
        receive_from(tmp_path, saying(offer(), (Items(first=0, entries=[entry]), [listener.fileno()])))


def test_two_control_sockets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(tmp_path / "c"))
        control.listen()
        entry = entry_of("c", control.fileno(), KIND_CONTROL)
        with pytest.raises(fdhandoff.ProtocolError, match="came twice"):
            receive_from(tmp_path, saying(offer(2), (Items(first=0, entries=[entry, entry]), [control.fileno()] * 2)))


@pytest.mark.parametrize("n_fds", [0, 1, 3, 253])
def test_another_number_of_descriptors_than_the_header_says(
    tmp_path: Path, listener: socket.socket, n_fds: int
) -> None:
    entry = entry_of("http", listener.fileno())

    def play(stranger: Stranger) -> None:
        stranger.hear()
        stranger.say(offer(2))
        stranger.say(Items(first=0, entries=[entry, entry]), [listener.fileno()] * n_fds, n_fds=2)
        stranger.at_end()

    with pytest.raises(fdhandoff.ProtocolError):
        receive_from(tmp_path, play)


def test_a_listener_that_is_wanted_and_not_offered(tmp_path: Path, listener: socket.socket) -> None:
    entry = entry_of("http", listener.fileno())
    with pytest.raises(fdhandoff.ListenerMissing, match=r"https.*offers http"):
        receive_from(
            tmp_path, saying(offer(), (Items(first=0, entries=[entry]), [listener.fileno()])), require=["https"]
        )


def test_an_owner_that_hangs_up_after_the_offer(tmp_path: Path) -> None:
    def play(stranger: Stranger) -> None:
        stranger.hear()
        stranger.say(offer())

    with pytest.raises(fdhandoff.PeerGone):
        receive_from(tmp_path, play)


def test_an_owner_that_lives_and_hangs_up_after_ready_keeps_the_service(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation.prove, "__defaults__", (0.1,))
    path = str(tmp_path / "h.sock")
    entry = entry_of("http", listener.fileno())
    own = os.pidfd_open(os.getpid())

    def play(stranger: Stranger) -> None:
        stranger.hear()
        stranger.say(offer(), [own])
        stranger.say(Items(first=0, entries=[entry]), [listener.fileno()])
        stranger.hear_until(Taken)
        stranger.hear_until(Ready)

    try:
        with FakeOwner(path, play):
            takeover = fdhandoff.receive(path, timeout=5)
            with pytest.raises(fdhandoff.PeerGone) as caught:
                takeover.ready(5)
            assert caught.value.serving == "old"
            assert not takeover.orphaned
    finally:
        os.close(own)


def test_a_descriptor_that_is_no_pidfd_proves_no_owners_death(tmp_path: Path, listener: socket.socket) -> None:
    """/dev/null is readable at once, as the pidfd of a dead process is: believed, it would make two owners."""
    entry = entry_of("http", listener.fileno())
    null = os.open("/dev/null", os.O_RDONLY)

    def play(stranger: Stranger) -> None:
        stranger.hear()
        stranger.say(offer(), [null])
        stranger.say(Items(first=0, entries=[entry]), [listener.fileno()])
        stranger.at_end()

    try:
        with pytest.raises(fdhandoff.ProtocolError, match="pidfd"):
            receive_from(tmp_path, play)
    finally:
        os.close(null)


def test_nonsense_behind_the_commit_does_not_undo_it(tmp_path: Path, listener: socket.socket) -> None:
    path = str(tmp_path / "h.sock")
    entry = entry_of("http", listener.fileno())
    own = os.pidfd_open(os.getpid())
    over = threading.Event()

    def play(stranger: Stranger) -> None:
        stranger.hear()
        stranger.say(offer(), [own])
        stranger.say(Items(first=0, entries=[entry]), [listener.fileno()])
        stranger.hear_until(Ready)
        stranger.raw(frames.encode(Commit()) + b"nonsense that is long enough")
        over.wait(10)

    try:
        with FakeOwner(path, play):
            takeover = fdhandoff.receive(path, timeout=5)
            takeover.ready(5)
            assert takeover.wait_old(0.05) is False
            over.set()
            takeover.listeners.close()
            takeover.close()
    finally:
        over.set()
        os.close(own)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("in-progress", fdhandoff.InProgress),
        ("version", fdhandoff.VersionMismatch),
        ("untrusted", fdhandoff.PeerRefused),
        ("busy", fdhandoff.PeerRefused),
        ("a-later-code", fdhandoff.PeerRefused),
    ],
)
def test_each_refusal_has_its_error(tmp_path: Path, code: str, error: type[fdhandoff.PeerRefused]) -> None:
    with pytest.raises(error) as caught:
        receive_from(tmp_path, saying(Refused(code=code, reason="because", pid=42)))
    assert caught.value.code == code
    assert "pid 42" in str(caught.value)
    assert caught.value.serving == "old"


# --- paths --------------------------------------------------------------------------------------------------


def _places(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    return {
        "a regular file": str(tmp_path / "file"),
        "a directory": str(tmp_path / "directory"),
        "holds": str(tmp_path / ("x" * PATH_MAX)),
        "no directory": str(tmp_path / "nowhere" / "h.sock"),
    }


@pytest.mark.parametrize("what", ["a regular file", "a directory", "holds", "no directory"])
def test_a_path_that_cannot_be_one_is_refused_to_both_sides(tmp_path: Path, listener: socket.socket, what: str) -> None:
    path = _places(tmp_path)[what]
    with pytest.raises(fdhandoff.PathError, match=what):
        fdhandoff.send(path, [listener], timeout=0)
    if what == "no directory":
        with pytest.raises(fdhandoff.DeadlineExceeded):
            fdhandoff.receive(path, timeout=0)
    else:
        with pytest.raises(fdhandoff.PathError, match=what):
            fdhandoff.receive(path, timeout=0)
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_a_stale_path_has_nobody_to_take_from(tmp_path: Path) -> None:
    path = str(tmp_path / "h.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    with pytest.raises(fdhandoff.DeadlineExceeded, match="its owner has ended"):
        fdhandoff.receive(path, timeout=0.05)
    with pytest.raises(fdhandoff.PathError, match="the socket is stale") as caught:
        fdhandoff.ask(path, "status")
    assert caught.value.serving == "nobody"


def test_a_path_that_another_process_answers_is_in_use(tmp_path: Path, listener: socket.socket) -> None:
    path = str(tmp_path / "h.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(fdhandoff.PathInUse, match=f"pid {os.getpid()}"):
            fdhandoff.send(path, [listener], timeout=0)


def test_a_datagram_socket_at_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "h.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(fdhandoff.PathError, match="no stream socket"):
            fdhandoff.receive(path, timeout=0.05)
