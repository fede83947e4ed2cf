"""A listener for servers that accept by themselves: they do so through the gate, and harm none of those that share it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from fdhandoff.gate import Gate
from fdhandoff.gated import GatedListener
from fdhandoff.system.fds import listener_queue

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=77) as sock:
        yield sock


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.release()


def test_what_is_accepted_is_inside_until_it_is_closed(listener: socket.socket, gate: Gate) -> None:
    with GatedListener(listener, gate) as gated, socket.create_connection(listener.getsockname()) as client:
        connection, address = gated.accept()
        assert address == client.getsockname()
        assert connection.getblocking()
        assert gate.active == 1
        connection.close()
        assert gate.active == 0


def test_an_empty_queue_and_a_closed_gate_are_the_same_to_the_server(listener: socket.socket, gate: Gate) -> None:
    with GatedListener(listener, gate) as gated:
        with pytest.raises(BlockingIOError):
            gated.accept()
        gate.close()
        with socket.create_connection(listener.getsockname()):
            with pytest.raises(BlockingIOError):
                gated.accept()
            gate.reopen()
            gated.accept()[0].close()


def test_what_the_server_does_to_it_is_felt_by_no_one_else(listener: socket.socket, gate: Gate) -> None:
    gated = GatedListener(listener, gate)
    gated.listen(5)
    gated.shutdown(socket.SHUT_RDWR)
    gated.close()
    queue = listener_queue(listener.fileno())
    assert queue is not None
    assert queue[1] == 77
    with socket.create_connection(listener.getsockname()):
        listener.accept()[0].close()
