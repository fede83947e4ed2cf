"""The servers that are measured, under ``run`` and by themselves, and the clients that ask them at a fixed rate."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from fdhandoff import ask

from .measure import ROOT, as_installed, c_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PATIENCE = 30.0
MILLISECOND = 1_000_000

#: Answers with its pid, as benchmarks/c/server.c does, but takes as long to start as a Python program does.
PYTHON_SERVER = """
import os, socket
listener = socket.socket(fileno=3)
listener.setblocking(True)
answer = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n%d\\n" % os.getpid()
while True:
    connection, _ = listener.accept()
    with connection:
        if connection.recv(4096):
            connection.sendall(answer)
"""

_NGINX = """
pid {folder}/nginx.pid; error_log {folder}/error.log error; worker_processes 1; daemon off;
events {{ worker_connections 512; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "$pid\\n"; }} }}
}}
"""
_WSGI = """
import os
def app(environ, start_response):
    body = b"%d\\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
_HAPROXY = """
global
    maxconn 512
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 1s
frontend benchmark
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain lf-string "%pid"
"""


def wait_for(what: Callable[[], Any], why: str) -> Any:
    """The first true answer; looked for seldom, because looking is work that competes with what is measured."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        answer = what()
        if answer:
            return answer
        time.sleep(0.02)
    raise TimeoutError(f"{why} did not come within {PATIENCE:g} s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def get(port: int) -> str:
    """One answer; ``OSError`` when there is none."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n\r\n")
        answer = b""
        while more := sock.recv(65536):
            answer += more
    return answer.decode()


class Peer:
    """A server by itself, on ``port``, and the signal by which it takes new configuration or code."""

    def __init__(self, command: Sequence[str], port: int, reload: signal.Signals) -> None:
        self.port = port
        self._reload = reload
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._words, stderr=self._words, env=as_installed()
        )
        try:
            wait_for(self._answers, f"the first answer of {' '.join(command)}")
        except BaseException:
            Peer.__exit__(self)
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def upgrade(self) -> None:
        """Begins one; it goes on by itself."""
        self._process.send_signal(self._reload)

    def _answers(self) -> bool:
        try:
            return " 200 " in get(self.port)
        except OSError:
            if self._process.poll() is not None:
                self._words.seek(0)
                said = self._words.read().decode(errors="replace")
                raise SystemExit(f"{self._process.args!r} ended with {self._process.returncode}: {said}") from None
            return False


class Run(Peer):
    """A server under ``run``; ``options`` come before its command."""

    def __init__(self, command: Sequence[str], *options: str, port: int | None = None) -> None:
        self._folder = tempfile.mkdtemp(prefix="fdhandoff-bench-")
        self.path = f"{self._folder}/master.sock"
        port = free_port() if port is None else port
        run = [sys.executable, "-m", "fdhandoff", "run", "--path", self.path, "--bind", f"http=127.0.0.1:{port}"]
        super().__init__([*run, *options, "--", *command], port, signal.SIGHUP)
        self.settled()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            ask(self.path, "hurry", timeout=PATIENCE)
        super().__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)

    def status(self) -> dict[str, Any]:
        return ask(self.path, "status", timeout=PATIENCE)

    def settled(self, number: int = 1) -> list[int]:
        """The pids of generation ``number``, once it serves and is alone."""

        def alone() -> list[int]:
            facts = self.status()
            alive = [one for one in facts["generations"] if one["pids"]]
            done = facts["state"] == "serving" and len(alive) == 1 and alive[0]["number"] >= number
            return list(alive[0]["pids"]) if done else []

        return list(wait_for(alone, f"generation {number}"))


class Load:
    """benchmarks/c/load.c at work: ``rate`` requests a second on ``port``, each counted from the moment when it was due.

    After ``end``, ``answers`` are (due, took, who): nanoseconds of ``time.monotonic_ns``, and the number in the answer;
    ``failed`` are the moments at which those were due that failed.
    """

    def __init__(self, port: int, rate: int) -> None:
        self.answers: list[tuple[int, int, int]] = []
        self.failed: list[int] = []
        self._process = subprocess.Popen(
            [c_program("load"), str(port), str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"the load ended with {self._process.returncode}")
        for line in output.splitlines():
            due, took, who = map(int, line.split())
            if took < 0:
                self.failed.append(due)
            else:
                self.answers.append((due, took, who))


# --- the peers ----------------------------------------------------------------------------------------------------------------


def nginx(folder: Path, port: int) -> list[str] | None:
    """The command; ``None`` where it is not installed. So do the others below."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return None
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port))
    return [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]


def haproxy(folder: Path, port: int) -> list[str] | None:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return None
    (folder / "haproxy.cfg").write_text(_HAPROXY.format(port=port))
    return [program, "-W", "-f", str(folder / "haproxy.cfg")]


def gunicorn(folder: Path) -> list[str] | None:
    try:
        import gunicorn  # type: ignore[import-untyped] # noqa: F401 - only whether it is there
    except ImportError:
        return None
    (folder / "wsgi.py").write_text(_WSGI)
    return [
        sys.executable, "-m", "gunicorn", "--chdir", str(folder), "--log-level", "warning", "--no-control-socket",
        "--workers", "2", "wsgi:app",
    ]  # fmt: skip


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: ``pss`` (what it shares is divided by who shares it), ``alone`` (the same, were it the only Python),
    ``own`` (nobody shares it), ``rss``."""
    found = dict.fromkeys(("pss", "alone", "own", "rss"), 0.0)
    pythons = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):
                path = words[5] if len(words) > 5 else ""
                pythons = path.startswith((sys.base_prefix, sys.prefix, str(ROOT))) and path.startswith("/")
                if sys.base_prefix == "/usr":
                    pythons = "python" in path
                continue
            mib = int(words[1]) / 1024 if words[-1] == "kB" else 0.0
            if words[0] == "Pss:":
                found["pss"] += mib
                found["alone"] += 0.0 if pythons else mib
            elif words[0] == "Rss:":
                found["rss"] += mib
                found["alone"] += mib if pythons else 0.0
            elif words[0] in ("Private_Clean:", "Private_Dirty:"):
                found["own"] += mib
    return found
