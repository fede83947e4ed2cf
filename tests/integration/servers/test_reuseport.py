"""Servers that bind their address themselves, with SO_REUSEPORT, and know of nobody: under ``run`` the kernel switches them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..cli import DEADLINE, free_port, verb, wait_for
from ..master import RUDE, Load, Service, kill, quick, read_answer, request

if TYPE_CHECKING:
    from collections.abc import Sequence

UNMODIFIED = Path(__file__).parent / "unmodified"

#: It dies at once of SIGTERM. What it does wrong is asked by FAULT.
OWN = RUDE.replace(
    "listener = socket.socket(fileno=3)\n",
    """
assert "LISTEN_FDS" not in os.environ
def bound(host):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if fault != "alone":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, int(sys.argv[1])))
    sock.listen()
    return sock
if fault == "child" and os.fork():
    os.wait()
    sys.exit(0)
if fault == "twice":
    second = bound("127.0.0.1")
listener = bound("0.0.0.0" if fault == "elsewhere" else "127.0.0.1")
""",
)


def service(folder: Path, port: int, command: Sequence[str], *options: str, bind: str = "", **how: Any) -> Service:
    quickly = quick("--convention", "reuseport", *options)
    return Service(folder, *quickly, bind=f"own={bind or '127.0.0.1'}:{port}", command=command, **how)


def own(folder: Path, port: int, *options: str, **how: Any) -> Service:
    return service(folder, port, [sys.executable, "-c", OWN, str(port)], *options, **how)


def test_a_server_that_dies_at_once_loses_no_connection(tmp_path: Path) -> None:
    port = free_port()
    with own(tmp_path, port) as one:
        with Load(("127.0.0.1", port)) as load:
            for number in (2, 3, 4, 5):
                assert one.upgrade(canary="50%:100ms" if number == 3 else None)["result"] == "done"
                load.heard(number)
                one.settled(number)
        assert not load.failures
        assert set(load.generations()) == {1, 2, 3, 4, 5}
        assert one.stop() == 0


def with_aiohttp(folder: Path, times: int) -> None:
    port = free_port()
    words = [sys.executable, str(UNMODIFIED / "with_reuse_port.py"), str(port)]
    with service(folder, port, words) as one:
        with Load(("127.0.0.1", port)) as load:
            for number in range(2, times + 2):
                assert one.upgrade()["result"] == "done"
                load.heard(number)
                one.settled(number)
        assert not load.failures
        print(f"aiohttp with reuse_port: {times} upgrades, {len(load.answers)} requests, 0 failed")
        assert one.stop() == 0


def test_aiohttp_with_reuse_port_loses_no_request(tmp_path: Path) -> None:
    with_aiohttp(tmp_path, 2)


def test_granian_as_it_is_loses_no_request(tmp_path: Path) -> None:
    pytest.importorskip("granian", reason="needs granian: pip install 'fdhandoff[test]'")
    port = free_port()
    words = [sys.executable, "-m", "granian", "--interface", "asgi", "--no-log", "--port", str(port), "asgi:app"]
    with service(tmp_path, port, words, "--ready", "http:/", "--env", f"PYTHONPATH={UNMODIFIED}") as one:
        assert "may not do as it should" not in one.running.text()
        with Load(("127.0.0.1", port)) as load:
            for number in range(2, 5):
                assert one.upgrade()["result"] == "done"
                load.heard(number)
                one.settled(number)
        assert not load.failures
        assert one.stop() == 0


@pytest.mark.soak
def test_aiohttp_with_reuse_port_loses_no_request_in_fifty_upgrades(tmp_path: Path) -> None:
    with_aiohttp(tmp_path, 50)


@pytest.mark.parametrize("fault", ["", "child"])
def test_a_new_master_finds_what_the_generation_bound(tmp_path: Path, fault: str) -> None:
    """After a SIGKILL, and after an exec in place."""
    port = free_port()
    address = ("127.0.0.1", port)
    with own(tmp_path, port) as first:
        first.release(FAULT=fault)
        assert first.upgrade()["result"] == "done"
        first.settled(2)
        kill(first.pid)
        with own(tmp_path, port) as second:
            assert request(address)[1] == 2
            second.release()
            with Load(address) as load:
                assert second.upgrade()["result"] == "done"
                load.heard(3)
                second.settled(3)
                assert verb("upgrade", str(second.path), "--master").returncode == 0
                load.heard(3)
                assert second.upgrade()["result"] == "done"
                load.heard(4)
                second.settled(4)
            assert not load.failures
            assert second.stop() == 0


def test_a_rollback_goes_back_to_the_old_ones_own_listener(tmp_path: Path) -> None:
    port = free_port()
    with own(tmp_path, port, "--keep-old", "60s") as one:
        with Load(("127.0.0.1", port)) as load:
            assert one.upgrade()["result"] == "done"
            load.heard(2)
            assert verb("rollback", str(one.path)).returncode == 0
            load.heard(1)
            one.settled(1)
        assert not load.failures


def test_who_dies_is_succeeded_by_the_next_generation_and_who_waits_is_answered(tmp_path: Path) -> None:
    port = free_port()
    with own(tmp_path, port) as one:
        (pid,) = one.generations()[1]["pids"]
        os.kill(pid, signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE)) for _ in range(2)]
            for client in clients:
                client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            kill(pid)
            assert [read_answer(client.makefile("rb").read())[1] for client in clients] == [2, 2]
        one.running.says("generation 1 died, and with it whoever accepted what it had bound itself")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("alone", "it had not bound 127.0.0.1:{port}: a server that binds its address itself"),
        ("hang", "it has not bound 127.0.0.1:{port}, but nothing"),
        ("twice", "has bound 127.0.0.1:{port} more than once"),
        ("elsewhere", "has bound 0.0.0.0:{port}, where nothing switches its connections"),
    ],
)
def test_who_binds_otherwise_gets_no_users_and_is_told(tmp_path: Path, fault: str, reason: str) -> None:
    port = free_port()
    with own(tmp_path, port, "--ready-timeout", "3s" if fault == "hang" else "25s") as one:
        one.release(FAULT=fault)
        code, _, err = one.command()
        assert code == 1
        assert reason.format(port=port) in err
        one.settled(1)
        one.release()
        assert request(("127.0.0.1", port))[1] == 1
        assert one.upgrade()["result"] == "done"
        assert request(("127.0.0.1", port))[1] == 3


# --- gRPC -----------------------------------------------------------------------------------------------------

#: What gRPC documents for servers that are replaced: each connection is told GOAWAY in two steps when it is so old.
RECYCLING = ("grpc.max_connection_age_ms=500", "grpc.max_connection_age_grace_ms=20000")


def grpc_through(folder: Path, times: int, *options: str, fresh: bool, grace: str) -> dict[str, int]:
    """What failed, by kind."""
    pytest.importorskip("grpc", reason="needs grpc: pip install 'fdhandoff[test]'")
    from .test_grpc import Calls

    port = free_port()
    words = [sys.executable, str(UNMODIFIED / "grpc_server.py"), f"127.0.0.1:{port}", *options]
    with service(folder, port, words, "--grace", grace, bind="[::ffff:127.0.0.1]") as one:
        with Calls(("127.0.0.1", port), fresh=fresh) as calls:
            for number in range(2, times + 2):
                assert one.upgrade()["result"] == "done"
                wait_for(lambda number=number: calls.answers[number] >= 20, f"answers of generation {number}")
                one.settled(number)
        done = sum(calls.answers.values())
        kind = "new channel a call" if fresh else f"kept channels {' '.join(options)}"
        print(
            f"grpc.aio, {kind}: {times} upgrades, {done} calls, {sum(calls.failures.values())} failed {calls.failures}"
        )
        assert one.stop() == 0
    return dict(calls.failures)


def test_no_grpc_call_on_a_new_channel_fails(tmp_path: Path) -> None:
    assert grpc_through(tmp_path, 2, fresh=True, grace="20") == {}


def test_no_grpc_call_fails_where_the_server_recycles_its_connections(tmp_path: Path) -> None:
    assert grpc_through(tmp_path, 2, *RECYCLING, fresh=False, grace="30") == {}


@pytest.mark.soak
def test_no_grpc_call_fails_in_fifty_upgrades(tmp_path: Path) -> None:
    assert grpc_through(tmp_path, 50, fresh=True, grace="20") == {}
    assert grpc_through(tmp_path, 50, *RECYCLING, fresh=False, grace="30") == {}


@pytest.mark.soak
def test_grpc_calls_fail_on_kept_channels_alone_and_as_ended_ones(tmp_path: Path) -> None:
    failures = grpc_through(tmp_path, 50, fresh=False, grace="1")
    assert {kind.partition(":")[0] for kind in failures} <= {"StatusCode.CANCELLED", "StatusCode.UNAVAILABLE"}


def test_a_grpc_server_at_another_address_is_told_which(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs grpc: pip install 'fdhandoff[test]'")
    port = free_port()
    words = [sys.executable, str(UNMODIFIED / "grpc_server.py"), f"127.0.0.1:{port}"]
    with service(tmp_path, port, words, wait=False) as one:
        assert f"--bind '[::ffff:127.0.0.1]:{port}'" in one.running.says("name the same address in both")
        assert one.running.process.wait(DEADLINE) == 125
