"""Listeners of every kind under the master: Unix sockets, UDP, both families, one queue for all; and several workers."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs_that
from ..cli import DEADLINE, wait_for
from . import Load, Service, kill, polite, quick, request, rude

if TYPE_CHECKING:
    from pathlib import Path

UDP = """
import os, socket
sock = socket.socket(fileno=3); sock.setblocking(True)
while True:
    data, source = sock.recvfrom(2000)
    sock.sendto(os.environ["FDHANDOFF_GENERATION"].encode() + b" " + data, source)
"""


def test_a_unix_socket_is_switched_by_a_rename(tmp_path: Path) -> None:
    public = tmp_path / "app.sock"
    with Service(tmp_path, *quick(), bind=f"unix:{public}") as service, Load(str(public), 3) as load:
        for number in range(2, 12):
            assert service.upgrade()["result"] == "done"
            load.heard(number)
        service.settled(11)
        load.end()
        assert not load.failures
        assert set(load.generations()) == set(range(1, 12))
        assert service.stop() == 0
        assert [one.name for one in tmp_path.iterdir()] == ["release.env"]


def test_the_public_name_never_has_other_permissions_than_those_asked_for(tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    public = tmp_path / "app.sock"
    seen: set[tuple[int, int, int]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            found = public.lstat()
            seen.add((found.st_uid, found.st_gid, found.st_mode & 0o777))

    watcher = threading.Thread(target=look)
    bind = f"unix:{public}?owner=nobody&group=12345&mode=0620"
    with Service(tmp_path, *quick(), bind=bind) as service, Load(str(public), 2) as load:
        watcher.start()
        for number in range(2, 6):
            service.upgrade()
            load.heard(number)
        over.set()
        watcher.join(DEADLINE)
        load.end()
        assert not load.failures
        assert seen == {(65534, 12345, 0o620)}
        (pid,) = (pid for one in service.generations().values() for pid in one["pids"])
        kill(service.pid)
        kill(pid)
        # What they left belongs to another, and yet is no obstacle: we gave it to him.
        with Service(tmp_path, *quick(), bind=bind) as again:
            assert request(str(public))[1] == 1
            assert again.stop() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release.env"]


def test_a_server_that_removes_what_it_bound_harms_nobody(tmp_path: Path) -> None:
    """It unlinks its socket's name when it begins and when it ends, as several do."""
    public = tmp_path / "app.sock"
    command = polite(
        "import atexit; remove = lambda: os.path.exists(listener.getsockname()) and os.unlink(listener.getsockname())\n"
        "remove(); atexit.register(remove)"
    )
    with (
        Service(tmp_path, *quick(), bind=f"unix:{public}", command=command) as service,
        Load(str(public), 2) as load,
    ):
        for number in range(2, 6):
            service.upgrade()
            load.heard(number)
        service.settled(5)
        service.release(FAULT="hang")
        service.command("--no-wait")
        wait_for(lambda: service.status()["last_upgrade"]["step"] == "ready")
        assert service.command("--abort")[0] == 0
        service.settled(5)
        load.heard(5)
        service.release()
        service.upgrade(wait="served")
        load.heard(7)
        service.command("--abort")
        service.settled()
        load.end()
        assert not load.failures
        assert request(str(public))[1] in (5, 7)


def test_a_unix_path_with_a_live_owner_is_left_alone(tmp_path: Path) -> None:
    public = tmp_path / "app.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(public))
        other.listen()
        before = public.stat().st_ino
        with Service(tmp_path, bind=f"unix:{public}", wait=False) as service:
            assert service.running.ends() == 125
            assert "in use" in service.running.text()
        assert public.stat().st_ino == before


def test_an_abstract_name_is_shared(tmp_path: Path) -> None:
    name = f"\0fdhandoff-test-{tmp_path.name}"
    with (
        Service(tmp_path, *quick(), bind=f"@{name[1:]}", command=polite()) as service,
        Load(name, 2) as load,
    ):
        assert service.status()["listeners"][0]["switch"] == "shared"
        for number in range(2, 6):
            service.upgrade()
            load.heard(number)
        service.settled(5)
        load.end()
        assert not load.failures


def test_one_queue_for_all_generations_of_a_server_that_drains(tmp_path: Path) -> None:
    with (
        Service(tmp_path, *quick("--switch", "shared"), command=polite()) as service,
        Load(service.address(), 3) as load,
    ):
        assert service.status()["listeners"][0]["switch"] == "shared"
        for number in range(2, 8):
            assert service.upgrade()["result"] == "done"
            load.heard(number)
        service.settled(7)
        load.end()
        assert not load.failures


def test_udp_flows_go_to_one_generation_each_and_none_is_lost(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), bind="udp:127.0.0.1:0", command=[sys.executable, "-c", UDP]) as service:
        host, _, port = service.status()["listeners"][0]["address"].removeprefix("udp:").rpartition(":")
        flows = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
        over, lost = threading.Event(), []
        heard: dict[int, list[int]] = {number: [] for number in range(len(flows))}

        def talk(number: int, sock: socket.socket) -> None:
            sock.settimeout(5)
            sock.connect((host, int(port)))
            while not over.is_set():
                sock.send(b"x")
                try:
                    heard[number].append(int(sock.recv(100).split()[0]))
                except OSError as error:
                    lost.append(repr(error))
                over.wait(0.002)

        threads = [threading.Thread(target=talk, args=pair) for pair in enumerate(flows)]
        for thread in threads:
            thread.start()
        for number in range(2, 6):
            assert service.upgrade()["result"] == "done"
            wait_for(lambda number=number: all(said and said[-1] == number for said in heard.values()))
        over.set()
        for thread, sock in zip(threads, flows, strict=True):
            thread.join()
            sock.close()
        assert not lost
        assert all(said == sorted(said) for said in heard.values())  # never back to an older one


@pytest.mark.parametrize("bind", [":0", "[::]:0", "[::1]:0", "0.0.0.0:0", "localhost:0"])
def test_every_address_is_probed_and_switched(tmp_path: Path, bind: str) -> None:
    command = rude()
    command[2] = command[2].replace(
        "while True:\n    connection",
        "def also(fd):\n"
        "    other = socket.socket(fileno=fd); other.setblocking(True)\n"
        "    while True:\n"
        "        threading.Thread(target=serve, args=(other.accept()[0],), daemon=True).start()\n"
        "for fd in range(4, 3 + int(os.environ['LISTEN_FDS'])):\n"
        "    threading.Thread(target=also, args=(fd,), daemon=True).start()\n"
        "while True:\n    connection",
    )
    with Service(tmp_path, *quick(), bind=bind, command=command) as service:
        port = service.address()[1]
        hosts = {":0": ["127.0.0.1", "::1"], "[::]:0": ["::1"], "[::1]:0": ["::1"], "0.0.0.0:0": ["127.0.0.1"]}.get(
            bind
        )
        hosts = hosts or [one["address"].rpartition(":")[0].strip("[]") for one in service.status()["listeners"]]
        for number in range(1, 4):
            assert {request((host, port))[1] for host in hosts for _ in range(20)} == {number}
            service.upgrade()


def test_workers_share_their_generations_queue(tmp_path: Path) -> None:
    with (
        Service(tmp_path, *quick("--workers", "3"), env={"SLOW": "0"}) as service,
        Load(service.address(), 4) as load,
    ):
        assert len(service.generations()[1]["pids"]) == 3
        for number in range(2, 5):
            service.upgrade()
            load.heard(number, 100)
        victim = service.generations()[4]["pids"][0]
        address = service.address()
        wait_for(lambda: len({request(address)[2] for _ in range(30)}) == 3, "answers of all three")
        load.end()
        assert not load.failures
        kill(victim)
        assert {request(address)[1] for _ in range(50)} == {4}  # the others serve what comes
        wait_for(lambda: len(service.generations()[4]["pids"]) == 3)
        assert victim not in service.generations()[4]["pids"]


def test_a_process_that_escapes_its_generation_gets_no_connection(tmp_path: Path) -> None:
    """It goes on accepting from the slot's old socket, which the slot has no longer."""
    command = rude()
    command[2] = command[2].replace(
        "while True:\n    connection",
        "if os.environ.get('ESCAPE') and os.fork() == 0:\n    os.setsid()\n    signal.signal(15, signal.SIG_IGN)\n"
        "    body = answer = b'HTTP/1.1 200 OK\\r\\n\\r\\nescaped 99 99'\n"
        "while True:\n    connection",
    )
    with Service(tmp_path, *quick("--max-draining", "1"), command=command) as service:
        service.release(ESCAPE="1")
        service.upgrade()
        service.settled(2)
        service.release()
        for number in range(3, 8):  # its slot is used again
            service.upgrade()
            service.settled(number)
            address = service.address()
            assert {request(address)[:2] for _ in range(50)} == {("", number)}


def test_a_generation_is_ready_when_all_of_its_workers_have_said_so(tmp_path: Path) -> None:
    command = rude()
    command[2] = command[2].replace(
        'if os.environ.get("NOTIFY_SOCKET")',
        "import fcntl\n"
        f"turn = open({str(tmp_path / 'turn')!r}, 'a'); fcntl.flock(turn, fcntl.LOCK_EX); time.sleep(0.1)\n"
        "if os.environ.get('NOTIFY_SOCKET')",
    )
    # They take turns, so that the first has said it long before the last.
    command[2] = command[2].replace('if fault.startswith("die")', 'turn.close()\nif fault.startswith("die")')
    with Service(tmp_path, *quick("--workers", "3", "--ready", "notify"), command=command) as service:
        before = service.generations()[1]["pids"]
        for number in (2, 3):
            assert service.upgrade()["result"] == "done"
            assert len(service.generations()[number]["pids"]) == 3
        assert len(before) == 3
        assert "exited with status" not in service.running.text()
