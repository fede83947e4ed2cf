"""Whether somebody waits for a listener is read from real processes that do, each in its own way."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from fdhandoff.system.attention import look
from fdhandoff.system.processes import descendants

from . import as_nobody, linux, python, root

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = linux

WAYS = {
    "accept": "s.accept()",
    "accept-with-timeout": "s.settimeout(60); s.accept()",
    "poll": "p = select.poll(); p.register(s, select.POLLIN); p.poll()",
    "select": "select.select([s], [], [])",
    "epoll": "p = select.epoll(); p.register(s, select.EPOLLIN); p.poll()",
    "epoll-edge": "p = select.epoll(); p.register(s, select.EPOLLIN | select.EPOLLET | select.EPOLLEXCLUSIVE); p.poll()",
    "thread": "threading.Thread(target=s.accept).start()",
    "asyncio": "asyncio.run(serve())",
    "grandchild": "subprocess.run([sys.executable, '-c', 'import socket; socket.socket(fileno=%d).accept()' % s.fileno()],"
    " close_fds=False)",
}
PRELUDE = """
import asyncio, select, socket, subprocess, sys, threading, time
s = socket.socket(fileno=int(sys.argv[1]))
async def serve():
    server = await asyncio.start_server(lambda r, w: w.close(), sock=s)
    await server.serve_forever()
print("up", flush=True)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def run(code: str, sock: socket.socket) -> object:
    process = python(PRELUDE + code, str(sock.fileno()), pass_fds=[sock.fileno()])
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def end(process: object) -> None:
    with process:  # type: ignore[attr-defined]
        for pid in [*descendants(process.pid), process.pid]:  # type: ignore[attr-defined]
            os.kill(pid, 9)


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def seen_within(pid: int, wanted: set[int], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if look(pid, wanted).inodes == wanted:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_is_seen(way: str, listener: socket.socket) -> None:
    process = run(WAYS[way], listener)
    try:
        assert seen_within(process.pid, {inode(listener)}, 20)  # type: ignore[attr-defined]
    finally:
        end(process)


@pytest.mark.parametrize("code", ["time.sleep(60)", "sys.stdin.read()", "select.select([sys.stdin], [s], [])"])
def test_who_only_has_it_open_does_not_wait_for_it(code: str, listener: socket.socket) -> None:
    process = run(code, listener)
    try:
        assert not seen_within(process.pid, {inode(listener)}, 0.2)  # type: ignore[attr-defined]
        assert look(process.pid, {inode(listener)}).blind == ""  # type: ignore[attr-defined]
    finally:
        end(process)


def test_one_of_two_is_told_apart(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = run("s.accept()", listener)
        try:
            assert seen_within(process.pid, {inode(listener)}, 20)  # type: ignore[attr-defined]
            both = {inode(listener), inode(other)}
            assert look(process.pid, both).inodes == {inode(listener)}  # type: ignore[attr-defined]
        finally:
            end(process)


def test_a_bound_datagram_socket_is_waited_for_by_receiving() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        process = run("s.recvfrom(1)", sock)
        try:
            assert seen_within(process.pid, {inode(sock)}, 20)  # type: ignore[attr-defined]
        finally:
            end(process)


def test_a_process_that_has_ended_waits_for_nothing(listener: socket.socket) -> None:
    process = run("", listener)
    end(process)
    assert look(process.pid, {inode(listener)}).inodes == frozenset()  # type: ignore[attr-defined]


@root
def test_who_may_not_look_says_so(listener: socket.socket) -> None:
    process = run("s.accept()", listener)
    try:
        answer = as_nobody(lambda: look(process.pid, {inode(listener)}).blind)  # type: ignore[attr-defined]
        assert answer.startswith("we may not look into process")
    finally:
        end(process)
