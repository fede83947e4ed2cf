"""Adapters: a server that answers ``hello`` by itself and with its adapter, in microseconds for a request and for 99 of 100.

All are there all the time, with eight connections that stay; ten times a second another one is asked. What else the host
does, which changes a p99 by a third from one second to the next, hits all alike. Who is not asked is stopped: bare hypercorn
looks ten times a second whether it shall end, which would be at the cost of its neighbour's slowest requests. What a server
does within 30 ms of being continued does not count: the processor's caches are its neighbour's. The servers have one processor
and who asks has another: threads of an interpreter on two of them take twice the time for a request or not, as it happens.

Two processes of one program differ by some per cent as long as they live, and who was started first may have an advantage. So
each turn has servers of its own, in another order, and two of them are bare: what these differ by is what this measurement
takes for nothing, and the adapter is compared with their mean. Its p99 is the median of those of its tenths of a second: one
in which the host was elsewhere makes its own p99 ten times as long, and that of all together by as much as it happens. A ratio
that can't be told from what is claimed is measured again, up to three times as often.
Where the machine has other work the processors' time is what can be compared: what the server's processes had of it, for each
request."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import processors
from .asking import Asker
from .measure import Row, as_installed, quantile
from .servers import PATIENCE
from .traces import descendants

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SLICE_SECONDS = 0.1
_SLICES = 20
_AGAIN_WARM_SECONDS = 0.03
_WARM_SECONDS = 0.5
_MOST_TURNS = 3
_CLAIM = 0.98

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
_WSGIREF = """
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from fdhandoff.servers import wsgiref
from wsgi import app
WSGIServer.request_queue_size = 128
class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass
way, port, path = sys.argv[1:]
where = ("127.0.0.1", int(port), app)
if way == "bare":
    server = make_server(*where, handler_class=Quiet)
else:
    server = wsgiref.make_server(*where, handler_class=Quiet, handoff_path=path)
server.serve_forever()
"""
_FLASK = """
import logging, sys
from flask import Flask
from fdhandoff.servers import flask
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = Flask("hello")
app.add_url_rule("/", view_func=lambda: "hello")
way, port, path = sys.argv[1:]
where = ("127.0.0.1", int(port))
app.run(*where) if way == "bare" else flask.run(app, *where, handoff_path=path)
"""
_DJANGO = """
import sys
from django.conf import settings
from django.core.servers import basehttp
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path as url
from fdhandoff.servers import django
basehttp.WSGIServer.request_queue_size = 128
basehttp.WSGIRequestHandler.disable_nagle_algorithm = True  # else its answers, in two pieces, take 44 ms on such a connection
basehttp.WSGIRequestHandler.log_message = lambda *_: None
urlpatterns = [url("", lambda request: HttpResponse("hello", headers={"Content-Length": "5"}))]
settings.configure(SECRET_KEY="none", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
way, port, path = sys.argv[1:]
where = ("127.0.0.1", int(port), get_wsgi_application())
basehttp.run(*where, threading=True) if way == "bare" else django.run(*where, handoff_path=path)
"""
_TWISTED = """
import sys
from fdhandoff.servers import twisted
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
class Answer(Resource):
    isLeaf = True
    def render_GET(self, request):
        return b"hello"
way, port, path = sys.argv[1:]
site = Site(Answer())
if way == "bare":
    reactor.listenTCP(int(port), site, interface="127.0.0.1")
    reactor.run()
else:
    twisted.run(site, f"127.0.0.1:{port}", handoff_path=path)
"""
_SANIC = """
import sys
from sanic import Sanic
from sanic.response import text
from fdhandoff.servers import sanic
app = Sanic("hello", configure_logging=False)
@app.get("/")
async def answer(request):
    return text("hello")
way, port, path = sys.argv[1:]
where = {"host": "127.0.0.1", "port": int(port), "access_log": False}
app.run(**where, single_process=True, motd=False) if way == "bare" else sanic.run(app, **where, handoff_path=path)
"""
_PROGRAMS = {
    "asgi.py": _ASGI, "wsgi.py": _WSGI, "aiohttped.py": _AIOHTTP, "threaded.py": _THREADED, "tornadoed.py": _TORNADO,
    "waitressed.py": _WAITRESS, "cherooted.py": _CHEROOT, "wsgirefed.py": _WSGIREF, "flasked.py": _FLASK,
    "djangoed.py": _DJANGO, "twisteded.py": _TWISTED, "saniced.py": _SANIC,
}  # fmt: skip
_UVICORN = ("--log-level", "error", "--no-access-log", "asgi:app", "--port")
_HYPERCORN = ("--log-level", "error", "asgi:app", "--bind", "127.0.0.1:{port}")
_GUNICORN = ("--log-level", "error", "--no-control-socket", "--keep-alive", "60", "-k", "gthread", "--threads", "8", "wsgi:app",
             "--bind", "127.0.0.1:{port}")  # fmt: skip
_GRANIAN = ("--interface", "asgi", "--log-level", "error", "--port", "{port}", "asgi:app")
_UWSGI = ("--http11-socket", "127.0.0.1:{port}", "--disable-logging", "--threads", "8", "--module", "wsgi:app")
_DAPHNE = ("-v", "0", "-p", "{port}", "asgi:app")
_PROGRAM = ("-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])")
_OURS = ("--handoff-path", "{path}")


def _either_way(file: str) -> dict[str, list[str]]:
    """A program of ours that serves in either way, as its first word says."""
    return {way: [file, way, "{port}", "{path}"] for way in ("bare", "adapter")}


SERVERS = {
    "uvicorn": {"bare": ["-m", "uvicorn", *_UVICORN, "{port}"],
                "adapter": ["-m", "fdhandoff.servers.uvicorn", *_UVICORN, "{port}", *_OURS]},
    "aiohttp": _either_way("aiohttped.py"),
    "ThreadingHTTPServer": _either_way("threaded.py"),
    "tornado": _either_way("tornadoed.py"),
    "hypercorn": {"bare": ["-m", "hypercorn", *_HYPERCORN],
                  "adapter": ["-m", "fdhandoff.servers.hypercorn", *_HYPERCORN, *_OURS]},
    "gunicorn gthread": {"bare": ["-m", "gunicorn", *_GUNICORN],
                         "adapter": ["-m", "fdhandoff.servers.gunicorn", *_GUNICORN, *_OURS]},
    "granian": {"bare": ["-m", "granian", *_GRANIAN],
                "adapter": ["-m", "fdhandoff.servers.granian", *_GRANIAN, *_OURS]},
    "uWSGI": {"bare": [*_PROGRAM, "uwsgi", "--master", "--need-app", "--die-on-term", *_UWSGI],
              "adapter": ["-m", "fdhandoff.servers.uwsgi", *_UWSGI, *_OURS]},
    "waitress": _either_way("waitressed.py"),
    "cheroot": _either_way("cherooted.py"),
    "wsgiref": _either_way("wsgirefed.py"),
    "Flask": _either_way("flasked.py"),
    "Django": _either_way("djangoed.py"),
    "Twisted": _either_way("twisteded.py"),
    "daphne": {"bare": ["-m", "daphne", *_DAPHNE], "adapter": ["-m", "fdhandoff.servers.daphne", *_DAPHNE, *_OURS]},
    "Sanic": _either_way("saniced.py"),
}  # fmt: skip


def run(turns: int, only: Sequence[str] = ()) -> list[Row]:
    unknown = set(only) - set(SERVERS)
    if unknown:
        raise SystemExit(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(SERVERS)}")
    rows: list[Row] = []
    for name, ways in SERVERS.items():
        if not only or name in only:
            rows += _measured(name, ways, turns)
    return rows


def _measured(name: str, ways: dict[str, list[str]], turns: int) -> list[Row]:
    """So many turns, and up to three times as many as long as a ratio can't be told from what is claimed."""
    commands = {"bare": ways["bare"], "bare again": ways["bare"], "adapter": ways["adapter"]}
    samples: dict[str, dict[str, list[float]]] = {
        what: {who: [] for who in commands} for what in ("a request", "p99", "processor time")
    }
    rows: list[Row] = []
    for turn in range(_MOST_TURNS * turns):
        if turn >= turns and not any(_undecided(row) for row in rows):
            break
        print(f"{name}: turn {turn + 1}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            found = {
                who: stack.enter_context(_running(Path(folder), who, commands[who]))
                for who in _rotated(list(commands), turn)
            }
            asked = {who: _Asked(stack.enter_context(Asker(port)), pid) for who, (port, pid) in found.items()}
            for number in range(_SLICES):
                for who in _rotated(list(asked), number):
                    asked[who].ask()
            for who, one in asked.items():
                samples["a request"][who].append(one.nanoseconds / one.requests / 1000)
                samples["p99"][who].append(statistics.median(one.slowest) / 1000)
                samples["processor time"][who].append(one.processor_time / one.requests)
        rows = []
        for what, each in samples.items():
            first = Row(f"{name}, {what}", each["bare"], "us")
            again = Row(f"{name} again, {what}", each["bare again"], "us", against=first, inverse=True)
            both = Row(
                f"{name}, {what}", [sum(two) / 2 for two in zip(first.samples, again.samples, strict=True)], "us"
            )
            words = f"{name} with its adapter, {what}"
            rows += [both, again, Row(words, each["adapter"], "us", against=both, inverse=True, at_least=_CLAIM)]
    for row in rows:
        if row.at_least is not None:
            print(f"{row.name}: {row.ratio:.3f} ±{row.doubt:.3f}", file=sys.stderr)
    return rows


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def _undecided(row: Row) -> bool:
    return row.at_least is not None and row.ratio is not None and abs(row.ratio - _CLAIM) < 2 * row.doubt


class _Asked:
    """A server, and what it took for its requests; stopped while it is not asked."""

    def __init__(self, asker: Asker, pid: int) -> None:
        self._asker = asker
        self._pid = pid
        self.requests = 0
        self.nanoseconds = 0
        self.slowest: list[int] = []  # of each slice all but one in a hundred took less
        self.processor_time = 0.0
        asker.ask(_WARM_SECONDS)  # what a server does once only does not count
        _signal(pid, signal.SIGSTOP)

    def ask(self) -> None:
        _signal(self._pid, signal.SIGCONT)
        self._asker.ask(_AGAIN_WARM_SECONDS)
        before = _processor_time(self._pid)
        took, nanoseconds = self._asker.ask(_SLICE_SECONDS)
        self.processor_time += _processor_time(self._pid) - before
        _signal(self._pid, signal.SIGSTOP)
        self.requests += len(took)
        self.nanoseconds += nanoseconds
        self.slowest.append(quantile(took, 0.99))


@contextlib.contextmanager
def _running(folder: Path, who: str, words: list[str]) -> Iterator[tuple[int, int]]:
    """A server with a processor of its own, and its port and pid; what is started meanwhile has another processor."""
    for file, text in _PROGRAMS.items():
        (folder / file).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, *(word.format(port=port, path=folder / f"{who}.sock") for word in words)]
    environment = as_installed()
    environment["PYTHONPATH"] += f":{folder}"
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
    os.sched_setaffinity(0, processors.MEASURED)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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
        if process.poll() is None:
            _signal(process.pid, signal.SIGCONT)
            process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, processors.ALL)


def _signal(pid: int, number: signal.Signals) -> None:
    for one in descendants(pid):
        os.kill(one, number)


def _processor_time(pid: int) -> float:
    """Microseconds that the process and its children have had."""
    clocks = [(~one << 3) | 2 for one in descendants(pid)]  # as clock_getcpuclockid(3) has it
    return sum(time.clock_gettime_ns(clock) for clock in clocks) / 1000
