"""A running service goes from one owner to another, one or both of them masters: under load, with deaths at bad moments."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ..cli import DEADLINE, PACKAGE, Running, environment, wait_for
from ..cli.schema import check
from . import Load, Service, kill, quick, request, rude

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A server that takes part by itself. It answers as the others do: release, generation, pid.
SERVICE = """
import os, sys, threading, {package}
service = {package}.Service("app", path=sys.argv[1], probation=float(sys.argv[3]))
sock = service.listen("http", sys.argv[2])
def handle(connection, _):
    with connection:
        connection.settimeout(10)
        try:
            connection.recv(4096)
            body = f"service {service.generation.number} {os.getpid()}".encode()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
        except OSError:
            pass
loop = {package}.AcceptLoop([sock], service.gate, handle, batch=1)
service.ready()
print("ready", sock.getsockname()[1], flush=True)
threading.Thread(target=loop.run, daemon=True).start()
service.wait()
service.drain()
service.close()
"""

#: Accepts by itself, offers with ``send``, and stops when that has returned.
SENDER = """
import os, socket, sys, threading, {package}
sock = socket.create_server(("127.0.0.1", 0), backlog=512)
print(sock.getsockname()[1], flush=True)
over = threading.Event()
def handle(connection):
    with connection:
        connection.recv(4096)
        body = f"sender 1 {os.getpid()}".encode()
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
def accept():
    sock.settimeout(0.05)
    while not over.is_set():
        try:
            connection, _ = sock.accept()
        except TimeoutError:
            continue
        connection.settimeout(10)
        handle(connection)
thread = threading.Thread(target=accept)
thread.start()
{package}.send(sys.argv[1], {"http": sock})
over.set()
thread.join()
"""


class Program:
    """One of these, running."""

    def __init__(self, code: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code.replace("{package}", PACKAGE), *words],
            env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        self.port = int(self.first.split()[-1] or 0)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            pass

    def ends(self) -> int:
        return self.process.wait(DEADLINE)


def taker(folder: Path, *options: str, wait: bool = True, **more: object) -> Service:
    """A master that takes over at the path of the others in this folder."""
    service = Service(folder, *quick("--takeover", "always", *options), bind="", wait=False, **more)  # type: ignore[arg-type]
    if wait:
        service.running.says("has given the service away")
        service.serves()
    return service


def owner(folder: Path) -> int:
    """Who answers at the path."""
    try:
        return int(ask(folder / "master.sock", "status", timeout=5)["pid"])
    except (HandoffError, OSError):
        return 0


def listening(port: int) -> int:
    """How many listeners there are at this port, all processes together."""
    found = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return len(found.stdout.splitlines())


@pytest.fixture
def masters() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


# --- from master to master --------------------------------------------------------------------------------------


def test_a_service_goes_from_master_to_master_without_a_failed_request(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    address = first.address()
    with Load(address) as load:
        before = first
        for number in range(2, 8):
            after = masters.enter_context(taker(tmp_path))
            assert after.status()["generation"] == number
            load.heard(number)
            assert before.running.ends() == 0, before.running.text()
            assert owner(tmp_path) == after.pid
            before = after
        before.upgrade()
        load.heard(8)
    assert not load.failures, load.failures
    assert before.stop() == 0
    assert listening(address[1]) == 0
    assert os.listdir(tmp_path) == ["release.env"]


def test_connections_never_go_to_two_masters_at_once(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    with Load(first.address()) as load:
        second = masters.enter_context(taker(tmp_path))
        load.heard(2)
        first.running.ends()
        load.heard(2, 200)
        second.stop()
    starts = sorted((began, generation) for began, _, generation in load.answers)
    switch = next(began for began, generation in starts if generation == 2)
    late = [began for began, generation in starts if generation == 1 and began > switch + 0.2]
    assert not late, f"{len(late)} connections went to the old owner after the switch"


def test_what_the_old_master_has_begun_is_finished(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    address = first.address()
    answers: list[tuple[str, int, int]] = []
    slow = threading.Thread(target=lambda: answers.append(request(address, "/sleep2")))
    slow.start()
    wait_for(lambda: first.status()["generations"][-1]["active"], "the slow request to be seen")
    second = masters.enter_context(taker(tmp_path))
    assert request(address)[1] == 2
    slow.join(DEADLINE)
    assert answers[0][1] == 1
    assert first.running.ends() == 0
    second.stop()


def test_a_second_master_by_mistake_is_told_so(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    for words in ([], ["--takeover", "never"]):
        second = Running("run", "--path", str(first.path), *words, "--", *rude())
        assert second.ends() == 125
        (line,) = second.err
        assert f"{first.path}" in line
    assert "serves at" in line or "answers" in line or "in use" in line
    assert first.status()["state"] == "serving"
    assert first.stop() == 0


def test_a_taker_that_never_becomes_ready_changes_nothing(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    with Load(first.address()) as load:
        for fault in ("exit3", "hang"):
            first.release(FAULT=fault)
            second = Running(
                "run", "--path", str(first.path), "--env-file", str(first.env_file), "--takeover", "always",
                "--ready-timeout", "1s", "--", *rude(),
            )  # fmt: skip
            status = second.ends()
            assert status == (3 if fault == "exit3" else 125), second.text()
            assert "does not serve" in second.text()
            wait_for(lambda: first.status()["taker"] is None, "the owner to be free again")
            facts = first.status()
            assert facts["last_upgrade"]["result"] == "failed"
            check("master", facts)
        first.release()
        first.upgrade()
        load.heard(2)
    assert set(load.generations()) == {1, 2}
    assert not load.failures, load.failures
    first.stop()


def test_a_taker_that_is_killed_before_it_is_ready_changes_nothing(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    with Load(first.address()) as load:
        first.release(FAULT="hang")
        second = taker(tmp_path, wait=False)
        second.release(FAULT="hang")
        started = second.running.says("started (pid")
        kill(second.pid)
        second.running.ends()
        first.running.says("was not handed over")
        orphan = int(started.rpartition("pid ")[2].rstrip(")"))
        wait_for(lambda: not alive(orphan), "the end of what the dead master left")
        load.heard(1)
        first.release()
        assert first.upgrade()["to"] == 2
        load.heard(2)
    assert not load.failures, load.failures
    first.stop()


def test_a_taker_that_is_killed_in_its_probation_loses_the_service_to_the_old_one(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick("--probation", "20s")))
    address = first.address()
    second = taker(tmp_path)
    assert request(address)[1] == 2
    kill(second.pid)
    second.running.process.wait(DEADLINE)  # its output stays open as long as its generation lives
    first.running.says("was not handed over")
    wait_for(lambda: owner(tmp_path) == first.pid, "the old owner to answer again")
    with Load(address) as load:
        load.heard(1, 100)
        first.upgrade()
    assert not load.failures, load.failures
    assert set(load.generations()) == {1, 2}
    wait_for(lambda: listening(address[1]) <= 10, "the end of what the dead master left")
    first.stop()
    assert listening(address[1]) == 0


def test_a_generation_that_dies_in_probation_gives_the_service_back(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick("--probation", "20s")))
    second = masters.enter_context(taker(tmp_path))
    (pid,) = second.generations()[2]["pids"]
    os.kill(pid, signal.SIGKILL)
    assert second.running.ends() == 128 + 9
    assert "serves again" in second.running.text()
    assert request(first.address())[1] == 1
    assert owner(tmp_path) == first.pid
    first.stop()


def test_an_old_master_that_is_killed_after_the_commit_leaves_nothing(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick("--probation", "20s")))
    address = first.address()
    old = list(first.generations()[1]["pids"])
    with Load(address) as load:
        second = masters.enter_context(taker(tmp_path))
        kill(first.pid)
        load.heard(2, 100)
        wait_for(
            lambda: not any(map(alive, old)),
            "the end of the old generation",
        )
        second.upgrade()
        load.heard(3)
    assert not load.failures, load.failures
    second.stop()
    assert listening(address[1]) == 0


def test_a_new_master_that_is_killed_while_the_old_one_drains_is_succeeded_beside_it(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    address = first.address()
    answers: list[tuple[str, int, int]] = []
    slow = threading.Thread(target=lambda: answers.append(request(address, "/sleep6")))
    slow.start()
    wait_for(lambda: first.status()["generations"][-1]["active"], "the slow request to be seen")
    second = taker(tmp_path)
    first.running.says("has the service for good")
    kill(second.pid)
    second.running.process.wait(DEADLINE)  # its output stays open as long as its generation lives
    with Load(address) as load:
        third = masters.enter_context(taker(tmp_path, wait=False))
        third.running.says("is alive: it goes on")
        third.serves()
        third.upgrade()
        load.heard(3)
    assert not load.failures, load.failures
    slow.join(DEADLINE)
    assert answers[0][1] == 1, "the old master's generation was ended as a stray"
    assert first.running.ends() == 0
    third.stop()


def test_a_signal_in_the_probation_of_the_next_ends_the_old_one_early(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    first = masters.enter_context(Service(tmp_path, *quick("--probation", "60s")))
    second = masters.enter_context(taker(tmp_path))
    assert first.stop() == 0
    assert request(second.address())[1] == 2
    second.stop()


def test_a_drain_before_the_commit_gives_the_taker_up(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    first = masters.enter_context(Service(tmp_path, *quick()))
    second = taker(tmp_path, wait=False)
    second.release(FAULT="hang")
    second.running.says("started (pid")
    first.stop()
    second.running.signal(signal.SIGTERM)
    second.running.ends()


def test_every_kind_of_listener_goes_along(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    path = str(tmp_path / "app.unix")
    serve_all = (
        "import os, selectors, socket\n"
        "fds = range(3, 3 + int(os.environ['LISTEN_FDS']))\nselector = selectors.DefaultSelector()\n"
        "for fd in fds:\n    sock = socket.socket(fileno=fd)\n    sock.setblocking(False)\n"
        "    selector.register(sock, selectors.EVENT_READ)\n"
        "body = ('x ' + os.environ['FDHANDOFF_GENERATION'] + ' ' + str(os.getpid())).encode()\n"
        "while True:\n    for key, _ in selector.select():\n        sock = key.fileobj\n"
        "        if sock.type == socket.SOCK_DGRAM:\n"
        "            data, who = sock.recvfrom(100)\n            sock.sendto(body, who)\n            continue\n"
        "        try:\n            connection, _ = sock.accept()\n            connection.settimeout(10)\n"
        "            connection.recv(4096)\n"
        "            connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body)\n"
        "            connection.close()\n        except OSError:\n            continue\n"
    )
    command = [sys.executable, "-c", serve_all]
    binds = [
        "--bind",
        f"unix=unix:{path}",
        "--bind",
        "udp=udp:127.0.0.1:0",
        "--bind",
        f"abstract=@fdhandoff-test-{os.getpid()}",
    ]
    first = masters.enter_context(Service(tmp_path, *quick(*binds), command=command))
    with Load(path) as unix, Load(first.address()) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as me:
        me.settimeout(DEADLINE)
        before = first
        for number in (2, 3):
            after = masters.enter_context(taker(tmp_path, command=command))
            modes = {one["name"]: one["switch"] for one in after.status()["listeners"]}
            assert modes == {"http": "kernel", "unix": "rename", "udp": "kernel", "abstract": "shared"}
            unix.heard(number)
            tcp.heard(number)
            me.sendto(b"?", after.address(2))
            assert me.recv(100).split()[1] == b"%d" % number
            assert before.running.ends() == 0
            before = after
        before.upgrade()
        unix.heard(4)
    assert not unix.failures, unix.failures
    assert not tcp.failures, tcp.failures
    assert before.stop() == 0
    assert os.listdir(tmp_path) == ["release.env"]


# --- from a master to others, and back ----------------------------------------------------------------------------


def test_from_a_master_to_a_service_and_back(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    master = masters.enter_context(Service(tmp_path, *quick()))
    host, port = master.address()
    with Load((host, port)) as load:
        for number in (2, 4, 6):
            service = masters.enter_context(Program(SERVICE, str(master.path), f"{host}:{port}", "0.3"))
            assert service.port == port
            load.heard(number)
            assert master.running.ends() == 0, master.running.text()
            master = masters.enter_context(taker(tmp_path))
            assert master.status()["listeners"][0]["origin"] == "taken over"
            assert master.status()["listeners"][0]["switch"] == "kernel"
            load.heard(number + 1)
            assert service.ends() == 0
        master.upgrade()
        load.heard(8)
    assert not load.failures, load.failures
    assert master.stop() == 0
    assert listening(port) == 0


def test_a_service_whose_taker_is_killed_before_it_is_ready_serves_on_as_before(
    tmp_path: Path, masters: contextlib.ExitStack
) -> None:
    service = masters.enter_context(Program(SERVICE, str(tmp_path / "master.sock"), "127.0.0.1:0", "5"))
    with Load(("127.0.0.1", service.port)) as load:
        for how in ("kill", "fail"):
            master = Service(tmp_path, *quick("--ready-timeout", "30s"), bind="", wait=False)
            master.release(FAULT="hang")
            started = master.running.says("started (pid")
            orphan = int(started.rpartition("pid ")[2].rstrip(")"))
            if how == "kill":
                kill(master.pid)
                os.kill(orphan, signal.SIGKILL)
            else:
                master.running.signal(signal.SIGTERM)
            master.running.ends()
            load.heard(1, 50)
            wait_for(lambda: listening(service.port) == 1, "the service's listener to be alone")
    assert not load.failures, load.failures
    assert set(load.generations()) == {1}


def test_from_a_plain_send(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    sender = masters.enter_context(Program(SENDER, str(tmp_path / "master.sock")))
    with Load(("127.0.0.1", sender.port)) as load:
        master = masters.enter_context(taker(tmp_path))
        load.heard(2)
        assert sender.ends() == 0
        master.upgrade()
        load.heard(3)
    assert not load.failures, load.failures
    master.stop()
    assert listening(sender.port) == 0


def test_from_a_holder_whose_queue_outlives_the_master(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    hold = Running("hold", str(tmp_path / "hold.sock"), "--bind", "http=127.0.0.1:0")
    masters.callback(hold.stop)
    port = int(hold.says("holding http").rpartition(":")[2])
    mistaken = Running("run", "--path", str(tmp_path / "hold.sock"), "--", *rude())
    assert mistaken.ends() == 125
    assert f"say --from {tmp_path / 'hold.sock'}" in mistaken.text()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as early:
            early.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with Service(tmp_path, *quick("--from", str(tmp_path / "hold.sock")), bind="") as master:
                assert b"200 OK" in early.recv(4096)
                assert master.status()["path"] == str(master.path)
                master.upgrade()
                assert master.stop() == 0
    assert hold.process.poll() is None


def test_take_takes_from_a_master_and_gives_to_one(tmp_path: Path, masters: contextlib.ExitStack) -> None:
    master = masters.enter_context(Service(tmp_path, *quick()))
    address = master.address()
    with Load(address) as load:
        take = Running("take", str(master.path), "--probation", "300ms", "--", *rude())
        masters.callback(take.stop)
        take.says("serves instead of")
        assert master.running.ends() == 0
        master = masters.enter_context(taker(tmp_path))
        load.heard(3)
    # The command was one that dies of TERM whatever it is doing: its own last answers are not in question here.
    assert sum(load.failures.values()) <= 8, load.failures
    master.stop()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
