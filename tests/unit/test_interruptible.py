"""A connection whose thread waits for a request and can be asked to let it go; whoever uses it otherwise notices nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fdhandoff import Gate
from fdhandoff.connection import CountedSocket
from fdhandoff.interruptible import Interruptible, Reading, number_of


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, CountedSocket]]:
    gate = Gate()
    client, served = socket.socketpair()
    with contextlib.closing(client), contextlib.closing(CountedSocket(served, gate)) as counted:
        Interruptible.of(counted)
        yield client, counted
    gate.settle()
    assert gate.active == 0
    gate.release()


def _comes_back(sock: socket.socket) -> bool:
    """Whether a read comes back when nothing comes."""
    return any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))


def _rest(counted: CountedSocket) -> None:
    """As one does that has had a request and waits for another."""
    with counted.makefile("rb", -1) as reader:
        assert not reader.raw.begins(reader)
        assert not reader.raw.begins(reader)
    assert _comes_back(counted)


def test_the_first_request_is_looked_for_without_a_wait_or_a_limit(pair: Any) -> None:
    client, counted = pair
    with counted.makefile("rb", -1) as early, counted.makefile("rb", -1) as reader:
        assert not early.raw.begins(early)
        client.sendall(b"one\n")
        assert reader.raw.begins(reader)
        assert reader.readline() == b"one\n"
        assert not _comes_back(counted)
        assert not reader.raw.begins(reader)
        assert _comes_back(counted), "it may rest from now on"


def test_a_client_that_comes_and_goes_is_no_reason_to_wait(pair: Any) -> None:
    client, counted = pair
    client.close()
    with counted.makefile("rb", -1) as reader:
        assert reader.raw.begins(reader)
        assert reader.readline() == b""


def test_who_waits_for_a_request_is_told_when_none_comes_for_a_moment(pair: Any) -> None:
    client, counted = pair
    with counted.makefile("rb", -1) as reader:
        raw = reader.raw
        assert type(raw) is Reading
        assert not raw.begins(reader)
        assert not raw.has(reader)
        client.sendall(b"one\ntwo\n")
        assert raw.begins(reader)
        assert raw.has(reader)
        assert reader.readline() == b"one\n"
        assert raw.begins(reader), "it was read with the first"
        assert reader.readline() == b"two\n"
        assert not raw.has(reader)
        client.close()
        assert raw.begins(reader), "the end is no reason to wait"
        assert reader.readline() == b""
        assert type(counted) is Interruptible


def test_a_request_that_was_begun_may_take_its_time(pair: Any) -> None:
    client, counted = pair
    with counted.makefile("rb", -1) as reader:
        client.sendall(b"GET")
        assert reader.raw.begins(reader)
        later = threading.Timer(0.2, client.sendall, (b" / HTTP/1.1\r\n",))
        later.start()
        assert reader.readline() == b"GET / HTTP/1.1\r\n"
        later.join()


def test_what_is_written_is_sent_as_by_an_ordinary_file(pair: Any) -> None:
    client, counted = pair
    writer = counted.makefile("wb", -1)
    counted.close()
    writer.write(b"one")
    writer.flush()
    assert client.recv(100) == b"one", "the last file keeps the descriptor"
    raw = writer.raw
    writer.close()
    assert client.recv(100) == b""
    with pytest.raises(ValueError, match="closed"):
        raw.write(b"two")


def test_who_changes_the_socket_still_writes_by_its_file(pair: Any) -> None:
    client, counted = pair
    with counted.makefile("wb", -1) as writer:
        counted.setblocking(False)
        assert type(counted) is CountedSocket
        sent = 0
        while (some := writer.raw.write(bytes(65536))) is not None:
            sent += some
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sent:
                sent -= len(client.recv(1 << 20))
        assert sent == 0


def test_a_client_that_has_hung_up_is_an_error_of_the_write(pair: Any) -> None:
    client, counted = pair
    client.close()
    writer = counted.makefile("wb", -1)
    with pytest.raises(BrokenPipeError):
        writer.raw.write(b"one")
    writer.close()


USES: dict[str, Any] = {
    "recv": lambda sock: sock.recv(1),
    "recv_into": lambda sock: sock.recv_into(bytearray(1)),
    "recvfrom": lambda sock: sock.recvfrom(1),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(1)),
    "recvmsg": lambda sock: sock.recvmsg(1),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(1)]),
    "fileno": lambda sock: os.read(sock.fileno(), 1),
    "dup": lambda sock: sock.dup().close(),
    "settimeout": lambda sock: sock.settimeout(5),
    "setblocking": lambda sock: sock.setblocking(True),
    "text": lambda sock: sock.makefile("r").readline(),
    "unbuffered": lambda sock: sock.makefile("rb", 0).read(1),
}


@pytest.mark.parametrize("use", USES)
def test_whoever_uses_it_otherwise_has_an_ordinary_socket(use: str, pair: Any) -> None:
    client, counted = pair
    _rest(counted)
    number_of(counted)
    assert type(counted) is Interruptible
    with counted.makefile("rb", -1) as reader:
        client.sendall(b"\n")
        USES[use](counted)
        assert type(counted) is CountedSocket
        assert not _comes_back(counted)
        client.sendall(b"more\n")
        assert not reader.raw.begins(reader), "a read might last: this can't be said any more"
        assert b"more\n" in iter(reader.readline, b"")


def test_a_descriptor_that_is_taken_out_is_an_ordinary_one(pair: Any) -> None:
    client, counted = pair
    _rest(counted)
    with socket.socket(fileno=counted.detach()) as plain:
        assert not _comes_back(plain)
    client.close()


def test_a_socket_that_does_not_block_stays_as_it_is() -> None:
    gate = Gate()
    client, served = socket.socketpair()
    served.settimeout(1)
    with contextlib.closing(client), contextlib.closing(CountedSocket(served, gate)) as counted:
        Interruptible.of(counted)
        assert type(counted) is CountedSocket
        assert not _comes_back(counted)
    gate.release()
