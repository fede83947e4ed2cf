"""A server that somebody else started, and that knows of nothing, is replaced under load; and what can't be is told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ...conftest import needs
from ..cli import DEADLINE, Running, environment, wait_for
from . import Load, Service, quick, request, rude
from .test_giving_and_taking import alive
from .test_servers import module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NGINX = """
pid %(folder)s/old.pid; error_log stderr error; worker_processes 2; daemon %(daemon)s; %(user)s
events { worker_connections 512; }
http {
    access_log off; client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi; uwsgi_temp_path %(folder)s/uwsgi; scgi_temp_path %(folder)s/scgi;
    server { listen 127.0.0.1:%(port)s%(more)s; location / { return 200 "old 0 $pid"; } }
}
"""

NODE = """
const body = `old 0 ${process.pid}`;
require('http').createServer((request, response) => response.end(body)).listen(Number(process.argv[2]), '127.0.0.1');
"""

WSGI = """
import os
def app(environ, start_response):
    body = f"old 0 {os.getpid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Old:
    """A server as its makers ship it, that listens by itself."""

    def __init__(self, *command: str, port: int, pid: Callable[[], int] | None = None) -> None:
        self.address = ("127.0.0.1", port)
        self.process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(self._serves, f"{command[0]} to serve")
        self.pid = pid() if pid is not None else self.process.pid

    def _serves(self) -> bool:
        try:
            return request(self.address, timeout=5)[0] == "old"
        except OSError:
            return False

    def __enter__(self) -> Old:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def ends(self) -> int:
        return self.process.wait(DEADLINE)


def http_server(folder: Path) -> Old:
    pages = folder / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("old 0 1")
    port = free_port()
    return Old(
        sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(pages), str(port), port=port
    )


def gunicorn(folder: Path) -> Old:
    (folder / "old_wsgi.py").write_text(WSGI)
    port = free_port()
    return Old(
        *module("gunicorn"), "--chdir", str(folder), "--log-level", "warning", "--no-control-socket", "-w", "2",
        "-k", "gthread", "--threads", "4", "-b", f"127.0.0.1:{port}", "old_wsgi:app", port=port,
    )  # fmt: skip


def node(folder: Path) -> Old:
    port = free_port()
    (folder / "old.js").write_text(NODE)
    return Old(needs("node", "nodejs"), str(folder / "old.js"), str(port), port=port)


def nginx(folder: Path, more: str = "") -> Old:
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    facts = {"folder": folder, "port": port, "daemon": "off", "user": user, "more": more}
    (folder / "old.conf").write_text(NGINX % facts)
    return Old(needs("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "old.conf"), port=port)


SERVERS: dict[str, Callable[[Path], Old]] = {
    "http.server": http_server,
    "gunicorn": gunicorn,
    "node": node,
    "nginx": nginx,
}


def adopting(folder: Path, old: Old, *options: str, **more: Any) -> Service:
    return Service(folder, "--pid", str(old.pid), *quick(*options), verb="adopt", bind="", **more)


@pytest.mark.parametrize("name", SERVERS)
def test_an_unmodified_server_is_adopted_without_a_failed_request(tmp_path: Path, name: str) -> None:
    with SERVERS[name](tmp_path) as old, Load(old.address, 4) as load, adopting(tmp_path, old) as service:
        (listener,) = service.status()["listeners"]
        assert (listener["switch"], listener["origin"]) == ("kernel", "adopted")
        load.heard(1, 100)
        old.ends()
        service.running.says("the adopted server has ended")
        for number in (2, 3):
            assert service.upgrade()["to"] == number
            load.heard(number)
        load.end()
        answered = load.generations()
        assert not load.failures, (answered, load.failures)
        assert set(answered) == {0, 1, 2, 3}
        print(f"{name}: {sum(answered.values())} requests, 0 failed")
        assert service.stop() == 0


def test_a_worker_names_its_whole_server(tmp_path: Path) -> None:
    """Its listeners are those of the master, which is the one to be asked to stop."""
    with gunicorn(tmp_path) as old, Load(old.address, 2) as load:
        worker = request(old.address)[2]
        assert worker != old.pid
        old.pid, parent = worker, old.pid
        with adopting(tmp_path, old) as service:
            load.heard(1)
            service.running.says(f"process {parent} is asked to stop (SIGTERM)")
            old.ends()
            load.end()
            assert not load.failures, load.failures
            service.stop()


def test_what_the_old_server_has_begun_is_finished(tmp_path: Path) -> None:
    """It dies at once of TERM, so it is asked only when its last client has gone."""
    slow = rude()
    slow[2] = (
        slow[2]
        .replace(
            "listener = socket.socket(fileno=3)", "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))"
        )
        .replace("{os.environ.get('RELEASE', '')}", "old")
        .replace("'FDHANDOFF_GENERATION', '?'", "'NONE', '0'")
    )
    port = free_port()
    with Old(*slow, str(port), port=port) as old, socket.create_connection(old.address, timeout=DEADLINE) as client:
        client.sendall(b"GET /sleep2 HTTP/1.1\r\n\r\n")
        with adopting(tmp_path, old) as service:
            assert request(old.address)[1] == 1
            assert b"old 0" in client.recv(4096)
            client.close()
            old.ends()
            service.stop()


def test_a_command_that_never_becomes_ready_leaves_the_old_server_as_it_was(tmp_path: Path) -> None:
    with nginx(tmp_path) as old, Load(old.address) as load:
        for fault, status in (("exit3", 3), ("hang", 125)):
            service = adopting(tmp_path, old, "--ready-timeout", "1s", "--env", f"FAULT={fault}", wait=False)
            assert service.running.ends() == status, service.running.text()
            assert "does not serve" in service.running.text()
            load.heard(0, 50)
            wait_for(lambda: sockets(old.address[1]) == 1, "the old listener to be alone again")
        assert reuseport(old) == 0
    assert not load.failures, load.failures
    assert set(load.generations()) == {0}


def test_a_first_generation_that_dies_in_probation_gives_the_old_server_its_users_back(tmp_path: Path) -> None:
    with nginx(tmp_path) as old:
        with adopting(tmp_path, old, "--probation", "20s") as service:
            (pid,) = service.generations()[1]["pids"]
            os.kill(pid, signal.SIGKILL)
            assert service.running.ends() == 128 + 9
            assert "serves again" in service.running.text()
        assert request(old.address)[0] == "old"
        assert sockets(old.address[1]) == 1
        assert sorted(set(os.listdir(tmp_path)) & {"master.sock", "master.sock.journal"}) == []


def test_a_master_that_is_killed_before_the_switch_leaves_the_old_server_serving(tmp_path: Path) -> None:
    with nginx(tmp_path) as old, Load(old.address) as load:
        service = adopting(tmp_path, old, "--env", "FAULT=hang", wait=False)
        started = service.running.says("started (pid")
        orphan = int(started.rpartition("pid ")[2].rstrip(")"))
        os.kill(service.pid, signal.SIGKILL)
        service.running.process.wait(DEADLINE)  # its output stays open as long as its generation lives
        load.heard(0, 50)
        assert set(load.generations()) == {0}
        with adopting(tmp_path, old) as again:
            again.running.says("was not ready when the master died: it is ended")
            assert not alive(orphan)
            assert again.status()["listeners"][0]["switch"] == "kernel"
            load.heard(1)
            load.end()
            again.stop()
    assert not load.failures, load.failures


def test_a_master_that_is_killed_after_the_switch_is_succeeded_beside_the_old_server(tmp_path: Path) -> None:
    with nginx(tmp_path) as old, Load(old.address) as load:
        with adopting(tmp_path, old, "--probation", "60s") as service:
            load.heard(1, 50)
            os.kill(service.pid, signal.SIGKILL)
            service.running.process.wait(DEADLINE)
            load.heard(1, 50)
            with Service(tmp_path, *quick(), bind="") as again:
                assert again.status()["generation"] == 1
                again.upgrade()
                load.heard(2)
                assert old.process.poll() is None
                load.end()
                again.stop()
        assert not load.failures, load.failures


def test_several_listeners_get_the_names_of_their_binds(tmp_path: Path) -> None:
    two = (
        "import selectors, socket, sys\nselector = selectors.DefaultSelector()\n"
        "for port in sys.argv[1:]:\n"
        "    selector.register(socket.create_server(('127.0.0.1', int(port))), selectors.EVENT_READ)\n"
        "while True:\n    for key, _ in selector.select():\n        connection, _ = key.fileobj.accept()\n"
        "        connection.recv(100)\n        connection.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nold 0 1')\n"
        "        connection.close()\n"
    )
    one, other = free_port(), free_port()
    with (
        Old(sys.executable, "-c", two, str(one), str(other), port=one) as old,
        adopting(
            tmp_path, old, "--bind", f"web=127.0.0.1:{one}", "--bind", "new=127.0.0.1:0", "--ready", "delay:0.3s"
        ) as service,
    ):
        facts = {each["name"]: each["origin"] for each in service.status()["listeners"]}
        assert facts == {"web": "adopted", "new": "bound"}
        service.running.says("is left to it: no --bind means it")
        assert request(("127.0.0.1", one))[1] == 1
        service.stop()


STUBBORN = """
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = sock.accept()
    connection.recv(100)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nold 0 1")
    connection.close()
"""


def stubborn() -> Old:
    port = free_port()
    return Old(sys.executable, "-c", STUBBORN, str(port), port=port)


def test_a_server_that_does_not_end_is_killed_if_one_says_so(tmp_path: Path) -> None:
    with stubborn() as old, adopting(tmp_path, old, "--kill-old", "--kill-after", "500ms") as service:
        service.running.says("it is killed")
        assert old.ends() == -signal.SIGKILL
        service.stop()


def test_a_server_that_does_not_end_is_left_alone_otherwise(tmp_path: Path) -> None:
    with stubborn() as old:
        with adopting(tmp_path, old) as service:
            service.running.says("is asked to stop")
            assert request(old.address)[1] == 1
            assert service.stop() == 0
        assert old.process.poll() is None


# --- what can't be ----------------------------------------------------------------------------------------------


def refused(folder: Path, *words: str, **more: Any) -> str:
    running = Running("adopt", "--path", str(folder / "master.sock"), *words, "--", *rude(), **more)
    assert running.ends() == 125
    (line,) = running.err
    return line


def test_nobody_of_that_number(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(DEADLINE)
    assert f"there is no process {gone.pid}" in refused(tmp_path, "--pid", str(gone.pid))


def test_a_process_that_listens_nowhere(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
        assert f"process {idle.pid} listens nowhere" in refused(tmp_path, "--pid", str(idle.pid))


def test_whoever_has_started_us(tmp_path: Path) -> None:
    assert "has started it" in refused(tmp_path, "--pid", str(os.getpid()))


def test_several_queues_of_one_address(tmp_path: Path) -> None:
    with nginx(tmp_path, " reuseport") as old:
        line = refused(tmp_path, "--pid", str(old.pid))
        assert "(SO_REUSEPORT), with a queue each" in line
        assert f"process {old.pid} serves on" in line
        assert request(old.address)[0] == "old"


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "old.sock"
    code = "import socket, sys\ns = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as old:
        assert old.stdout is not None
        old.stdout.readline()
        assert "can't be adopted: most servers remove its path" in refused(tmp_path, "--pid", str(old.pid))


def sockets(port: int) -> int:
    found = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return len(found.stdout.splitlines())


def reuseport(old: Old) -> int:
    from fdhandoff.system.adoption import listeners_of
    from fdhandoff.system.process import Process

    with Process.from_pid(old.pid) as process:
        ((_, sock),) = listeners_of(process)
        with sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
