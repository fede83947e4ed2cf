"""What the kernel says of connections, compared with sockets whose state the tests know."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from fdhandoff.errors import SystemCallError
from fdhandoff.system import connections
from fdhandoff.system.connections import (
    CLOSE_WAIT,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    LISTEN,
    bound,
    connections_of,
    count,
    established,
    half_open,
    inodes_of,
    other_end,
    remaining,
    unix_accepted,
    unix_connections,
    unix_connections_of,
    unix_queue,
)

from . import as_nobody, ipv6, linux, python, root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = linux

HOLDER = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
if sys.argv[2] == "child":
    child = os.fork()
    if child:
        sock.close()
        os.waitpid(child, 0)
        os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@contextlib.contextmanager
def pair(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_connection(listener.getsockname()[:2]) as client, listener.accept()[0] as server:
        yield client, server


def cookie_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)


def test_a_connection_is_described(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        (seen,) = established(port_of(listener))
        assert (seen.local, seen.remote) == (server.getsockname(), server.getpeername())
        assert (seen.state, seen.inode, seen.uid) == (ESTABLISHED, inode_of(server), os.getuid())
        assert seen.cookie == cookie_of(server)
        client.sendall(b"12345")
        (seen,) = established(port_of(listener), socket.AF_INET)
        assert seen.unread == 5
        assert established(port_of(listener), socket.AF_INET6) == []
    assert established(port_of(listener)) == []


@pytest.mark.parametrize(
    ("bind", "host"),
    [("127.0.0.1", "127.0.0.1"), pytest.param("::", "127.0.0.1", marks=ipv6), pytest.param("::1", "::1", marks=ipv6)],
)
def test_the_other_end_of_a_connection_has_no_inode_until_it_is_accepted(bind: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with (
        socket.create_server((bind, 0), family=family, dualstack_ipv6=bind == "::") as listener,
        socket.create_connection((host, port_of(listener))) as client,
        socket.create_connection((host, port_of(listener))),
    ):
        waiting = other_end(client)
        assert waiting is not None
        assert (waiting.inode, waiting.state, waiting.remote[1]) == (0, ESTABLISHED, port_of(client))
        with listener.accept()[0] as server:
            accepted = other_end(client)
            assert accepted is not None
            assert (accepted.inode, accepted.cookie) == (inode_of(server), cookie_of(server))
        closed = other_end(client)
        assert closed is not None
        assert (closed.inode, closed.state in (FIN_WAIT1, FIN_WAIT2)) == (0, True)


def test_of_a_connection_that_was_reset_there_is_no_other_end(listener: socket.socket) -> None:
    with pair(listener) as (client, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        mine, theirs = client.getsockname(), client.getpeername()
        server.close()
        reset = SimpleNamespace(family=socket.AF_INET, getsockname=lambda: mine, getpeername=lambda: theirs)
        assert other_end(reset) is None  # type: ignore[arg-type]


@ipv6
def test_both_families_of_a_dual_stack_listener_are_listed() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = port_of(sock)
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("::1", port)):
            hosts = {seen.local[0] for seen in established(port, socket.AF_INET6)}
            assert hosts == {"::ffff:127.0.0.1", "::1"}
            assert len(established(port)) == 2


def test_other_ports_are_left_out(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pair(listener), pair(other) as (_, server):
        assert [seen.inode for seen in established(port_of(other))] == [inode_of(server)]


def test_a_connection_is_served_until_both_have_said_their_last_word(listener: socket.socket) -> None:
    port = port_of(listener)
    with pair(listener) as (client, server):
        client.shutdown(socket.SHUT_WR)  # the request is complete, the response is still to come
        assert [seen.state for seen in established(port)] == [CLOSE_WAIT]
        assert count(port, [os.getpid()]) == 1
    with pair(listener) as (_, server):
        server.shutdown(socket.SHUT_WR)  # a lingering close: the server reads what the client may still send
        (seen,) = connections_of(port, [os.getpid()])
        assert seen.state in (FIN_WAIT1, FIN_WAIT2)
        server.close()
        assert established(port) == []


def test_what_the_kernel_still_delivers_is_served_by_nobody_and_counts(listener: socket.socket) -> None:
    port = port_of(listener)
    with pair(listener) as (client, server):
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                server.send(b"x" * 65536)
        server.close()
        (seen,) = established(port)
        assert (seen.inode, seen.unsent > 1) == (0, True)
        assert count(port, [os.getpid()]) == 0
        assert connections_of(port, [os.getpid()]) == []
        client.close()
    assert established(port) == []


def test_what_waits_in_a_queue_belongs_to_nobody(listener: socket.socket) -> None:
    port = port_of(listener)
    with socket.create_connection(listener.getsockname()):
        (seen,) = established(port)
        assert seen.inode == 0
        assert connections_of(port, [os.getpid()]) == []
        listener.accept()[0].close()


@pytest.mark.parametrize("who", ["itself", "child"])
def test_connections_belong_to_the_process_that_holds_them(listener: socket.socket, who: str) -> None:
    port = port_of(listener)
    with pair(listener) as (_, mine), pair(listener) as (client, theirs):
        holder = python(HOLDER, str(theirs.fileno()), who, pass_fds=[theirs.fileno()])
        with holder:
            inode = inode_of(theirs)
            assert holder.stdout is not None
            pid = int(holder.stdout.readline())
            theirs.close()
            assert [seen.inode for seen in connections_of(port, [holder.pid, pid])] == [inode]
            assert [seen.inode for seen in connections_of(port, [os.getpid()])] == [inode_of(mine)]
            assert count(port, [os.getpid(), pid]) == 2
            if who == "child":
                assert count(port, [holder.pid]) == 0
            assert remaining(port, {inode, 1}) == 1
            client.close()
            assert [seen.state for seen in connections_of(port, [pid])] == [CLOSE_WAIT]
        # The holder has ended: its standard input was closed.
        assert count(port, [pid]) == 0
        assert remaining(port, {inode}) == 0


def test_a_process_that_is_gone_has_no_descriptors() -> None:
    ended = python("")
    with ended:
        ended.wait(20)
        assert inodes_of([ended.pid, 2**22 - 1]) == set()


def test_a_zombie_has_no_descriptors() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert inodes_of([pid]) == set()
    os.waitpid(pid, 0)


def test_descriptors_of_a_busy_process_are_read_all_the_same() -> None:
    code = """
import os, socket
kept = socket.socket()
print(os.fstat(kept.fileno()).st_ino, flush=True)
while True:
    for sock in [socket.socket() for _ in range(100)]:
        sock.close()
"""
    busy = python(code)
    with busy:
        try:
            assert busy.stdout is not None
            inode = int(busy.stdout.readline())
            for _ in range(50):
                assert inode in inodes_of([busy.pid])
        finally:
            busy.kill()


@root
def test_another_users_descriptors_take_a_privilege_that_is_named() -> None:
    pid = os.getpid()
    answer = as_nobody(lambda: inodes_of([pid]))
    assert answer.startswith("SystemCallError")
    assert f"process {pid}" in answer
    assert "CAP_SYS_PTRACE" in answer


def test_a_half_open_connection_is_seen_until_its_client_answers() -> None:
    with socket.socket() as sock:
        # A client that is accepted only with data stays half open for the server until it sends some.
        sock.setsockopt(socket.IPPROTO_TCP, 9, 5)  # TCP_DEFER_ACCEPT
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = port_of(sock)
        assert half_open(port) == frozenset()
        with socket.create_connection(sock.getsockname()) as client:
            before = half_open(port)
            assert len(before) == 1
            with socket.create_connection(sock.getsockname()):
                assert len(half_open(port)) == 2
                client.sendall(b"x")
                sock.accept()[0].close()
                assert not half_open(port) & before
                assert len(half_open(port)) == 1


def test_listeners_and_udp_sockets_of_a_port_are_listed(listener: socket.socket) -> None:
    (seen,) = bound(port_of(listener), socket.SOCK_STREAM)
    assert (seen.local, seen.state, seen.inode) == (listener.getsockname(), LISTEN, inode_of(listener))
    assert seen.cookie == cookie_of(listener)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        (seen,) = bound(port_of(udp), socket.SOCK_DGRAM, socket.AF_INET)
        assert (seen.local, seen.inode) == (udp.getsockname(), inode_of(udp))


def test_an_error_of_the_kernel_is_told() -> None:
    with pytest.raises(SystemCallError) as caught:
        list(connections._ask(b"\xff" * 72, connections._DUMP))
    assert caught.value.errno in (errno.EINVAL, errno.EAFNOSUPPORT)


@pytest.mark.parametrize("amount", [500, 3000])
def test_many_connections_are_listed_one_by_one(amount: int) -> None:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=amount))
        inodes = set()
        for _ in range(amount):
            stack.enter_context(socket.create_connection(sock.getsockname()))
            inodes.add(inode_of(stack.enter_context(sock.accept()[0])))
        port = port_of(sock)
        listed = [seen.inode for seen in established(port)]
        assert len(listed) == amount
        assert set(listed) == inodes
        assert count(port, [os.getpid()]) == remaining(port, inodes) == amount


# --- Unix sockets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_connections_are_known_by_their_listeners_name(abstract: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place, socket.socket(socket.AF_UNIX) as sock:
        name = b"\0fdhandoff-test-%d" % os.getpid() if abstract else os.fsencode(f"{place}/sock")
        sock.bind(name)
        sock.listen(7)
        assert unix_queue(sock) == (0, 7)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for client in clients:
                client.connect(name)
            assert unix_queue(sock) == (3, 7)
            assert [unix_accepted(client) for client in clients] == [False] * 3
            assert unix_connections_of(name, [os.getpid()]) == []
            with sock.accept()[0] as server:
                assert unix_queue(sock) == (2, 7)
                assert [unix_accepted(client) for client in clients] == [True, False, False]
                (seen,) = unix_connections_of(name, [os.getpid()])
                assert (seen.inode, seen.peer, seen.state) == (inode_of(server), inode_of(clients[0]), ESTABLISHED)
                assert seen.name == name
            assert unix_connections(name) == []
            (seen,) = unix_connections(name, (LISTEN,))
            assert (seen.inode, seen.waiting, seen.backlog) == (inode_of(sock), 2, 7)


def test_who_has_a_listening_socket_open_listens(tmp_path: Path) -> None:
    assert not connections.listen([os.getpid()])
    with socket.create_server(("127.0.0.1", 0)):
        assert connections.listen([os.getpid()])
    assert not connections.listen([os.getpid()])
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "sock"))
        assert not connections.listen([os.getpid()]), "bound is not listening"
        unix.listen()
        assert connections.listen([os.getpid()])
    assert not connections.listen([])
