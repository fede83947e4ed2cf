"""Everything that can be handed over arrives as it was, in the order and under the names in which it was given."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdhandoff
from fdhandoff.system.fds import describe
from tests.support.forked import Forked

TCP = socket.SOCK_STREAM


def exchange(
    path: Path, items: Any, look: Callable[[fdhandoff.Takeover], Any], first: Callable[[], Any] = int, **options: Any
):
    """Hands ``items`` to a child, which runs ``first()`` before it takes and returns what ``look`` makes of the takeover."""
    where = str(path / "h.sock")

    def child() -> Any:
        first()
        takeover = fdhandoff.receive(where, timeout=60)
        takeover.ready(60)
        return look(takeover)

    taker = Forked(child)
    handed = fdhandoff.send(where, items, timeout=60, **options)
    assert handed.peer.pid == taker.pid
    return taker.result()


def _bound(family: int, kind: int, address: Any, listening: bool = True, v6only: bool | None = None) -> socket.socket:
    sock = socket.socket(family, kind)
    if v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    sock.bind(address)
    if listening:
        sock.listen()
    return sock


def _kinds(path: Path) -> dict[str, socket.socket]:
    return {
        "v4": _bound(socket.AF_INET, TCP, ("127.0.0.1", 0)),
        "v6": _bound(socket.AF_INET6, TCP, ("::1", 0)),
        "v6only": _bound(socket.AF_INET6, TCP, ("::", 0), v6only=True),
        "dual": _bound(socket.AF_INET6, TCP, ("::", 0), v6only=False),
        "udp": _bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0), False),
        "udp6": _bound(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0), False),
        "stream": _bound(socket.AF_UNIX, TCP, str(path / "s")),
        "dgram": _bound(socket.AF_UNIX, socket.SOCK_DGRAM, str(path / "d"), False),
        "seqpacket": _bound(socket.AF_UNIX, socket.SOCK_SEQPACKET, str(path / "q")),
        "abstract": _bound(socket.AF_UNIX, TCP, b"\0fdhandoff-test-%d" % os.getpid()),
    }


def test_every_kind_of_listener_arrives_as_it_was(tmp_path: Path) -> None:
    kinds = _kinds(tmp_path)
    before = {name: repr(describe(sock.fileno())) for name, sock in kinds.items()}
    after = exchange(
        tmp_path,
        kinds,
        lambda takeover: {name: repr(describe(sock.fileno())) for name, sock in takeover.listeners.items()},
    )
    assert after == before
    assert list(after) == list(before)
    for sock in kinds.values():
        sock.close()


def test_what_waited_in_a_queue_is_accepted_by_the_taker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)

        def look(takeover: fdhandoff.Takeover) -> list[str]:
            heard = []
            for _ in clients:
                connection, _ = takeover.listeners[0].accept()
                heard.append(connection.recv(10).decode())
                connection.sendall(b"yes")
            return heard

        assert exchange(tmp_path, [listener], look) == [str(number) for number in range(20)]
        for client in clients:
            assert client.recv(10) == b"yes"
            client.close()


def test_files_arrive_with_their_content(tmp_path: Path) -> None:
    read, write = os.pipe()
    memory = os.memfd_create("shared")
    os.write(memory, b"in memory")
    with (tmp_path / "log").open("w+") as log:
        log.write("a line")
        log.flush()
        items = [fdhandoff.File("pipe", read), fdhandoff.File("memory", memory), fdhandoff.File("log", log)]

        def look(takeover: fdhandoff.Takeover) -> list[Any]:
            files = takeover.files
            os.write(files["log"], b", another")
            return [
                os.read(files["pipe"], 100).decode(), os.pread(files["memory"], 100, 0).decode(),
                sorted(files), [os.get_inheritable(fd) for fd in files.values()], len(takeover.listeners),
            ]  # fmt: skip

        os.write(write, b"through the pipe")
        found = exchange(tmp_path, items, look)
        assert found == ["through the pipe", "in memory", ["log", "memory", "pipe"], [False] * 3, 0]
        log.seek(0)
        assert log.read() == "a line, another"
    for fd in (read, write, memory):
        os.close(fd)


def test_established_connections_arrive_with_what_is_known_of_them(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        served = [listener.accept()[0] for _ in clients]
        pair, other = socket.socketpair()
        items = [
            listener,
            *(fdhandoff.Connection("client", sock, b"state %d" % i) for i, sock in enumerate(served)),
            fdhandoff.Connection("pair", pair, b"\0" * 500_000),
        ]

        def look(takeover: fdhandoff.Takeover) -> list[Any]:
            for connection in takeover.connections:
                connection.target.sendall(connection.state[:7])
            return [[connection.name, len(connection.state)] for connection in takeover.connections]

        found = exchange(tmp_path, items, look)
        assert found == [["client", 7], ["client", 7], ["client", 7], ["pair", 500_000]]
        assert [client.recv(10) for client in clients] == [b"state 0", b"state 1", b"state 2"]
        assert other.recv(10) == bytes(7)
        for sock in (*clients, *served, pair, other):
            sock.close()


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 64 * 2**20])
def test_state_of_any_size_arrives_whole(tmp_path: Path, size: int) -> None:
    import hashlib

    state = os.urandom(min(size, 4096)) * (size // 4096 + 1)
    final = state[: size // 2]

    def look(takeover: fdhandoff.Takeover) -> str:
        return hashlib.sha256(takeover.state).hexdigest()

    assert exchange(tmp_path, [], look, state=state[:size]) == hashlib.sha256(state[:size]).hexdigest()
    (tmp_path / "h.sock").unlink()  # the child ended without a word
    found = exchange(tmp_path, [], look, state=state[:size], on_commit=lambda: final)
    assert found == hashlib.sha256(final).hexdigest()


def test_more_state_than_there_may_be_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 67108864 bytes"):
        fdhandoff.send(tmp_path / "h.sock", [], state=bytes(64 * 2**20 + 1))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def many() -> Iterator[Callable[[int], list[socket.socket]]]:
    found: list[socket.socket] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def make(count: int) -> list[socket.socket]:
        wanted = count * 2 + 200
        if wanted > limits[0]:
            if limits[1] < count + 500:
                pytest.skip(f"needs a hard limit of {count + 500} open files (ulimit -Hn)")
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        for _ in range(count):
            found.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            found[-1].bind(("127.0.0.1", 0))
        return found

    yield make
    for sock in found:
        sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("count", [0, 1, 251, 252, 253, 254, 503, 504, 505, 600, 10_000])
def test_any_number_of_listeners_arrives_in_order(
    tmp_path: Path, many: Callable[[int], list[socket.socket]], count: int
) -> None:
    sockets = many(count)
    ports = [sock.getsockname()[1] for sock in sockets]

    def first() -> None:
        for sock in sockets:  # the fork's copies: the child starts with none of them
            os.close(sock.fileno())

    def look(takeover: fdhandoff.Takeover) -> list[Any]:
        names = list(takeover.listeners.names)
        return [[sock.getsockname()[1] for sock in takeover.listeners], names == [f"listener{i}" for i in range(count)]]

    assert exchange(tmp_path, sockets, look, first, ready_timeout=120) == [ports, True]
