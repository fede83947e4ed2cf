"""Reads that have not happened while they are not complete, over a socket that the test feeds."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from fdhandoff.listener import Connection
from fdhandoff.reading import Moved, WaitingSocket, pack, unpack


class Interrupted(Exception):
    pass


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def waiting(sock: socket.socket, unread: bytes = b"") -> WaitingSocket:
    """That does not wait: a read for which nothing is there is interrupted."""

    def wait() -> None:
        sock.setblocking(False)
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            raise Interrupted from None

    return WaitingSocket(sock, unread, wait)


def test_half_a_line_stays_unread_and_is_whole_elsewhere(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    line = waiting(ours)
    reader = line.makefile("rb")
    theirs.sendall(b"one\ntwo\nthr")
    assert reader.readline() == b"one\n"
    assert reader.readline() == b"two\n"
    with pytest.raises(Interrupted):
        reader.readline()
    assert line.unread == b"thr"
    theirs.sendall(b"ee\nfour")
    other = waiting(ours, bytes(line.unread)).makefile("rb")
    assert other.readline() == b"three\n"
    theirs.close()
    assert other.readline() == b"four", "the end ends a line"
    assert other.readline() == b""


def test_reads_of_so_many_bytes_wait_for_all_of_them(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    line = waiting(ours)
    reader = line.makefile("rb")
    theirs.sendall(b"0123456789")
    assert reader.read(4) == b"0123"
    assert reader.peek() == b"456789"
    assert reader.read1(2) == b"45"
    with pytest.raises(Interrupted):
        reader.read(5)
    assert line.unread == b"6789"
    assert line.recv(2) == b"67", "also for who mixes them"
    assert line.recv(9, socket.MSG_PEEK) == b"89"
    assert reader.readline(1) == b"8"
    buffer = bytearray(4)
    assert line.recv_into(buffer) == 1
    assert buffer[:1] == b"9"
    theirs.sendall(b"the rest")
    theirs.close()
    assert reader.read() == b"the rest"


def test_nothing_is_written_once_the_connection_has_moved(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    line = waiting(ours)
    writer = line.makefile("wb")
    writer.write(b"before")
    writer.flush()
    line.moved = True
    writer.write(b"after")
    for write in (writer.flush, lambda: line.sendall(b"x"), lambda: line.send(b"x"), line.check):
        with pytest.raises(Moved):
            write()
    assert theirs.recv(100) == b"before"
    with pytest.raises(Moved):
        writer.close()


def test_a_state_that_makes_no_sense_is_told() -> None:
    data = pack(b"unread", b"state")
    assert data is not None
    assert unpack(data) == (b"unread", b"state")
    for wrong in (b"", b"\x09" + data[1:], data[:8]):
        with pytest.raises(ValueError, match="a connection's state"):
            unpack(wrong)
    assert pack(b"", bytes(Connection.STATE_MAX)) is None
