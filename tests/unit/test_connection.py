"""Accepted connections are inside the gate, each exactly once, until their descriptor is closed, whoever closes it."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from fdhandoff.accept import CountedSocket, accept_many
from fdhandoff.counters import Counters
from fdhandoff.errors import GateClosed
from fdhandoff.gate import Gate
from tests.conftest import needs
from tests.unit.accepting import LONG, Clients, accept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def connection(listener: socket.socket, gate: Gate) -> Iterator[CountedSocket]:
    with Clients(listener, 1), accept(listener, gate, timeout=LONG) as made:
        yield made


def test_closing_leaves_once(connection: CountedSocket, gate: Gate) -> None:
    assert connection.inside
    connection.close()
    connection.close()
    assert not connection.inside
    assert gate.counters == Counters(accepted=1, finished=1)


def test_shutdown_does_not_leave(connection: CountedSocket, gate: Gate) -> None:
    connection.shutdown(socket.SHUT_RDWR)
    assert gate.active == 1


def test_the_last_file_leaves(connection: CountedSocket, gate: Gate) -> None:
    reader, writer = connection.makefile("rb"), connection.makefile("wb")
    connection.close()
    assert gate.active == 1
    reader.close()
    assert gate.active == 1
    writer.close()
    assert gate.active == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_garbage_leaves(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 1):
        (connection,) = [accept(listener, gate)]
        fd = connection.fileno()
        del connection
        gc.collect()
        assert gate.counters == Counters(accepted=1, finished=1)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_garbage_warns(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 1):
        connections = [accept(listener, gate)]
        with pytest.warns(ResourceWarning, match="unclosed"):
            connections.clear()


def test_two_threads_that_close_leave_once(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 100):
        connections = accept_many(listener, gate, 100)
        start = threading.Barrier(2)

        def close() -> None:
            start.wait()
            for connection in connections:
                connection.close()

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert gate.counters == Counters(accepted=100, finished=100)


def test_a_forced_connection_is_counted_so(connection: CountedSocket, gate: Gate) -> None:
    def receive() -> None:
        with contextlib.suppress(OSError):  # if it comes too late
            connection.recv(1)

    connection.settimeout(None)
    thread = threading.Thread(target=receive)
    with connection.makefile("rb"):
        thread.start()
        connection.force_close()
        assert gate.counters == Counters(accepted=1, forced=1)
    thread.join(LONG)
    assert not thread.is_alive()
    connection.force_close()
    assert gate.counters == Counters(accepted=1, forced=1)


def test_marks_are_gauges_and_end_with_the_connection(connection: CountedSocket, gate: Gate) -> None:
    connection.mark_idle()
    connection.mark_idle()
    connection.mark_detached()
    assert gate.counters == Counters(accepted=1, active=1, idle=1, detached=1)
    connection.mark_busy()
    connection.mark_busy()
    assert gate.counters.idle == 0
    connection.mark_idle()
    connection.close()
    connection.mark_busy()
    assert gate.counters == Counters(accepted=1, finished=1)


def test_a_detached_descriptor_counts_until_it_is_closed(connection: CountedSocket, gate: Gate) -> None:
    connection.mark_idle()
    fd = connection.detach()
    connection.close()
    gate.close()
    assert gate.counters == Counters(accepted=1, active=1, detached=1)
    assert not gate.wait(0)
    threading.Timer(0.01, os.close, (fd,)).start()
    assert gate.wait(LONG)
    assert gate.counters == Counters(accepted=1, finished=1)


def test_one_that_somebody_else_has_closed_leaves_even_if_its_number_is_used_again(
    connection: CountedSocket, gate: Gate
) -> None:
    """As uvloop does: it closes the descriptor, and tells the socket object afterwards."""
    connection.remember()
    fd = connection.fileno()
    os.close(fd)
    other = os.open(os.devnull, os.O_RDONLY)
    try:
        assert other == fd, "the kernel gives the lowest"
        connection.detach()
        assert gate.counters == Counters(accepted=1, finished=1)
    finally:
        os.close(other)


def test_a_detached_descriptor_may_leave_by_name(connection: CountedSocket, gate: Gate) -> None:
    fd = connection.detach()
    os.close(fd)
    assert gate.leave_detached(fd)
    assert not gate.leave_detached(fd)
    assert gate.counters == Counters(accepted=1, finished=1)


def test_a_number_that_is_used_again_is_another_connection(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 2):
        fd = accept(listener, gate).detach()
        os.close(fd)
        again = accept(listener, gate).detach()
        assert again == fd
        assert gate.counters == Counters(accepted=2, finished=1, active=1, detached=1)
        os.close(again)
        assert gate.settle() == 1


def test_a_duplicate_does_not_count(connection: CountedSocket, gate: Gate) -> None:
    with connection.dup() as other:
        assert type(other) is socket.socket
        assert other.gettimeout() == connection.gettimeout()
        connection.close()
        assert gate.active == 0


def test_a_connection_accepted_elsewhere_can_enter(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 2):
        plain, _ = listener.accept()
        plain.settimeout(3)
        with CountedSocket(plain, gate) as connection:
            assert plain.fileno() == -1
            assert connection.gettimeout() == 3
            assert gate.active == 1
        assert gate.active == 0
        gate.close()
        plain, _ = listener.accept()
        with plain, pytest.raises(GateClosed):
            CountedSocket(plain, gate)
        assert gate.counters.active == 0


def test_a_childs_copies_of_its_parents_connections_do_not_leave(connection: CountedSocket, gate: Gate) -> None:
    pid = os.fork()
    if pid == 0:
        connection.close()
        os._exit(0 if gate.active == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert gate.active == 1
    connection.close()
    assert gate.counters == Counters(accepted=1, finished=1)


def test_connections_outlive_the_gate_object(listener: socket.socket) -> None:
    gate = Gate()
    with Clients(listener, 1):
        connection = accept(listener, gate)
        gate.release()
        del gate
        connection.close()


def test_tls_connections_count_until_they_are_closed(listener: socket.socket, gate: Gate, tmp_path: Path) -> None:
    openssl = needs("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout {key} -out"
    subprocess.run([*command.split(), str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    def client() -> None:
        with socket.create_connection(listener.getsockname(), LONG) as raw, trusting.wrap_socket(raw) as secure:
            secure.recv(1)

    thread = threading.Thread(target=client)
    thread.start()
    with context.wrap_socket(accept(listener, gate, timeout=LONG), server_side=True) as secure:
        gc.collect()
        gate.settle()
        assert gate.active == 1
        secure.send(b"x")
    gate.close()
    assert gate.wait(LONG)
    thread.join(LONG)
