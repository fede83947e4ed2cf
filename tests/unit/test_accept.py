"""Accepted connections are inside the gate, each exactly once, until their descriptor is closed, whoever closes it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.accept import AcceptLoop, CountedSocket, accept_many, protocol_handler
from fdhandoff.counters import Counters
from fdhandoff.errors import GateClosed, ListenerMismatch, SystemCallError
from fdhandoff.gate import Gate
from tests.conftest import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONG = 10.0


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.release()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as made:
        yield made


class Clients:
    """Connections to ``listener`` that nobody has accepted yet."""

    def __init__(self, listener: socket.socket, n: int) -> None:
        self.sockets = [socket.create_connection(listener.getsockname(), LONG) for _ in range(n)]

    def __enter__(self) -> list[socket.socket]:
        return self.sockets

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()


def accept(listener: socket.socket, gate: Gate, **options: Any) -> CountedSocket:
    assert select.select([listener], [], [], LONG)[0]
    (connection,) = accept_many(listener, gate, 1, **options)
    return connection


@pytest.fixture
def connection(listener: socket.socket, gate: Gate) -> Iterator[CountedSocket]:
    with Clients(listener, 1), accept(listener, gate, timeout=LONG) as made:
        yield made


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up
        os.sched_yield()


# --- a batch --------------------------------------------------------------------------------------------------


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


class FewDescriptors:
    """No further descriptor can be opened in the block."""

    def __enter__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.taken = [os.open(os.devnull, os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, self.limits[1]))
        try:
            while True:
                self.taken.append(os.dup(self.taken[0]))
        except OSError:
            pass

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        for fd in self.taken:
            os.close(fd)


def test_running_out_of_descriptors_loses_no_connection(listener: socket.socket, gate: Gate) -> None:
    with Clients(listener, 1):
        with FewDescriptors(), pytest.raises(SystemCallError, match="Too many open files"):
            accept_many(listener, gate)
        assert gate.active == 0
        accept(listener, gate).close()


# --- leaving --------------------------------------------------------------------------------------------------


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


# --- the loop -------------------------------------------------------------------------------------------------


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


# --- asyncio --------------------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


async def ask(listener: socket.socket, *, close: bool = True) -> asyncio.StreamWriter | None:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.read(100), LONG) == b"hello"
    if not close:
        return writer
    writer.close()
    await writer.wait_closed()
    return None


def test_protocols_are_served_and_counted(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        with AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            running = asyncio.create_task(loop.run_async())
            await asyncio.gather(*(ask(listener) for _ in range(20)))
            writer = await ask(listener, close=False)
            assert writer is not None
            gate.close()
            await asyncio.wait_for(running, LONG)
            assert gate.active >= 1
            assert not await gate.wait_async(0)
            writer.close()
            assert await gate.wait_async(LONG)

    asyncio.run(main())
    assert gate.counters.accepted == gate.counters.finished == 21


def test_nothing_is_accepted_after_close_in_the_same_turn(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        with Clients(listener, 3), AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            running = asyncio.create_task(loop.run_async())
            gate.close()
            await asyncio.wait_for(running, LONG)
            assert select.select([listener], [], [], LONG)[0]

    asyncio.run(main())
    assert gate.counters.accepted == 0


def test_coroutines_run_as_tasks_and_their_errors_are_the_loops(listener: socket.socket, gate: Gate) -> None:
    async def handler(connection: CountedSocket, _: object) -> None:
        with connection:
            raise KeyError("bug")

    async def main() -> None:
        told: list[dict[str, Any]] = []
        failed = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: (told.append(context), failed.set()))
        with Clients(listener, 1), AcceptLoop([listener], gate, handler) as loop:
            running = asyncio.create_task(loop.run_async())
            await asyncio.wait_for(failed.wait(), LONG)
            loop.stop()
            await asyncio.wait_for(running, LONG)
        assert type(told[0]["exception"]) is KeyError

    asyncio.run(main())
    assert gate.counters == Counters(accepted=1, finished=1)


def test_the_asyncio_loop_waits_for_room(listener: socket.socket) -> None:
    gate = Gate(limit=1)

    async def main() -> None:
        with AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            running = asyncio.create_task(loop.run_async())
            await asyncio.gather(*(ask(listener) for _ in range(10)))
            gate.close()
            await asyncio.wait_for(running, LONG)
            assert await gate.wait_async(LONG)

    asyncio.run(main())
    assert gate.counters.finished == 10


def test_the_asyncio_loop_pauses_without_descriptors(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        said: list[str] = []
        loop = AcceptLoop([listener], gate, lambda c, _: c.close(), on_pause=said.append)
        running = asyncio.create_task(loop.run_async())
        await asyncio.sleep(0)
        with socket.socket() as client:
            with FewDescriptors():
                client.connect(listener.getsockname())
                while not said:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.05)
            while not gate.counters.finished:
                await asyncio.sleep(0.001)
        assert len(said) == 1
        loop.stop()
        await asyncio.wait_for(running, LONG)
        loop.close()

    asyncio.run(main())


def test_a_cancelled_loop_leaves_the_listener_alone(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        with AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.run_async(), 0.01)
            running = asyncio.create_task(loop.run_async())
            await ask(listener)
            loop.stop()
            await asyncio.wait_for(running, LONG)
        gate.close()
        assert await gate.wait_async(LONG)

    asyncio.run(main())
