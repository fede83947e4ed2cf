"""Adapters: a server that answers ``hello`` by itself and with its adapter, in microseconds for a request and for 99 of 100.

``wrk`` asks over 8 connections that are kept, for a second, each server four times a turn; one is asked, and the other is
stopped meanwhile: bare hypercorn looks ten times a second whether it shall end, which would be at the cost of its neighbour's
slowest requests. The servers have one processor and ``wrk`` another: threads of an interpreter on two of them take twice the
time for a request or not, as it happens. Each turn has servers of its own, since two processes of one program differ by some
per cent as long as they live.
One second differs from the next by more than that, and its 99 of 100 by a third: a comparison wants many turns. Where the
machine has other work the processors' time is what can be compared: what the server's processes had of it, for each request."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import processors
from .measure import Row, as_installed
from .servers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECONDS = 1
_ROUNDS = 4
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}

_ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
"""
_AIOHTTP = """
import sys
from aiohttp import web
from fdhandoff.servers import aiohttp
async def answer(request):
    return web.Response(text="hello")
app = web.Application()
app.router.add_get("/", answer)
way, port, path = sys.argv[1:]
where = {"host": "127.0.0.1", "port": int(port), "access_log": None}
web.run_app(app, print=None, **where) if way == "bare" else aiohttp.run_app(app, handoff_path=path, **where)
"""
_THREADED = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
ThreadingHTTPServer.request_queue_size = 128  # by itself 5: of 8 clients that come at once one then has to call again
from fdhandoff.servers.socketserver import serve
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_):
        pass
way, port, path = sys.argv[1:]
where = ("127.0.0.1", int(port))
if way == "bare":
    ThreadingHTTPServer(where, Handler).serve_forever()
else:
    serve(ThreadingHTTPServer, where, Handler, handoff_path=path)
"""
_TORNADO = """
import asyncio, sys
from tornado.web import Application, RequestHandler
from fdhandoff.servers import tornado
class Answer(RequestHandler):
    async def get(self):
        self.finish(b"hello")
way, port, path = sys.argv[1:]
app = Application([("/", Answer)], log_function=lambda handler: None)
async def bare():
    app.listen(int(port), "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(bare()) if way == "bare" else tornado.run(app, int(port), "127.0.0.1", handoff_path=path)
"""
_WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""
_WAITRESS = """
import sys
import waitress
from fdhandoff.servers.waitress import serve
from wsgi import app
way, port, path = sys.argv[1:]
where = {"host": "127.0.0.1", "port": int(port), "threads": 8}
waitress.serve(app, **where) if way == "bare" else serve(app, **where, handoff_path=path)
"""
_CHEROOT = """
import sys
from cheroot import wsgi
from fdhandoff.servers import cheroot
from wsgi import app
way, port, path = sys.argv[1:]
where = ("127.0.0.1", int(port))
(wsgi.Server(where, app) if way == "bare" else cheroot.Server(where, app, handoff_path=path)).start()
"""
_PROGRAMS = {
    "asgi.py": _ASGI, "wsgi.py": _WSGI, "aiohttped.py": _AIOHTTP, "threaded.py": _THREADED, "tornadoed.py": _TORNADO,
    "waitressed.py": _WAITRESS, "cherooted.py": _CHEROOT,
}  # fmt: skip
_UVICORN = ("--log-level", "error", "--no-access-log", "asgi:app", "--port")
_HYPERCORN = ("--log-level", "error", "asgi:app", "--bind", "127.0.0.1:{port}")
_GUNICORN = ("--log-level", "error", "--no-control-socket", "--keep-alive", "60", "-k", "gthread", "--threads", "8", "wsgi:app",
             "--bind", "127.0.0.1:{port}")  # fmt: skip
_GRANIAN = ("--interface", "asgi", "--log-level", "error", "--port", "{port}", "asgi:app")
_UWSGI = ("--http11-socket", "127.0.0.1:{port}", "--disable-logging", "--threads", "8", "--module", "wsgi:app")
_PROGRAM = ("-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])")
_OURS = ("--handoff-path", "{path}")
SERVERS = {
    "uvicorn": {"bare": ["-m", "uvicorn", *_UVICORN, "{port}"],
                "adapter": ["-m", "fdhandoff.servers.uvicorn", *_UVICORN, "{port}", *_OURS]},
    "aiohttp": {way: ["aiohttped.py", way, "{port}", "{path}"] for way in ("bare", "adapter")},
    "ThreadingHTTPServer": {way: ["threaded.py", way, "{port}", "{path}"] for way in ("bare", "adapter")},
    "tornado": {way: ["tornadoed.py", way, "{port}", "{path}"] for way in ("bare", "adapter")},
    "hypercorn": {"bare": ["-m", "hypercorn", *_HYPERCORN],
                  "adapter": ["-m", "fdhandoff.servers.hypercorn", *_HYPERCORN, *_OURS]},
    "gunicorn gthread": {"bare": ["-m", "gunicorn", *_GUNICORN],
                         "adapter": ["-m", "fdhandoff.servers.gunicorn", *_GUNICORN, *_OURS]},
    "granian": {"bare": ["-m", "granian", *_GRANIAN],
                "adapter": ["-m", "fdhandoff.servers.granian", *_GRANIAN, *_OURS]},
    "uWSGI": {"bare": [*_PROGRAM, "uwsgi", "--master", "--need-app", "--die-on-term", *_UWSGI],
              "adapter": ["-m", "fdhandoff.servers.uwsgi", *_UWSGI, *_OURS]},
    "waitress": {way: ["waitressed.py", way, "{port}", "{path}"] for way in ("bare", "adapter")},
    "cheroot": {way: ["cherooted.py", way, "{port}", "{path}"] for way in ("bare", "adapter")},
}  # fmt: skip


def run(turns: int, only: Sequence[str] = ()) -> list[Row]:
    unknown = set(only) - set(SERVERS)
    if unknown:
        raise SystemExit(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(SERVERS)}")
    rows: list[Row] = []
    for name, ways in SERVERS.items():
        if only and name not in only:
            continue
        times: dict[str, list[float]] = {way: [] for way in ways}
        slowest: dict[str, list[float]] = {way: [] for way in ways}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(turns):
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                servers = {way: stack.enter_context(_running(Path(folder), way, ways[way])) for way in ways}
                for port, pid in servers.values():
                    _asked(port)  # what a server does once only does not count
                    _signal(pid, signal.SIGSTOP)
                for number in range(turn, turn + _ROUNDS):
                    for way in sorted(servers, reverse=number % 2 == 1):
                        port, pid = servers[way]
                        _signal(pid, signal.SIGCONT)
                        before = _processor_time(pid)
                        one, most, count = _asked(port)
                        times[way].append(one)
                        slowest[way].append(most)
                        spent[way].append((_processor_time(pid) - before) / count)
                        _signal(pid, signal.SIGSTOP)
        for what, found in (("a request", times), ("p99", slowest), ("processor time", spent)):
            bare = Row(f"{name}, {what}", found["bare"], "us")
            rows += [
                bare,
                Row(
                    f"{name} with its adapter, {what}",
                    found["adapter"],
                    "us",
                    against=bare,
                    inverse=True,
                    at_least=0.98,
                ),
            ]
    return rows


@contextlib.contextmanager
def _running(folder: Path, way: str, words: list[str]) -> Iterator[tuple[int, int]]:
    """A server with a processor of its own, and its port and pid; what is started meanwhile has another processor."""
    for file, text in _PROGRAMS.items():
        (folder / file).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, *(word.format(port=port, path=folder / f"{way}.sock") for word in words)]
    environment = as_installed()
    environment["PYTHONPATH"] += f":{folder}"
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
    os.sched_setaffinity(0, processors.MEASURED)
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(0, processors.ASKING)
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise SystemExit(f"{' '.join(command)} does not serve") from None
                time.sleep(0.05)
        yield port, process.pid
    finally:
        _signal(process.pid, signal.SIGCONT)
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, processors.ALL)


def _processes(pid: int) -> list[int]:
    """The process and its children, and theirs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _processes(int(child)))]


def _signal(pid: int, number: signal.Signals) -> None:
    for one in _processes(pid):
        os.kill(one, number)


def _processor_time(pid: int) -> float:
    """Microseconds that the process and its children have had."""
    clocks = [(~one << 3) | 2 for one in _processes(pid)]  # as clock_getcpuclockid(3) has it
    return sum(time.clock_gettime_ns(clock) for clock in clocks) / 1000


def _asked(port: int) -> tuple[float, float, int]:
    """Microseconds for a request, by how many there were, and for 99 of 100 of them; and how many."""
    words = ["wrk", "-t1", "-c8", f"-d{_SECONDS}", "--latency", f"http://127.0.0.1:{port}/"]
    try:
        said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    except FileNotFoundError:
        raise SystemExit("this needs wrk: apt-get install wrk") from None
    rate = re.search(r"Requests/sec: *([\d.]+)", said)
    slow = re.search(r"99% *([\d.]+)(us|ms|s)\b", said)
    count = re.search(r"(\d+) requests in", said)
    if rate is None or slow is None or count is None or "Socket errors" in said or "Non-2xx" in said:
        raise SystemExit(f"wrk was not answered as it should be:\n{said}")
    return 1e6 / float(rate[1]), float(slow[1]) * _UNITS[slow[2]], int(count[1])
