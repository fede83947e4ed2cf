"""Connections come in batches, each inside the gate; what does not fit or comes too late stays in the queue."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fdhandoff.accept import AcceptLoop, CountedSocket, accept_many
from fdhandoff.counters import Counters
from fdhandoff.errors import GateClosed, ListenerMismatch, SystemCallError
from fdhandoff.gate import Gate
from tests.unit.accepting import LONG, Clients, FewDescriptors, accept, until

if TYPE_CHECKING:
    from pathlib import Path


def test_many_connections_come_with_one_call(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 5) as clients:
        first, rest = accept_many(listener, gate, 3), accept_many(listener.fileno(), gate)
        assert (len(first), len(rest), gate.active) == (3, 2, 5)
        assert accept_many(listener, gate) == []
        peers = {connection.getpeername() for connection in first + rest}
        assert peers == {client.getsockname() for client in clients}
        for connection in first + rest:
            assert isinstance(connection, CountedSocket)
            assert (connection.family, connection.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert connection.proto == socket.IPPROTO_TCP
            assert not os.get_inheritable(connection.fileno())
            assert not os.get_blocking(connection.fileno())
            assert connection.gettimeout() == 0
            connection.close()
    assert gate.counters == Counters(accepted=5, finished=5)


def test_connections_can_be_made_blocking(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 2):
        with accept(listener, gate, timeout=None) as blocking:
            assert os.get_blocking(blocking.fileno())
            assert blocking.gettimeout() is None
        with accept(listener, gate, timeout=1.5) as waiting:
            assert waiting.gettimeout() == 1.5


def test_unix_connections_are_counted(tmp_path: Path, gate: Gate) -> None:
    path = str(tmp_path / "s")
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as listener, socket.socket(socket.AF_UNIX, kind) as client:
            listener.bind(path)
            listener.listen()
            client.connect(path)
            with accept(listener, gate) as connection:
                assert (connection.family, connection.type) == (socket.AF_UNIX, kind)
                client.send(b"x")
                assert connection.recv(1) == b"x"
        os.unlink(path)
    assert gate.counters.finished == 2


def test_a_closed_gate_leaves_connections_in_the_queue(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 2):
        gate.close()
        with pytest.raises(GateClosed):
            accept_many(listener, gate)
        gate.reopen()
        for connection in accept_many(listener, gate):
            connection.close()
    assert gate.counters.accepted == 2


def test_a_full_gate_leaves_connections_in_the_queue(listener: socket.socket) -> None:
    gate = Gate(limit=2)
    with Clients(listener, 3):
        first = accept_many(listener, gate)
        assert len(first) == 2
        assert accept_many(listener, gate) == []
        assert not gate.want_room()
        first[0].close()
        assert gate.want_room()
        (third,) = accept_many(listener, gate)
        first[1].close()
        third.close()


def test_what_does_not_listen_is_refused(gate: Gate) -> None:
    with socket.socket() as sock, pytest.raises(ListenerMismatch, match="does not listen"):
        accept_many(sock, gate)
    r, w = os.pipe()
    with pytest.raises(ListenerMismatch):
        accept_many(r, gate)
    os.close(r)
    os.close(w)


def test_running_out_of_descriptors_loses_no_connection(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 1):
        with FewDescriptors(), pytest.raises(SystemCallError, match="Too many open files"):
            accept_many(listener, gate)
        assert gate.active == 0
        accept(listener, gate).close()


class Running:
    """``loop.run()`` in a thread."""

    def __init__(self, loop: AcceptLoop) -> None:
        self.loop = loop
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> None:
        self.thread.join(LONG)
        assert not self.thread.is_alive()


def echo(connection: CountedSocket, _: object = None) -> None:
    with connection:
        connection.sendall(connection.recv(100))


def test_the_loop_serves_several_listeners_until_the_gate_closes(listener: socket.socket, gate: Gate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second, AcceptLoop([listener, second], gate, echo) as loop:
        running = Running(loop)
        for each in (listener, second, listener):
            with Clients(each, 1) as (client,):
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
        gate.close()
        running.join()
        with Clients(listener, 1):
            assert select.select([listener], [], [], LONG)[0]
    assert gate.counters.accepted == gate.counters.finished == 3
    assert not running.errors


def test_the_loop_stops_when_told(listener: socket.socket, gate: Gate) -> None:
    with AcceptLoop([listener], gate, echo) as loop:
        running = Running(loop)
        loop.stop()
        running.join()
        loop.run()
    assert not gate.closed


def test_the_loop_waits_for_room(listener: socket.socket) -> None:
    gate = Gate(limit=2)
    taken: list[CountedSocket] = []
    with Clients(listener, 5), AcceptLoop([listener], gate, lambda c, _: taken.append(c)) as loop:
        running = Running(loop)
        for n in range(2, 6):
            until(lambda n=n: len(taken) == n)  # type: ignore[misc]
            assert gate.active == 2
            taken[n - 2].close()
        gate.close()
        running.join()
        taken[4].close()


def test_the_loop_pauses_without_descriptors_and_says_so_once(listener: socket.socket, gate: Gate) -> None:
    said: list[str] = []
    served = threading.Event()

    def handler(connection: CountedSocket, _: object) -> None:
        connection.close()
        served.set()

    with AcceptLoop([listener], gate, handler, on_pause=said.append) as loop:
        running = Running(loop)
        with Clients(listener, 1) as (client,):
            assert served.wait(LONG)
            served.clear()
        with socket.socket() as client:
            with FewDescriptors():
                before = time.process_time()
                client.connect(listener.getsockname())
                until(lambda: bool(said))
                assert not served.wait(0.3)
                assert time.process_time() - before < 0.25
            assert served.wait(LONG)
        gate.close()
        running.join()
    assert len(said) == 1
    assert "open-files limit" in said[0]


def test_a_handler_that_raises_ends_the_loop_and_closes_what_it_had(listener: socket.socket, gate: Gate) -> None:
    def handler(connection: CountedSocket, _: object) -> None:
        raise KeyError("bug")

    with Clients(listener, 3) as clients, AcceptLoop([listener], gate, handler) as loop:
        running = Running(loop)
        running.join()
        assert clients[0].recv(1) == b""
    assert [type(error) for error in running.errors] == [KeyError]
    assert gate.counters.active == 0
    assert gate.counters.forced >= 1


@pytest.mark.parametrize("leaves", ["open", "closed"])
def test_a_client_that_has_hung_up_ends_no_loop(listener: socket.socket, gate: Gate, leaves: str) -> None:
    def handler(connection: CountedSocket, _: object) -> None:
        if leaves == "open":
            connection.getpeername()
            connection.sendall(b"x")
            connection.close()
        else:
            with connection:
                connection.sendall(connection.recv(1))

    for _ in range(5):
        with socket.create_connection(listener.getsockname()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with AcceptLoop([listener], gate, handler, batch=1 if leaves == "closed" else 64) as loop:
        running = Running(loop)
        with Clients(listener, 1) as (client,):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        loop.stop()
        running.join()
    assert running.errors == []
    assert (gate.counters.accepted, gate.counters.forced) == (6, 0)


def test_what_fails_like_a_client_that_has_hung_up_and_is_not_ends_the_loop(
    listener: socket.socket, gate: Gate
) -> None:
    def handler(connection: CountedSocket, _: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "by somebody else")

    with Clients(listener, 1), AcceptLoop([listener], gate, handler) as loop:
        running = Running(loop)
        running.join()
    assert [type(error) for error in running.errors] == [ConnectionResetError]


def test_a_listener_that_is_gone_ends_the_loop(gate: Gate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone, AcceptLoop([gone], gate, echo) as loop:
        running = Running(loop)
        with Clients(gone, 1) as (client,):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        gone.shutdown(socket.SHUT_RDWR)
        running.join()
    assert [type(error) for error in running.errors] == [SystemCallError]


def test_processes_share_gate_and_listener_and_a_killed_one_is_settled(listener: socket.socket, gate: Gate) -> None:
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            with AcceptLoop([listener], gate, lambda c, _: c.detach(), batch=1) as loop:
                loop.run()
            signal.pause()
        pids.append(pid)
    with Clients(listener, 30):
        until(lambda: gate.active == 30)
        gate.close()
        with Clients(listener, 1):
            os.kill(pids[0], signal.SIGKILL)
            for pid in pids[1:]:
                os.kill(pid, signal.SIGKILL)
            assert gate.wait(LONG)
            gate.reopen()
            accept(listener, gate).close()
    for pid in pids:
        os.waitpid(pid, 0)
    assert gate.counters == Counters(accepted=31, forced=30, finished=1, refused=gate.counters.refused)


def test_under_load_every_connection_is_answered_or_still_queued(listener: socket.socket, gate: Gate) -> None:
    answers: list[bytes] = []
    with AcceptLoop([listener], gate, lambda c, _: threading.Thread(target=echo, args=(c,)).start()) as loop:
        running = Running(loop)

        def client() -> None:
            for _ in range(50):
                with socket.create_connection(listener.getsockname(), LONG) as sock:
                    sock.sendall(b"x")
                    answers.append(sock.recv(1))

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            gate.close()
            running.join()
            assert gate.wait(LONG)
            assert gate.active == 0
            gate.reopen()
            running = Running(loop)
        for thread in threads:
            thread.join(LONG)
        gate.close()
        running.join()
        assert gate.wait(LONG)
    assert answers == [b"x"] * 200
    assert gate.counters.accepted == gate.counters.finished == 200
