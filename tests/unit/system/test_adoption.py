"""Listeners out of a process that knows nothing of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fdhandoff.errors import SystemCallError
from fdhandoff.system.adoption import listeners_of, sockets_of
from fdhandoff.system.fds import describe
from fdhandoff.system.process import Process
from fdhandoff.system.processes import parent_of

from . import as_nobody, root

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A stream listener, a datagram socket, and what is neither: a connected one, one without a port, a file, a pipe.
PROGRAM = """
import os, socket
listener = socket.create_server(("127.0.0.1", 0))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
connected.connect(datagrams.getsockname())
unbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
pipe, file = os.pipe(), open(os.devnull)
again = listener.dup()
print(listener.getsockname()[1], datagrams.getsockname()[1], flush=True)
input()
"""


@pytest.fixture
def server() -> Iterator[tuple[Process, list[int]]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        ports = [int(word) for word in program.stdout.readline().split()]
        with Process.from_pid(program.pid) as process:
            yield process, ports
        program.communicate("\n", timeout=30)


def test_each_listener_and_bound_datagram_socket_comes_once(server: tuple[Process, list[int]]) -> None:
    process, ports = server
    found = listeners_of(process)
    try:
        assert [sock.getsockname()[1] for _, sock in found] == ports
        for inode, sock in found:
            assert os.fstat(sock.fileno()).st_ino == inode
            assert not os.get_inheritable(sock.fileno())
    finally:
        for _, sock in found:
            sock.close()


def test_what_is_known_already_does_not_come_again(server: tuple[Process, list[int]]) -> None:
    process, _ = server
    ((inode, listener), (_, datagrams)) = listeners_of(process)
    with listener, datagrams:
        ((_, again),) = listeners_of(process, {inode})
        with again:
            assert again.type == socket.SOCK_DGRAM


def test_a_socket_is_found_by_its_cookie(server: tuple[Process, list[int]]) -> None:
    process, _ = server
    ((_, listener), (_, datagrams)) = listeners_of(process)
    with listener, datagrams:
        description = describe(listener.fileno())
        assert description is not None
        (again,) = sockets_of(process, {description.cookie}).values()
        with again:
            assert again.getsockname() == listener.getsockname()


@root
def test_another_users_process_is_refused_with_what_would_allow_it(server: tuple[Process, list[int]]) -> None:
    process, _ = server
    text = as_nobody(lambda: listeners_of(process))
    assert text.startswith(SystemCallError.__name__)
    assert f"process {process.pid}, which runs as uid 0" in text
    assert "wants uid 0 and a program that can be dumped, or CAP_SYS_PTRACE" in text


def test_a_parent_is_known_as_long_as_the_process_is(server: tuple[Process, list[int]]) -> None:
    process, _ = server
    assert parent_of(process.pid) == os.getpid()
    assert parent_of(1) == 0
