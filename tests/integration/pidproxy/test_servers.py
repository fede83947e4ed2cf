"""Real programs that replace themselves, under load, and under a real supervisor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ...conftest import needs
from ..cli import PACKAGE, Running, environment, stopping, wait_for
from ..master import Load, request
from ..master.test_servers import module
from . import ENDLESS, alone, descendants_of, gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no subreapers")

NGINX = """
daemon on; worker_processes 1; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log notice;
events { worker_connections 512; }
http {
    access_log off; client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi; uwsgi_temp_path %(folder)s/uwsgi; scgi_temp_path %(folder)s/scgi;
    server { listen 127.0.0.1:%(port)s; location / { return 200 "app %(number)s $pid"; } }
}
"""

WSGI = """
import os
def app(environ, start_response):
    body = f"app 1 {os.getppid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

HAPROXY = """
global
    stats socket %(folder)s/admin.sock mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 1s
frontend web
    bind 127.0.0.1:%(port)s
    http-request return status 200 content-type text/plain string "app %(number)s 1"
"""


@pytest.fixture
def port() -> int:
    """A free one. Whoever takes it in between makes the test fail, not pass."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def number_in(path: Path) -> Callable[[], int]:
    """The pid in a pidfile; 0 while there is none."""

    def read() -> int:
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    return read


def answered(port: int) -> Any:
    try:
        return request(("127.0.0.1", port))
    except OSError:
        return None


@pytest.mark.parametrize("with_pidfile", [True, False])
def test_nginx_replaces_its_binary_under_load(tmp_path: Path, port: int, with_pidfile: bool) -> None:
    needs("nginx", "nginx-light")

    def configure(number: int) -> None:
        text = NGINX % {"folder": tmp_path, "port": port, "number": number}
        (tmp_path / "nginx.conf").write_text(text)

    configure(1)
    pidfile = tmp_path / "nginx.pid"
    options = ["--pidfile", str(pidfile)] if with_pidfile else []
    running = Running("pidproxy", *options, "--", "nginx", "-c", str(tmp_path / "nginx.conf"))
    with stopping(running):
        wait_for(lambda: answered(port), "nginx")
        with Load(("127.0.0.1", port)) as load:
            for number in (2, 3, 4):
                old = number_in(pidfile)()
                configure(number)
                running.signal(signal.SIGUSR2)
                new = wait_for(lambda: (pid := number_in(pidfile)()) != old and pid, "the new master")  # noqa: B023
                load.heard(number)
                os.kill(old, signal.SIGQUIT)
                alone_with_its_workers(running.pid, new)
        assert not load.failures
        running.signal(signal.SIGHUP)
        running.signal(signal.SIGQUIT)
        assert running.ends() == 0
        assert not answered(port)


def alone_with_its_workers(proxy: int, main: int) -> None:
    def look() -> bool:
        family = {pid for pid in descendants_of(proxy) if not gone(pid)}
        return family == {main, *descendants_of(main)}

    wait_for(look, f"{main} to be alone with its workers")


@pytest.mark.parametrize("with_pidfile", [True, False])
def test_gunicorn_replaces_itself_under_load(tmp_path: Path, port: int, with_pidfile: bool) -> None:
    (tmp_path / "wsgi.py").write_text(WSGI)
    pidfile = tmp_path / "app.pid"
    options = ["--pidfile", str(pidfile)] if with_pidfile else []
    running = Running(
        "pidproxy", *options, "--", *module("gunicorn"), "--chdir", str(tmp_path), "--pid", str(pidfile),
        "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "10", "wsgi:app",
    )  # fmt: skip
    with stopping(running):
        wait_for(lambda: answered(port), "gunicorn")
        with Load(("127.0.0.1", port)) as load:
            for _ in range(2):
                old = wait_for(number_in(pidfile))
                running.signal(signal.SIGUSR2)
                new = int(wait_for(number_in(tmp_path / "app.pid.2"), "the new arbiter"))
                wait_for(lambda: answered(port)[2] == new, "an answer of the new one")  # noqa: B023
                os.kill(old, signal.SIGTERM)
                alone_with_its_workers(running.pid, new)
                wait_for(lambda: number_in(pidfile)() == new, "the pidfile to be renamed")  # noqa: B023
        assert not load.failures
        running.signal(signal.SIGTERM)
        assert running.ends() == 0
        assert not answered(port)


def test_haproxy_reloads_under_load(tmp_path: Path, port: int) -> None:
    needs("haproxy")

    def configure(number: int) -> None:
        text = HAPROXY % {"folder": tmp_path, "port": port, "number": number}
        (tmp_path / "haproxy.cfg").write_text(text)

    configure(1)
    running = Running("pidproxy", "--", "haproxy", "-W", "-f", str(tmp_path / "haproxy.cfg"))
    with stopping(running):
        wait_for(lambda: answered(port), "haproxy")
        with Load(("127.0.0.1", port)) as load:
            for number in (2, 3, 4):
                # While it loads it ignores them.
                wait_for(lambda: handles(descendants_of(running.pid), signal.SIGUSR2), "haproxy to listen to signals")
                configure(number)
                running.signal(signal.SIGUSR2)
                load.heard(number)
        assert not load.failures
        wait_for(lambda: handles(descendants_of(running.pid), signal.SIGUSR1), "haproxy to listen to signals")
        running.signal(signal.SIGUSR1)  # its way to say: finish, and end
        running.ends()
        assert not answered(port)


def handles(family: list[int], number: int) -> bool:
    """Whether the oldest of them has a handler for the signal."""
    status = Path(f"/proc/{min(family)}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Go program, built."""
    go = needs("go", "golang-go")
    place = tmp_path_factory.mktemp("go")
    source = Path(__file__).with_name("go")
    subprocess.run([go, "build", "-o", str(place / "endless"), "."], cwd=source, check=True, timeout=300)
    return str(place / "endless")


def facts(folder: Path) -> list[int]:
    """Port, generation and pid of the one that announced itself last."""
    try:
        return [int(word) for word in (folder / "port").read_text().split()]
    except FileNotFoundError:
        return []


def test_an_endless_server_replaces_itself_under_load(tmp_path: Path, endless: str) -> None:
    running = Running("pidproxy", "--", endless, cwd=str(tmp_path))
    with stopping(running):
        port = wait_for(lambda: facts(tmp_path))[0]
        with Load(("127.0.0.1", port)) as load:
            for number in range(2, 12):
                running.signal(signal.SIGHUP)
                load.heard(number)
                alone(running.pid, facts(tmp_path)[2])
        assert not load.failures
        assert running.process.poll() is None
        running.signal(signal.SIGTERM)
        assert running.ends() == 0


# --- under supervisord ----------------------------------------------------------------------------------------


class Supervisord:
    """One program, ``app``, under a real supervisord that was started for it."""

    def __init__(self, folder: Path, program: str) -> None:
        self.config = folder / "supervisord.conf"
        self.config.write_text(
            f"""
[supervisord]
nodaemon = true
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
[unix_http_server]
file = {folder}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{folder}/supervisor.sock
[program:app]
{program}
"""
        )
        self.process = subprocess.Popen(
            [needs("supervisord", "supervisor"), "-c", str(self.config)],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            [needs("supervisorctl", "supervisor"), "-c", str(self.config), *words],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    def pid(self) -> int:
        text = self.ctl("pid", "app").strip()
        return int(text) if text.isdigit() else 0

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervisord]:
    (tmp_path / "endless.py").write_text(ENDLESS)
    found = Supervisord(
        tmp_path,
        f"command = {sys.executable} -m {PACKAGE} pidproxy --pidfile {tmp_path}/app.pid -- "
        f"{sys.executable} {tmp_path}/endless.py {tmp_path}\n"
        f'environment = PIDFILE="{tmp_path}/app.pid"\n'
        f"autorestart = unexpected\nstartsecs = 1\nstopasgroup = true\nkillasgroup = true\n"
        f"stderr_logfile = {tmp_path}/app.log\n",
    )
    yield found
    found.end()


def test_supervisord_sees_one_process_and_restarts_a_crashed_one_once(tmp_path: Path, supervised: Supervisord) -> None:
    wait_for(lambda: facts(tmp_path), "the first generation")
    pid = int(wait_for(supervised.pid, "supervisord"))
    with Load(("127.0.0.1", facts(tmp_path)[0])) as load:
        for number in (2, 3, 4):
            supervised.ctl("signal", "HUP", "app")
            load.heard(number)
            server = facts(tmp_path)[2]
            alone(pid, server)
    assert not load.failures
    assert supervised.pid() == pid
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: (new := facts(tmp_path)) and new[1] == 1 and new[2] != server, "the restart")
    assert gone(server)
    again = int(wait_for(lambda: (now := supervised.pid()) != pid and now, "the pid of the new proxy"))
    server = facts(tmp_path)[2]
    alone(again, server)
    supervised.ctl("stop", "app")
    assert gone(server)
    assert gone(again)
    log = (tmp_path / "supervisord.log").read_text()
    assert log.count("spawned: 'app'") == 2, "it was started once, and restarted once"
