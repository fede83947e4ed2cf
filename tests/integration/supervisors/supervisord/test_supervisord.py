"""The life of a service under supervisord."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from ...cli import DEADLINE, free_port, verb, wait_for
from ...master import Load, kill, request
from ..life import Census, Life, Slow, Supervisor, ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


#: A program that keeps its pid by itself, and answers with the release that stood in the file when it was executed.
SAME_PID = """
import os, sys, threading
from fdhandoff import Service
port, release = sys.argv[1], open(sys.argv[2]).read().partition("=")[2].strip()
def answer(connection):
    with connection:
        if connection.recv(4096):
            body = f"{release} {service.generation.number} {os.getpid()}".encode()
            head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body)
            connection.sendall(head + body)
with Service("app", path=sys.argv[3], probation=0.2, same_pid=True) as service:
    service.listen("http", f"127.0.0.1:{port}")
    service.ready()
    service.serve(lambda connection, _: threading.Thread(target=answer, args=(connection,)).start())
    service.drain()
"""


#: A job runner that is made with this package, without a listener and without a master.
RUNNER = """
import pathlib, sys, time
from fdhandoff import Service
from fdhandoff.jobs import Jobs
folder = sys.argv[1]
with Service("runner", path=None) as service, Jobs(service) as jobs:
    def run(name):
        assert jobs.popen(["sh", "-c", 'sleep 3; echo "$1" > "$0/$1"', folder, name]).wait() == 0
    service.ready()
    names = ["runner-1", "runner-2"]
    for job in jobs:
        if names:
            job.start(run, names.pop(), name="job")
            if not names:
                pathlib.Path(folder, "accepted").touch()
        else:
            time.sleep(0.01)
    jobs.drain()
"""


class Supervisord(Supervisor):
    kind = "supervisord"
    more = ""

    def install(self) -> None:
        main = self.folder / "supervisord.conf"
        main.write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={self.folder}/supervisord.log\npidfile={self.folder}/supervisord.pid\n"
            f"childlogdir={self.folder}\n"
            f"[unix_http_server]\nfile={self.folder}/control.sock\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{self.folder}/control.sock\n"
            f"[include]\nfiles={self.folder}/unit/*.conf\n"
        )
        with (self.folder / "unit" / "web.conf").open("a") as file:
            file.write(self.more)

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "supervisor.supervisord",
            "-n",
            "-c",
            f"{self.folder}/supervisord.conf",
        ]

    def control(self, *words: str, code: int | None = 0) -> str:
        tool = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "supervisor.supervisorctl",
            "-c",
            f"{self.folder}/supervisord.conf",
        ]
        return self.tell(*tool, *words, code=code)

    def pid(self) -> int:
        said = self.control("pid", "web", code=None).strip()
        return int(said) if said.isdigit() else 0

    def stop(self) -> None:
        assert "web: stopped" in self.control("stop", "web")

    def start(self) -> None:
        assert "web: started" in self.control("start", "web")

    def reload(self) -> None:
        assert "web: signalled" in self.control("signal", "HUP", "web")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisord]:
    with ended(Supervisord(tmp_path)) as one:
        yield one


class TestSupervisord(Life):
    pass


@pytest.mark.parametrize("more", ["stopasgroup=true\n", "stopasgroup=true\nkillasgroup=true\n"])
def test_a_stop_as_group_drains_like_any_other(supervisor: Supervisord, more: str) -> None:
    supervisor.more = more
    supervisor.begin()
    slow = Slow(supervisor.address(), 1.5).asked(supervisor)
    supervisor.stop()
    assert slow.over()[1] == 1, slow.answer
    assert supervisor.family() == []


def test_accepted_jobs_are_completed_when_the_stop_goes_to_the_whole_group(supervisor: Supervisord) -> None:
    """Those of a runner below the master, and those of one that supervisord itself has started: there the signal goes to
    whatever is in the runner's group."""
    folder = supervisor.folder
    (folder / "runner.py").write_text(RUNNER)
    supervisor.more = (
        "stopasgroup=true\nkillasgroup=true\n"
        f"[program:runner]\ncommand={sys.executable} {folder}/runner.py {folder}\n"
        "stopasgroup=true\nkillasgroup=true\nstopwaitsecs=30\n"
    )
    supervisor.begin(program="jobs")
    names = ["job-1", "job-2"]
    for name in names:
        with socket.create_connection(supervisor.address(), DEADLINE) as sock:
            sock.sendall(name.encode())
            assert sock.recv(100) == b"accepted"
    wait_for((folder / "accepted").exists, "the runner's jobs")
    said = supervisor.control("stop", "all")
    assert "web: stopped" in said
    assert "runner: stopped" in said
    names += ["runner-1", "runner-2"]
    assert [(folder / name).read_text() for name in names] == [f"{name}\n" for name in names]


def test_a_kill_as_group_misses_the_generation_and_the_next_start_goes_on_with_it(supervisor: Supervisord) -> None:
    """The kill comes when the stop timeout is over: here because the master was stopped by hand."""
    supervisor.more = "stopasgroup=true\nkillasgroup=true\n"
    supervisor.begin()
    (supervisor.folder / "unit" / "web.conf").write_text(
        (supervisor.folder / "unit" / "web.conf").read_text().replace("stopwaitsecs=25", "stopwaitsecs=1")
    )
    supervisor.control("update")
    supervisor.serves()
    pid, server = supervisor.pid(), supervisor.serving_pid()
    with Load(supervisor.address(), 2) as load:
        os.kill(pid, signal.SIGSTOP)
        supervisor.stop()
        assert server in supervisor.family()
        load.heard(1)
        supervisor.start()
        supervisor.serves()
        assert supervisor.serving_pid() == server
        load.end()
    assert not load.failures


def test_a_generation_that_shall_end_with_the_master_does(supervisor: Supervisord) -> None:
    supervisor.begin("--death-signal", "KILL")
    pid, server = supervisor.pid(), supervisor.serving_pid()
    kill(pid)
    wait_for(lambda: server not in supervisor.family(), "the end of the generation")
    supervisor.serves()
    assert supervisor.serving_pid() != server
    supervisor.stop()
    assert supervisor.family() == []


def test_an_orderly_end_of_supervisord_drains_the_service(supervisor: Supervisord) -> None:
    supervisor.begin()
    slow = Slow(supervisor.address(), 1.0).asked(supervisor)
    assert supervisor.process is not None
    supervisor.process.send_signal(signal.SIGTERM)
    assert slow.over()[1] == 1, slow.answer
    wait_for(lambda: supervisor.process is not None and supervisor.process.poll() is not None, "the end of supervisord")
    assert supervisor.family() == []


def test_a_service_whose_supervisord_was_killed_serves_on_and_has_no_second_beside_it(supervisor: Supervisord) -> None:
    supervisor.more = "startretries=0\n"
    supervisor.begin()
    pid, address = supervisor.pid(), supervisor.address()
    assert supervisor.process is not None
    with Load(address, 2) as load, Census(supervisor):
        supervisor.process.kill()
        supervisor.process.wait()
        supervisor.start_again()
        wait_for(lambda: "FATAL" in supervisor.control("status", "web", code=None), "the refusal of a second one")
        assert f"a master (pid {pid}) serves at" in supervisor.control("tail", "web")
        assert supervisor.masters() == [pid]
        load.heard(1)
        load.end()
    assert not load.failures
    assert verb("stop", str(supervisor.path), "--wait").returncode == 0
    supervisor.start()
    assert supervisor.serves()["generation"] == 1


def test_the_next_supervisord_takes_the_service_over_where_it_is_told_to(supervisor: Supervisord) -> None:
    supervisor.begin("--takeover", "always")
    pid, address = supervisor.pid(), supervisor.address()
    assert supervisor.process is not None
    with Load(address, 2) as load:
        supervisor.process.kill()
        supervisor.process.wait()
        supervisor.start_again()
        supervisor.serves()
        assert supervisor.pid() != pid
        load.heard(supervisor.status()["generation"])
        wait_for(lambda: supervisor.masters() == [supervisor.pid()], "the end of the other master")
        load.end()
    assert not load.failures
    supervisor.stop()
    assert supervisor.family() == []


def test_a_program_that_keeps_its_pid_by_itself_is_upgraded_under_load(supervisor: Supervisord) -> None:
    """Without a master: it executes the new code in place, while a child of it serves."""
    folder, address = supervisor.folder, ("127.0.0.1", free_port())
    (folder / "same.py").write_text(SAME_PID, encoding="utf-8")
    (folder / "unit").mkdir()
    command = f"{sys.executable} {folder}/same.py {address[1]} {supervisor.env_file} {supervisor.path}"
    (folder / "unit" / "web.conf").write_text(
        f"[program:web]\ncommand={command}\nautorestart=true\nstopwaitsecs=25\nredirect_stderr=true\n", encoding="utf-8"
    )
    supervisor.install()
    supervisor.start_again()
    wait_for(lambda: supervisor.status().get("state") == "serving", f"the program; {supervisor.log.read_text()}")
    pid = supervisor.pid()
    with Load(address, 3) as load:
        for number in range(3, 23, 2):
            supervisor.release(f"r{number}")
            supervisor.reload()
            wanted = (f"r{number}", number, pid)
            wait_for(lambda wanted=wanted: request(address) == wanted, f"{wanted}; {supervisor.control('tail', 'web')}")
            wait_for(lambda: supervisor.family() == [pid], "the end of the child that served meanwhile")
            assert supervisor.pid() == pid
        load.end()
    assert not load.failures, (len(load.answers), load.failures)
    supervisor.stop()
    assert supervisor.family() == []
    assert not supervisor.path.exists()
