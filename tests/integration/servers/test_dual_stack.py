"""At ``[::]`` IPv4's clients are answered, too, by those servers that do so without their adapters."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import pytest

from ...conftest import needs_that
from ..cli import PACKAGE, Running, environment, free_port, stopping
from . import Client

APP = "tests.integration.servers"
#: The words behind ``python -m fdhandoff.servers.…``.
COMMANDS = {
    "hypercorn": f"{APP}.app:app --bind [::]:{{port}}",
    "daphne": f"-v 0 -b :: -p {{port}} {APP}.app:app",
    "flask": f"--app {APP}.on_flask run --host :: --port {{port}}",
    "gunicorn": f"{APP}.wsgi:app --bind [::]:{{port}} --no-control-socket",
    "granian": f"--interface asgi --host :: --port {{port}} {APP}.app:app",
    "uwsgi": f"--module {APP}.wsgi:app --http-socket [::]:{{port}} --disable-logging",
}


class Server(Running):
    def __init__(self, name: str, port: int, path: Path) -> None:
        words = [*COMMANDS[name].format(port=port).split(), "--handoff-path", str(path)]
        self._start([sys.executable, "-m", f"{PACKAGE}.servers.{name}", *words], env=environment())


@pytest.mark.parametrize("name", COMMANDS)
def test_all_addresses_are_those_of_ipv4_too(name: str, tmp_path: Path) -> None:
    if name != "uwsgi":
        pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    needs_that(socket.has_dualstack_ipv6(), "IPv6")
    port = free_port()
    server = Server(name, port, tmp_path / "h.sock")
    with stopping(server):
        server.says("generation 1 serves")
        for host in ("127.0.0.1", "::1"):
            with contextlib.closing(Client((host, port))) as client:
                assert client.ask() == 1


#: Each serves at all addresses of a port, and answers with its client's.
EVERYWHERE = {
    "aiohttp": """
from aiohttp import web
from fdhandoff.servers.aiohttp import run_app
async def answer(request):
    return web.Response(text=repr(request.transport.get_extra_info("peername")))
app = web.Application()
app.router.add_get("/", answer)
run_app(app, port=int(port), handoff_path=path)
""",
    "tornado": """
from tornado.web import Application, RequestHandler
from fdhandoff.servers.tornado import run
class Answer(RequestHandler):
    def get(self):
        self.finish(repr(self.request.connection.context.address))
run(Application([("/", Answer)]), int(port), handoff_path=path)
""",
    "socketserver": """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from fdhandoff.servers.socketserver import serve
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        body = repr(self.client_address).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
serve(ThreadingHTTPServer, ("", int(port)), Answer, handoff_path=path)
""",
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_where_no_address_was_asked_for_ipv4s_clients_have_addresses_of_ipv4(name: str, tmp_path: Path) -> None:
    if name != "socketserver":
        pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    program = f"import sys\n_, port, path = sys.argv\n{EVERYWHERE[name]}"

    class Program(Running):
        def __init__(self) -> None:
            self._start([sys.executable, "-c", program, str(port), str(tmp_path / "h.sock")], env=environment())

    port = free_port()
    old = Program()
    with stopping(old):
        old.says("generation 1 serves")
        new = Program()
        with stopping(new):
            new.says("generation 2 serves")
            with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: sock.recv(4096), b""))
                assert answer.endswith(repr(sock.getsockname()).encode()), answer
