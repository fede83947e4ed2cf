"""The master with listeners that somebody else made, and may hold for ever: from its start under load to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ..cli import DEADLINE, Running, wait_for
from . import Load, Service, kill, quick, request, rude

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Moves the descriptors that it was told to 3, 4, …, sets LISTEN_PID, and becomes the program: what a service manager does.
PASS = """
import fcntl, os, sys
spare = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 50) for fd in os.environ.pop("PASS").split(",") if fd]
for number, fd in enumerate(spare, 3):
    os.dup2(fd, number)
os.environ.setdefault("LISTEN_FDS", str(len(spare)))
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


def passing(*socks: Any, names: str = "", **environ: str) -> dict[str, Any]:
    """Options of ``Running``, for a program that is given these."""
    fds = [sock if isinstance(sock, int) else sock.fileno() for sock in socks]
    environ["PASS"] = ",".join(map(str, fds))
    if names:
        environ["LISTEN_FDNAMES"] = names
    return {"prefix": ("-c", PASS), "pass_fds": fds, "env": environ}


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """A listener of the service manager's, which keeps its copy."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


def served(folder: Path, sock: socket.socket, *options: str, **more: Any) -> Service:
    return Service(folder, *quick(*options), bind="", **passing(sock, names="web"), **more)


def test_an_inherited_listener_keeps_its_name_and_gets_the_switch(tmp_path: Path, held: socket.socket) -> None:
    with served(tmp_path, held) as service:
        (listener,) = service.status()["listeners"]
        assert (listener["name"], listener["switch"], listener["origin"]) == ("web", "kernel", "inherited")
        assert request(held.getsockname())[1] == 1
        assert service.stop() == 0


def test_what_waited_before_the_start_is_answered_by_the_first_generation(tmp_path: Path, held: socket.socket) -> None:
    with socket.create_connection(held.getsockname(), timeout=DEADLINE) as early:
        early.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with served(tmp_path, held) as service:
            assert b" 1 " in early.recv(4096)
            service.stop()


def test_no_connection_fails_over_upgrades_and_restarts_of_the_whole_service(
    tmp_path: Path, held: socket.socket
) -> None:
    load = Load(held.getsockname())
    with contextlib.ExitStack() as stack:
        for upgrades in (0, 2, 6):
            with served(tmp_path, held) as service:
                if not load.answers:
                    stack.enter_context(load)
                for number in range(2, 2 + upgrades):
                    assert service.upgrade()["to"] == number
                load.heard(1 + upgrades)
                assert service.stop() == 0, service.running.text()
        with served(tmp_path, held) as service:  # for those who wait
            load.end()
            service.stop()
    assert not load.failures, load.failures


def test_stop_leaves_what_comes_to_the_holder(tmp_path: Path, held: socket.socket) -> None:
    with served(tmp_path, held) as service:
        service.upgrade()
        service.settled(2)
        service.running.signal(signal.SIGTERM)
        assert service.running.ends() == 0
    with socket.create_connection(held.getsockname(), timeout=DEADLINE) as late:
        late.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with served(tmp_path, held) as again:
            assert b" 1 " in late.recv(4096)
            again.stop()


def test_a_killed_master_finds_its_generations_and_the_holders_listener_again(
    tmp_path: Path, held: socket.socket
) -> None:
    with served(tmp_path, held) as first, Load(held.getsockname()) as load:
        first.upgrade()
        first.settled(2)
        kill(first.pid)
        with served(tmp_path, held) as second:
            second.running.says("is alive: it goes on")
            assert second.status()["generation"] == 2
            assert second.upgrade()["to"] == 3
            load.heard(3)
            assert second.stop() == 0
            with served(tmp_path, held) as third:
                load.heard(1)
                load.end()
                third.stop()
        assert not load.failures, load.failures


def test_a_killed_master_leaves_the_holder_alone(tmp_path: Path, held: socket.socket) -> None:
    """The first generation has the holder's own listener, which is no proof that the holder is a stray of ours."""
    with served(tmp_path, held) as first:
        kill(first.pid)
        with served(tmp_path, held) as second:
            assert second.status()["generation"] == 1
            assert second.upgrade()["to"] == 2
            assert request(held.getsockname())[1] == 2
            second.stop()


def test_the_master_is_upgraded_with_what_it_inherited(tmp_path: Path, held: socket.socket) -> None:
    with served(tmp_path, held) as service, Load(held.getsockname()) as load:
        service.upgrade()
        assert service.command("--master")[0] == 0
        assert service.status()["listeners"][0]["origin"] == "inherited"
        service.upgrade()
        load.heard(3)
        load.end()
        assert not load.failures, load.failures
        service.stop()
        with socket.create_connection(held.getsockname(), timeout=DEADLINE):
            held.accept()[0].close()


def test_a_bind_that_means_what_was_inherited_binds_nothing(tmp_path: Path, held: socket.socket) -> None:
    with Service(
        tmp_path,
        *quick("--ready", "delay:0.2s", "--bind", "other=127.0.0.1:0"),
        bind="web=127.0.0.1:1",
        **passing(held, names="web"),
    ) as service:
        facts = service.status()["listeners"]
        assert [(one["name"], one["origin"]) for one in facts] == [("web", "inherited"), ("other", "bound")]
        service.upgrade()
        assert [one["name"] for one in service.status()["listeners"]] == ["web", "other"]
        service.stop()


def test_udp_is_switched_and_given_back(tmp_path: Path) -> None:
    echo = (
        "import os, socket\nsock = socket.socket(fileno=3)\nsock.setblocking(True)\nwhile True:\n"
        "    data, who = sock.recvfrom(100)\n    sock.sendto(os.environ['FDHANDOFF_GENERATION'].encode(), who)\n"
    )
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as me,
    ):
        held.bind(("127.0.0.1", 0))
        me.settimeout(DEADLINE)
        me.sendto(b"early", held.getsockname())
        with served(tmp_path, held, "--ready", "delay:0.2s", command=[*rude()[:2], echo]) as service:
            assert me.recv(100) == b"1"
            assert service.status()["listeners"][0]["switch"] == "kernel"
            service.upgrade()
            me.sendto(b"again", held.getsockname())
            assert me.recv(100) == b"2"
            service.settled(2)
            service.stop()
        me.sendto(b"late", held.getsockname())
        held.settimeout(DEADLINE)
        assert held.recv(100) == b"late"


def test_a_unix_listener_is_shared_and_stays_where_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "web.sock")
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(path)
        held.listen(100)
        with served(tmp_path, held) as service:
            assert service.status()["listeners"][0]["switch"] == "shared"
            service.running.says("web has one queue for all generations: its path is for whoever passed it")
            service.upgrade()
            service.settled(2)
            assert request(path)[1] == 2
            service.stop()
        assert os.path.exists(path)


def test_another_users_listener_is_shared(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's listener")
    os.seteuid(65534)
    try:
        held = socket.create_server(("127.0.0.1", 0))
    finally:
        os.seteuid(0)
    with held, served(tmp_path, held) as service:
        assert service.status()["listeners"][0]["switch"] == "shared"
        service.running.says("belongs to another user")
        service.upgrade()
        service.settled(2)
        assert request(held.getsockname())[1] == 2
        service.stop()


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"LISTEN_FDS": "one"}, "LISTEN_FDS='one' is not a number"),
        ({"LISTEN_FDS": "9"}, "promises descriptors 3 to 11"),
        ({"LISTEN_PID": "me"}, "LISTEN_PID='me' is not a process id"),
        ({"LISTEN_FDNAMES": "a:b"}, "has 2 names, but LISTEN_FDS is 1"),
    ],
)
def test_variables_without_sense_are_told_in_one_sentence(
    tmp_path: Path, held: socket.socket, environ: dict[str, str], sentence: str
) -> None:
    running = Running("run", "--path", str(tmp_path / "p"), "--", *rude(), **passing(held, **environ))
    assert running.ends() == 125
    (line,) = running.err
    assert sentence in line


def test_what_is_for_another_process_is_not_taken(tmp_path: Path, held: socket.socket) -> None:
    with Service(tmp_path, *quick(), **passing(held, LISTEN_PID="1")) as service:
        assert [one["origin"] for one in service.status()["listeners"]] == ["bound"]
        service.stop()


def test_what_is_no_listener_is_refused(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as file:
        running = Running("run", "--path", str(tmp_path / "p"), "--", *rude(), **passing(file.fileno(), names="log"))
        assert running.ends() == 125
        assert "LISTEN_FDS passes descriptor 3 as 'log', which is no socket" in running.text()
    one, other = socket.socketpair()
    with one, other:
        running = Running("run", "--path", str(tmp_path / "p"), "--", *rude(), **passing(one, names="peer"))
        assert running.ends() == 125
        assert "peer (descriptor 3) is" in running.text()
        assert "does not listen" in running.text()


def test_the_commands_environment_is_its_own(tmp_path: Path, held: socket.socket) -> None:
    """Consumed once: what the command finds is what the master gives it."""
    tell = (
        "import os, socket, time\nprint('told', {k: v for k, v in os.environ.items() if k.startswith('LISTEN_')}, "
        "os.getpid(), flush=True)\nsock = socket.socket(fileno=3)\nsock.setblocking(True)\n"
        "while True:\n    sock.accept()[0].close()\n"
    )
    with served(tmp_path, held, command=[*rude()[:2], tell]) as service:
        line = service.running.says("told")
        assert "'LISTEN_FDS': '1'" in line
        assert "'LISTEN_FDNAMES': 'web'" in line
        (pid,) = service.status()["generations"][-1]["pids"]
        assert f"'LISTEN_PID': '{pid}'" in line
        service.stop()


def test_nothing_is_left_open_after_many_upgrades(tmp_path: Path, held: socket.socket) -> None:
    with served(tmp_path, held) as service:
        before = 0
        for number in range(2, 12):
            service.upgrade()
            service.settled(number)
            before = before or len(os.listdir(f"/proc/{service.pid}/fd"))
        wait_for(lambda: len(os.listdir(f"/proc/{service.pid}/fd")) <= before, f"only {before} open files")
        service.stop()
