"""The servers that are swapped: as they are, and with their adapters. One line each; what a server needs is written into
a folder. All answer ``/`` with ``app GENERATION LENGTH``, ``/slow/SECONDS`` later, and ``/big`` with 500 kB, as far as they
can."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING

from .measure import ROOT

TESTS = ROOT / "tests" / "integration" / "servers"

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASGI = """
import asyncio, os
NUMBER = os.environ["FDHANDOFF_GENERATION"]
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path, size = scope["path"], 0
    if path.startswith("/slow/"):
        await asyncio.sleep(float(path[6:]))
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
WSGI = """
import os, time
NUMBER = os.environ["FDHANDOFF_GENERATION"]
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/slow/"):
        time.sleep(float(path[6:]))
    size = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
FLASK = """
from flask import Flask
from wsgi import app as answers
app = Flask(__name__)
app.wsgi_app = answers
"""
WAITRESS = """
import socket
from waitress import create_server
from wsgi import app
create_server(app, sockets=[socket.socket(fileno=3)], threads=16).run()
"""
HTTP_SERVER = """
import os, socket, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
NUMBER = os.environ["FDHANDOFF_GENERATION"]
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    def do_GET(self):
        if self.path.startswith("/slow/"):
            time.sleep(float(self.path[6:]))
        size = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if self.path == "/big" else 0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.serve_forever()
"""
AIOHTTP = """
import asyncio, os, socket
from aiohttp import web
NUMBER = os.environ["FDHANDOFF_GENERATION"]
async def answer(request):
    if request.path.startswith("/slow/"):
        await asyncio.sleep(float(request.path[6:]))
    size = len(await request.read())
    return web.Response(body=f"app {NUMBER} {size}".encode() + b" " * (500_000 if request.path == "/big" else 0))
app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, sock=socket.socket(fileno=3), print=None, access_log=None)
"""
TORNADO = """
import asyncio, os, signal, socket
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler
NUMBER = os.environ["FDHANDOFF_GENERATION"]
class Answer(RequestHandler):
    async def get(self, path):
        if path.startswith("slow/"):
            await asyncio.sleep(float(path[5:]))
        self.finish(f"app {NUMBER} {len(self.request.body)}".encode() + b" " * (500_000 if path == "big" else 0))
    post = get
async def main():
    server = HTTPServer(Application([("/(.*)", Answer)], log_function=lambda handler: None))
    listener = socket.socket(fileno=3)
    listener.setblocking(False)
    server.add_socket(listener)
    await asyncio.Event().wait()
asyncio.run(main())
"""
NODE = """
const big = ' '.repeat(500000);
const server = require('http').createServer((request, response) => {
  let size = 0;
  request.on('data', (part) => { size += part.length; });
  request.on('end', () => {
    const body = `app ${process.env.FDHANDOFF_GENERATION} ${size}` + (request.url === '/big' ? big : '');
    const answer = () => response.writeHead(200, {'Content-Length': body.length}).end(body);
    request.url.startsWith('/slow/') ? setTimeout(answer, 1000 * Number(request.url.slice(6))) : answer();
  });
});
server.listen({fd: 3});
process.on('SIGTERM', () => server.close(() => process.exit(0)));
"""
NGINX = """
pid %(folder)s/nginx.pid; error_log stderr error; worker_processes 1;
events { worker_connections 512; }
http {
    access_log off; client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi; uwsgi_temp_path %(folder)s/uwsgi; scgi_temp_path %(folder)s/scgi;
    server { listen 127.0.0.1:%(port)d; location / { return 200 "app %(number)s 0"; } location = /big { root %(folder)s; } }
}
"""
HAPROXY = """
global
    maxconn 512
defaults
    mode http
    timeout client 30s
    timeout server 10s
    timeout connect 1s
frontend swaps
    bind fd@3
    http-request return status 200 content-type text/plain lf-string "app %[env(FDHANDOFF_GENERATION)] 0"
"""

SOURCES = {
    "asgi.py": ASGI, "wsgi.py": WSGI, "flasked.py": FLASK, "waitressed.py": WAITRESS, "threaded.py": HTTP_SERVER,
    "aiohttped.py": AIOHTTP, "tornadoed.py": TORNADO, "server.js": NODE, "haproxy.cfg": HAPROXY,
}  # fmt: skip


class Server:
    """``command(folder)``; ``needs``: the module or program without which it can't be measured; ``deploy``: what is written
    before generation ``number`` starts. ``options`` are those of ``run`` alone."""

    def __init__(
        self,
        needs: str,
        command: Callable[[Path], list[str]],
        *,
        options: tuple[str, ...] = (),
        deploy: Callable[[Path, int, int], object] | None = None,
    ) -> None:
        self.needs = needs
        self.command = command
        self.options = options
        self._deploy = deploy

    def deploy(self, folder: Path, port: int, number: int) -> None:
        if self._deploy is not None:
            self._deploy(folder, port, number)

    def there(self) -> bool:
        try:
            return program(self.needs) is not None or importlib.util.find_spec(self.needs) is not None
        except ModuleNotFoundError:
            return False


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}:/usr/sbin")


def module(name: str, *words: str) -> Server:
    """``python -m``, in the folder."""
    return Server(name, lambda _: [sys.executable, "-m", name, *words])


def script(needs: str, name: str) -> Server:
    """A small program that passes the listener to the server, as its documentation has it."""
    return Server(needs, lambda folder: [sys.executable, str(folder / name)])


def _nginx(folder: Path, port: int, number: int) -> None:
    (folder / "nginx.conf").write_text(NGINX % {"folder": folder, "port": port, "number": number})
    (folder / "big").write_text(f"app {number} 0" + " " * 500_000)


UNMODIFIED = {
    "gunicorn gthread": module("gunicorn", "--log-level", "error", "--no-control-socket", "-k", "gthread", "--threads", "24",
                               "wsgi:app"),
    "gunicorn sync": module("gunicorn", "--log-level", "error", "--no-control-socket", "--workers", "4", "wsgi:app"),
    "gunicorn uvicorn-worker": Server("uvicorn_worker", lambda _: [
        sys.executable, "-m", "gunicorn", "--log-level", "error", "--no-control-socket", "-k", "uvicorn_worker.UvicornWorker",
        "asgi:app"]),
    "uvicorn": module("uvicorn", "--log-level", "error", "--fd", "3", "asgi:app"),
    "uvicorn --workers 2": module("uvicorn", "--log-level", "error", "--fd", "3", "--workers", "2", "asgi:app"),
    "hypercorn": module("hypercorn", "--log-level", "error", "--bind", "fd://3", "asgi:app"),
    "daphne": module("daphne", "-v", "0", "--fd", "3", "asgi:app"),
    "aiohttp": script("aiohttp", "aiohttped.py"),
    "tornado": script("tornado", "tornadoed.py"),
    "waitress": script("waitress", "waitressed.py"),
    "http.server": script("http", "threaded.py"),
    "flask run": module("flask", "--app", "flasked:app", "run"),
    "twist web": module("twisted", "web", "--listen", "systemd:domain=INET:index=0", "--wsgi", "wsgi.app"),
    "uwsgi": Server("uwsgi", lambda _: [
        str(program("uwsgi")), "--http-socket", "fd://3", "--http-keepalive", "--master", "--disable-logging",
        "--threads", "24", "--need-app", "--module", "wsgi:app"]),
    "node": Server("node", lambda folder: ["node", str(folder / "server.js")]),
    "nginx": Server("nginx", lambda folder: [
        str(program("nginx")), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"], deploy=_nginx),
    "haproxy": Server("haproxy", lambda folder: [str(program("haproxy")), "-db", "-f", str(folder / "haproxy.cfg")]),
}  # fmt: skip


def adapters() -> dict[str, Server]:
    """Those whose tests have a program that takes a port and a handoff path, or a command line."""
    from tests.integration.servers.test_adapters import PROGRAMS
    from tests.integration.servers.test_announcing import PROGRAMS as ANNOUNCING

    asgi = "tests.integration.servers.app:app"
    quiet = ("--log-level", "error")
    worker = ("-k", "fdhandoff.servers.gunicorn_uvicorn.Worker")
    found = {
        "uvicorn": module("fdhandoff.servers.uvicorn", "--no-access-log", *quiet, asgi),
        "gunicorn uvicorn-worker": module("gunicorn", *quiet, "--no-control-socket", *worker, asgi),
    }
    for name, words in PROGRAMS.items():
        found[name] = Server(name if name != "socketserver" else "http", _here(*words, "0", ""))
    for name, (needs, (program, *words)) in ANNOUNCING.items():
        if program.endswith(".py"):
            found[name] = Server(needs, _here(sys.executable, str(TESTS / program), "0", ""))
        else:
            words = [word.format(port=0) for word in words]
            found[name] = Server(needs, _here(sys.executable, "-m", f"fdhandoff.servers.{program}", *words))
    return found


def _here(*words: str) -> Callable[[Path], list[str]]:
    return lambda _: list(words)


def environment(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{folder}"}
