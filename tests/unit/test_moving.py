"""Connections that move: exactly one side has each of them, whatever happens to the other."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff import moving
from fdhandoff.errors import PathError, PeerUntrusted, SystemCallError
from fdhandoff.heir import heir_of, make_directory, name_heir, open_to, receptions_of, remove_directory, slots_of
from fdhandoff.inventory import entry_of
from fdhandoff.listener import KIND_CONNECTION, Connection
from fdhandoff.moving import BATCH, Reception, give, give_to_heir
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Ack, Hello, Items
from fdhandoff.protocol.states import EVENTS, FIRST, GIVER, MOVING, RECEIVER, is_final
from fdhandoff.system.channel import Channel
from fdhandoff.system.fds import close_all
from tests.support.forked import Forked

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 20.0
OTHER = {GIVER: RECEIVER, RECEIVER: GIVER}


class Clients:
    """``count`` TCP connections, both ends."""

    def __init__(self, count: int) -> None:
        self.near: list[socket.socket] = []
        self.far: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0), backlog=count) as listener:
            for _ in range(count):
                self.far.append(socket.create_connection(listener.getsockname()))
                self.near.append(listener.accept()[0])

    def connections(self, state: bytes = b"") -> list[Connection]:
        return [Connection(f"c{i}", sock, state + str(i).encode()) for i, sock in enumerate(self.near)]

    def let_go(self, count: int) -> None:
        """What was given is closed here."""
        for sock in self.near[:count]:
            sock.close()

    def close(self) -> None:
        for sock in (*self.near, *self.far):
            sock.close()


@pytest.fixture
def clients() -> Iterator[Any]:
    made: list[Clients] = []

    def make(count: int) -> Clients:
        made.append(Clients(count))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Taken:
    """What a reception passed on."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._changed = threading.Condition()

    def __call__(self, connections: list[Connection]) -> None:
        with self._changed:
            self.connections += connections
            self._changed.notify_all()

    def await_count(self, count: int) -> list[Connection]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.connections) >= count, DEADLINE)
        return self.connections

    def close(self) -> None:
        for connection in self.connections:
            connection.target.close()


@pytest.fixture
def taken() -> Iterator[Taken]:
    book = Taken()
    yield book
    book.close()


def answer(connection: Connection, far: socket.socket, word: bytes) -> None:
    """Client and server talk on it."""
    far.sendall(word)
    connection.target.settimeout(DEADLINE)
    assert connection.target.recv(100) == word
    connection.target.sendall(word.upper())
    far.settimeout(DEADLINE)
    assert far.recv(100) == word.upper()


# --- the table --------------------------------------------------------------------------------------------------


def test_what_one_side_says_the_other_can_get_and_every_state_has_an_end() -> None:
    for role, table in MOVING.items():
        said = {step[4:] for steps in table.values() for step in steps if step.startswith("say ")}
        got = {step[4:] for steps in MOVING[OTHER[role]].values() for step in steps if step.startswith("got ")}
        assert said == got
        assert FIRST[role] in table
        for state, steps in table.items():
            assert set(steps.values()) <= set(table)
            assert is_final(role, state) or {"eof", "death", "deadline", "bad"} <= set(steps) & set(EVENTS)


# --- the way it goes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 1000])
def test_connections_arrive_in_order_with_their_state_and_their_clients_do_not_notice(
    tmp_path: Path, clients: Any, taken: Taken, count: int
) -> None:
    group = clients(count)
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    try:
        group.far[0].sendall(b"already ")  # on the wire while it moves
        assert give(reception.path, group.connections(b"state ")) == count
        group.let_go(count)
        arrived = taken.await_count(count)
        assert [one.state for one in arrived] == [f"state {i}".encode() for i in range(count)]
        arrived[0].target.settimeout(DEADLINE)
        assert arrived[0].target.recv(100) == b"already "
        for index in {0, count // 2, count - 1}:
            answer(arrived[index], group.far[index], b"hello")
        assert all(not os.get_inheritable(one.target.fileno()) for one in arrived)
    finally:
        reception.close()


def test_a_connection_with_a_large_state_moves(tmp_path: Path, clients: Any, taken: Taken) -> None:
    group = clients(3)
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    state = os.urandom(Connection.STATE_MAX)
    try:
        assert give(reception.path, [Connection("big", sock, state) for sock in group.near]) == 3
        assert [one.state for one in taken.await_count(3)] == [state] * 3
    finally:
        reception.close()


def test_a_client_that_hung_up_on_the_way_harms_no_other(tmp_path: Path, clients: Any, taken: Taken) -> None:
    group = clients(3)
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    try:
        group.far[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        group.far[1].close()  # by a reset
        assert give(reception.path, group.connections()) == 3
        arrived = taken.await_count(3)
        with pytest.raises(ConnectionResetError):
            arrived[1].target.recv(100)
        answer(arrived[2], group.far[2], b"still here")
    finally:
        reception.close()


def test_several_give_at_once(tmp_path: Path, clients: Any, taken: Taken) -> None:
    groups = [clients(100) for _ in range(4)]
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    given: list[int] = []
    threads = [
        threading.Thread(target=lambda group=group: given.append(give(reception.path, group.connections())))
        for group in groups
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert given == [100] * 4
        assert len(taken.await_count(400)) == 400
    finally:
        reception.close()


# --- the ways it goes wrong -------------------------------------------------------------------------------------


def test_where_nobody_receives_everything_stays(tmp_path: Path, clients: Any) -> None:
    group = clients(2)
    assert give(str(tmp_path / "none.sock"), group.connections()) == 0
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert give(str(tmp_path / "dead.sock"), group.connections()) == 0


def test_a_reception_that_is_closed_takes_nothing_and_leaves_no_path(
    tmp_path: Path, clients: Any, taken: Taken
) -> None:
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    reception.close()
    assert give(reception.path, clients(2).connections()) == 0
    assert os.listdir(tmp_path / "moving") == []


class Dummy:
    """A receiver, or a giver, that does what a test wants."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock)
        self.decoder = frames.Decoder()

    def hear(self) -> tuple[Any, list[int]]:
        give_up = time.monotonic() + DEADLINE
        while time.monotonic() < give_up:
            for heard in self.decoder.messages():
                return heard
            arrived = self.channel.receive()
            if arrived is None:
                time.sleep(0.001)
            elif not arrived[0]:
                raise EOFError
            else:
                self.decoder.feed(*arrived)
        raise TimeoutError

    def say(self, message: Any, fds: Any = ()) -> None:
        self.channel.send([(frames.encode(message, len(fds)), len(fds))], fds)


def receiver(path: Path, behaviour: Any) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener, listener.accept()[0] as sock:
            behaviour(Dummy(sock))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_what_was_acknowledged_before_the_end_is_gone_and_the_rest_stays(
    tmp_path: Path, clients: Any, batches: int
) -> None:
    def behaviour(dummy: Dummy) -> None:
        assert isinstance(dummy.hear()[0], Hello)
        dummy.say(Ack(items=0))
        for number in range(batches):
            _, fds = dummy.hear()
            close_all(fds)
            dummy.say(Ack(items=(number + 1) * BATCH))

    thread = receiver(tmp_path / "r.sock", behaviour)
    assert give(str(tmp_path / "r.sock"), clients(BATCH * 5).connections()) == batches * BATCH
    thread.join(DEADLINE)


def test_one_that_is_silent_has_taken_nothing_and_can_acknowledge_nothing_later(tmp_path: Path, clients: Any) -> None:
    late: list[BaseException] = []
    given_up = threading.Event()

    def behaviour(dummy: Dummy) -> None:
        dummy.hear()
        dummy.say(Ack(items=0))
        _, fds = dummy.hear()
        given_up.wait(DEADLINE)
        try:
            dummy.say(Ack(items=len(fds)))
        except Exception as error:
            late.append(error)
        close_all(fds)

    thread = receiver(tmp_path / "r.sock", behaviour)
    group = clients(3)
    assert give(str(tmp_path / "r.sock"), group.connections(), timeout=0.2) == 0
    given_up.set()
    thread.join(DEADLINE)
    assert len(late) == 1, "it must learn that they are not its own"
    answer(Connection("c", group.near[0]), group.far[0], b"ours")


@pytest.mark.parametrize(
    "nonsense", [b"\0" * 100, frames.encode(Ack(items=9999)), frames.encode(Hello(min_version=1, max_version=1))]
)
def test_nonsense_ends_it_and_everything_stays(tmp_path: Path, clients: Any, nonsense: bytes) -> None:
    def behaviour(dummy: Dummy) -> None:
        dummy.hear()
        dummy.channel.send([(nonsense, 0)])
        with contextlib.suppress(EOFError):
            while True:
                close_all(dummy.hear()[1])

    thread = receiver(tmp_path / "r.sock", behaviour)
    assert give(str(tmp_path / "r.sock"), clients(3).connections(), timeout=5) == 0
    thread.join(DEADLINE)


def test_an_unknown_version_is_refused_with_both_numbers(tmp_path: Path, taken: Taken) -> None:
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(reception.path)
            dummy = Dummy(sock)
            dummy.say(Hello(min_version=98, max_version=99))
            refused, _ = dummy.hear()
            assert (refused.code, refused.reason) == ("version", "versions 1 to 1 are spoken here")
    finally:
        reception.close()


def _one_by_one(connections: list[Connection]) -> Any:
    return [entry_of(one.name, one.fileno(), KIND_CONNECTION, one.state) for one in connections]


def _at_once(connections: list[Connection]) -> Any:
    return moving._described(*next(iter(moving._batches(connections))))[0]


@pytest.mark.parametrize("described", [_one_by_one, _at_once])
def test_what_is_not_what_it_was_said_to_be_is_closed_and_told(
    tmp_path: Path, clients: Any, taken: Taken, described: Any
) -> None:
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    group = clients(2)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(reception.path)
            dummy = Dummy(sock)
            dummy.say(Hello(min_version=1, max_version=1))
            assert dummy.hear()[0].items == 0
            dummy.say(
                Items(first=0, entries=described(group.connections())), [group.near[1].fileno(), group.near[0].fileno()]
            )
            abort, _ = dummy.hear()
            assert abort.code == "mismatch"
        assert taken.connections == []
    finally:
        reception.close()


def test_what_can_not_be_described_in_a_batch_moves_all_the_same(tmp_path: Path, clients: Any, taken: Taken) -> None:
    """A bare descriptor, beside sockets with names and states of their own, one of them with neither peer name nor port."""
    reception = Reception(str(tmp_path / "moving"), 2, taken)
    group = clients(3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            mixed = [*group.connections(b"state "), Connection("unix", ours)]
            assert moving.pack(mixed, [one.state for one in mixed]) is not None
            assert give(reception.path, mixed) == 4
            assert give(reception.path, [Connection("bare", group.near[0].fileno(), b"bytes"), *mixed[1:]]) == 4
            came = taken.await_count(8)
            assert [one.name for one in came] == ["c0", "c1", "c2", "unix", "bare", "c1", "c2", "unix"]
            assert [one.state for one in came[:5]] == [b"state 0", b"state 1", b"state 2", b"", b"bytes"]
            assert [one.target.family for one in came[2:4]] == [socket.AF_INET, socket.AF_UNIX]
            for connection, far in zip(came, [*group.far, theirs, group.far[0]], strict=False):
                answer(connection, far, b"hello")
        finally:
            reception.close()


def test_an_application_that_fails_to_take_is_seen(
    tmp_path: Path, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    done = threading.Event()

    def hook(*what: Any) -> None:
        seen.append(what)
        done.set()

    def take(connections: list[Connection]) -> None:
        moving._close(connections)
        raise RuntimeError("no room")

    monkeypatch.setattr(sys, "excepthook", hook)
    reception = Reception(str(tmp_path / "moving"), 2, take)
    try:
        give(reception.path, clients(1).connections())
        assert done.wait(DEADLINE)
        assert "no room" in str(seen[0][1])
    finally:
        reception.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_receiver_that_is_killed_or_stopped_half_way_leaves_no_connection_without_an_owner(
    tmp_path: Path, clients: Any, number: int
) -> None:
    """Killed in the middle of the third batch: what it had acknowledged dies with it, everything else is still served here."""
    directory = str(tmp_path / "moving")
    go, ready = os.pipe(), os.pipe()

    def child() -> None:
        count = 0

        def take(connections: list[Connection]) -> None:
            nonlocal count
            count += 1
            if count == 3:
                os.kill(os.getpid(), number)
                threading.Event().wait()  # it may reach another thread first

        Reception(directory, 2, take)
        os.write(ready[1], b"x")
        os.read(go[0], 1)

    group = clients(BATCH * 6)
    process = Forked(child)
    try:
        os.read(ready[0], 1)
        (path,) = receptions_of(directory, 2)
        given = give(path, group.connections(), timeout=3)
        assert 3 * BATCH <= given < 6 * BATCH
        assert given % BATCH == 0
    finally:
        process.end()
    for fd in (*go, *ready):
        os.close(fd)
    for index in (given, len(group.near) - 1):
        answer(Connection("c", group.near[index]), group.far[index], b"ours")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_is_given_nothing(tmp_path: Path, clients: Any) -> None:
    directory = tmp_path / "moving"
    ready, go = os.pipe(), os.pipe()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)

    def child() -> None:
        os.mkdir(directory, 0o755)
        os.chown(directory, 1234, 1234)
        os.setresuid(1234, 1234, 1234)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(directory / "2-1.sock"))
            sock.listen()
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    process = Forked(child)
    try:
        os.read(ready[0], 1)
        with pytest.raises(PeerUntrusted, match="uid 1234 would take our connections"):
            give(str(directory / "2-1.sock"), clients(1).connections())
    finally:
        process.end()
    for fd in (*go, *ready):
        os.close(fd)


# --- the heir ---------------------------------------------------------------------------------------------------


def test_jobs_are_counted_where_their_user_may_write(tmp_path: Path) -> None:
    assert slots_of("") == ""
    directory = str(tmp_path / "h.sock.connections")
    assert slots_of(directory) == str(tmp_path / "h.sock.jobs")
    open_to(directory, os.geteuid())
    place = slots_of(directory)
    assert place == f"{directory}/doors/jobs"
    Path(place).touch()
    remove_directory(directory)
    assert not os.path.exists(directory)


def test_connections_go_to_the_processes_of_the_generation_that_serves(
    tmp_path: Path, clients: Any, taken: Taken
) -> None:
    directory = str(tmp_path / "moving")
    group = clients(10)
    assert heir_of(directory) == 0
    assert len(give_to_heir(directory, group.connections(), generation=1)) == 10
    name_heir(directory, 2)
    assert heir_of(directory) == 2
    assert len(give_to_heir(directory, group.connections(), generation=1)) == 10, "it has no reception yet"
    reception = Reception(directory, 2, taken)
    try:
        assert len(give_to_heir(directory, group.connections(), generation=2)) == 10, "not to ourselves"
        assert give_to_heir(directory, group.connections(), generation=1) == []
        assert len(taken.await_count(10)) == 10
    finally:
        reception.close()


def test_a_dead_process_of_the_heir_is_passed_over(tmp_path: Path, clients: Any, taken: Taken) -> None:
    directory = str(tmp_path / "moving")
    name_heir(directory, 2)
    reception = Reception(directory, 2, taken)
    try:
        for pid in ("1", "9999999"):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(os.path.join(directory, f"2-{pid}.sock"))
        assert give_to_heir(directory, clients(9).connections(), generation=1) == []
        assert len(taken.await_count(9)) == 9
    finally:
        reception.close()


def test_what_one_process_has_taken_is_known_whatever_goes_wrong_with_the_next(
    tmp_path: Path, clients: Any, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(tmp_path / "moving")
    name_heir(directory, 2)
    reception = Reception(directory, 2, taken)
    connect = moving.connect_control
    good = receptions_of(directory, 2)[0]

    def out_of_descriptors(path: str, *arguments: Any) -> Any:
        if path != good:
            raise OSError(errno.EMFILE, "Too many open files")
        return connect(path, *arguments)

    monkeypatch.setattr(moving, "connect_control", out_of_descriptors)
    try:
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(os.path.join(directory, "2-9999999.sock"))
            assert give_to_heir(directory, clients(9).connections(), generation=1) == []
            assert len(taken.await_count(9)) == 9
            good = "none"
            with pytest.raises(SystemCallError, match="giving connections at"):
                give_to_heir(directory, clients(3).connections(), generation=1)
    finally:
        reception.close()


@pytest.mark.parametrize("batches_before", [0, 1])
def test_what_was_acknowledged_before_it_went_wrong_here_is_the_receivers(
    tmp_path: Path, clients: Any, taken: Taken, monkeypatch: pytest.MonkeyPatch, batches_before: int
) -> None:
    directory = str(tmp_path / "moving")
    make_directory(directory)
    reception = Reception(directory, 2, taken)
    described = moving._described
    count = 0

    def failing(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > batches_before:
            raise OSError(errno.EMFILE, "Too many open files")
        return described(*arguments)

    monkeypatch.setattr(moving, "_described", failing)
    group = clients(BATCH + 5).connections()
    try:
        if batches_before:
            assert give(receptions_of(directory, 2)[0], group) == BATCH
            assert len(taken.await_count(BATCH)) == BATCH
        else:
            with pytest.raises(OSError, match="Too many open files"):
                give(receptions_of(directory, 2)[0], group)
    finally:
        reception.close()


@pytest.mark.parametrize("text", ["", "two", "-1", "2\n3", "\xff"])
def test_an_heir_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "heir").write_text(text, encoding="latin-1")
    assert heir_of(str(tmp_path)) == 0


def test_a_directory_that_others_can_write_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PathError, match="writable by everybody"):
        name_heir(str(tmp_path / "open"), 1)
