"""That the adapters serve as their servers do by themselves: what these are told is done, or refused in a sentence."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs_that
from ..cli import DEADLINE, PACKAGE, Running, environment, free_port, stopping, wait_for
from . import Client
from .http2 import certificate

if TYPE_CHECKING:
    import ssl

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[2])])


class Program(Running):
    """``words`` behind ``python``, with ``settings`` as the module ``of_the_project``."""

    def __init__(self, folder: Path, *words: str, settings: str = "") -> None:
        (folder / "of_the_project.py").write_text(settings)
        env = environment(PYTHONPATH=PATHS, DJANGO_SETTINGS_MODULE="of_the_project")
        self._start([sys.executable, *words], env=env, cwd=folder)

    def serves(self) -> None:
        self.says("generation 1 serves")


# --- CherryPy's settings --------------------------------------------------------------------------------------

CHERRYPY = """
import socket, sys
import cherrypy
from fdhandoff.servers.cherrypy import quickstart

class Root:
    @cherrypy.expose
    def index(self):
        service = cherrypy.request.wsgi_environ["fdhandoff"]
        nodelay = service.holdings.listeners[0][1].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        return f"{cherrypy.request.scheme} {nodelay}"

port, path, certificate, key = sys.argv[1:]
settings = {
    "server.socket_port": int(port), "server.ssl_certificate": certificate, "server.ssl_private_key": key,
    "server.max_request_body_size": 1000, "server.max_request_header_size": 2000, "server.nodelay": False,
    "log.error_file": "errors.log",
}
quickstart(Root(), config={"global": settings}, handoff_path=path)
"""


def test_cherrypy_serves_by_all_of_its_settings(tmp_path: Path) -> None:
    pytest.importorskip("cherrypy", reason="needs CherryPy: pip install 'fdhandoff[test]'")
    port = free_port()
    files, context = certificate(tmp_path)
    server = Program(tmp_path, "-c", CHERRYPY, str(port), str(tmp_path / "h.sock"), *files)
    with stopping(server):
        server.serves()
        url = f"https://127.0.0.1:{port}/"
        with urllib.request.urlopen(url, timeout=DEADLINE, context=context) as answer:
            assert answer.read() == b"https 0"
        assert _status(port, context, "Content-Length", "2000") == 413
        assert _status(port, context, "X-Long", "x" * 3000) == 413
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_for(lambda: "plain HTTP" in (tmp_path / "errors.log").read_text(), "its own log to have the error")
        server.signal(signal.SIGTERM)
        assert server.ends() == 0, server.text()


def _status(port: int, context: ssl.SSLContext, name: str, value: str) -> int:
    """Of the answer to a request with this header; a body does not come."""
    with contextlib.closing(
        http.client.HTTPSConnection("127.0.0.1", port, timeout=DEADLINE, context=context)
    ) as client:
        client.putrequest("POST", "/")
        client.putheader(name, value)
        client.endheaders()
        return client.getresponse().status


# --- a drain that can't be -----------------------------------------------------------------------------------

VETOING = """
import sys

def app(environ, start_response):
    environ["fdhandoff"].before("drain", no)
    start_response("200 OK", [("Content-Length", "5")])
    return [b"app 1"]

def no():
    raise RuntimeError("not today")

port, path = sys.argv[1:]
"""
VETOED = {
    "waitress": "from fdhandoff.servers.waitress import serve\n"
    "serve(app, host='127.0.0.1', port=int(port), handoff_path=path)",
    "cheroot": "from fdhandoff.servers.cheroot import Server\n"
    "Server(('127.0.0.1', int(port)), app, handoff_path=path).start()",
}


@pytest.mark.parametrize("name", VETOED)
def test_a_server_whose_drain_fails_ends_and_says_why(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    port = free_port()
    server = Program(tmp_path, "-c", VETOING + VETOED[name], str(port), str(tmp_path / "h.sock"))
    with stopping(server):
        server.serves()
        assert _asked(("127.0.0.1", port)) == 1
        server.signal(signal.SIGTERM)
        assert server.ends() == 1, server.text()
    assert "a hook before drain said no: not today" in server.text()


# --- addresses -----------------------------------------------------------------------------------------------

TWO_ADDRESSES = """
import socket, sys

resolve = socket.getaddrinfo

def getaddrinfo(host, *others, **options):
    hosts = ["127.0.0.2", "127.0.0.1"] if host in ("two.test", b"two.test") else [host]
    return [found for one in hosts for found in resolve(one, *others, **options)]

socket.getaddrinfo = getaddrinfo
socket.gethostbyname = lambda host: getaddrinfo(host, 0)[0][4][0]
port, path = sys.argv[1:]
"""
NAMED = {
    "cheroot": "from fdhandoff.servers.cheroot import Server\nfrom wsgi import app\n"
    "Server(('two.test', int(port)), app, handoff_path=path).start()",
    "sanic": "from fdhandoff.servers.sanic import run\nfrom on_sanic import app\n"
    "run(app, 'two.test', int(port), handoff_path=path)",
}


@pytest.mark.parametrize("name", NAMED)
def test_one_address_of_a_name_is_bound_where_one_is_served(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    port = free_port()
    server = Program(tmp_path, "-c", TWO_ADDRESSES + NAMED[name], str(port), str(tmp_path / "h.sock"))
    with stopping(server):
        server.serves()
        assert _asked(("127.0.0.2", port)) == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)


def test_cheroots_next_generation_serves_at_the_address_that_the_first_could_bind(tmp_path: Path) -> None:
    pytest.importorskip("cheroot", reason="needs cheroot: pip install 'fdhandoff[test]'")
    port = free_port()
    words = ("-c", TWO_ADDRESSES + NAMED["cheroot"], str(port), str(tmp_path / "h.sock"))
    taken = socket.create_server(("127.0.0.2", port))
    old = Program(tmp_path, *words)
    with stopping(old):
        with taken:
            old.says("generation 1 serves")
            assert _asked(("127.0.0.1", port)) == 1
        new = Program(tmp_path, *words)
        with stopping(new):
            new.says("generation 2 serves")
            assert _asked(("127.0.0.1", port)) == 2


DUAL_STACK = {
    "cheroot": "wsgi:app --bind [::]:{port}",
    "granian": "--interface wsgi --host :: --port {port} wsgi:app",
    "django": "runserver [::]:{port} --skip-checks",
    "sanic": "--host :: --port {port} --single-process on_sanic:app",
}
PROJECT = """
SECRET_KEY, ROOT_URLCONF, ALLOWED_HOSTS, LOGGING_CONFIG = "of a test", "on_django", ["*"], None
"""
WERKZEUG = """
import sys
from fdhandoff.servers.werkzeug import run_simple
from wsgi import app
run_simple(sys.argv[1], int(sys.argv[2]), app, handoff_path=sys.argv[3])
"""


@pytest.mark.parametrize("name", [*DUAL_STACK, "werkzeug"])
def test_a_server_that_has_clients_of_both_families_at_all_of_ipv6s_addresses_has_them_with_its_adapter(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    needs_that(_has_ipv6(), "IPv6 on the loopback interface")
    port, path = free_port(), str(tmp_path / "h.sock")
    if name == "werkzeug":
        words = ["-c", WERKZEUG, "::", str(port), path]
    else:
        words = ["-m", f"{PACKAGE}.servers.{name}", *DUAL_STACK[name].format(port=port).split(), "--handoff-path", path]
    server = Program(tmp_path, *words, settings=PROJECT)
    with stopping(server):
        server.serves()
        assert _asked(("::1", port)) == 1
        assert _asked(("127.0.0.1", port)) == 1


def _asked(address: tuple[str, int]) -> int:
    with contextlib.closing(Client(address)) as client:
        return client.ask()


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# --- what is another server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("apps", ["django.contrib.staticfiles", "around", "daphne --noasgi"])
def test_a_runserver_by_djangos_own_server_is_served(apps: str, tmp_path: Path) -> None:
    pytest.importorskip("django", reason="needs Django: pip install 'fdhandoff[test]'")
    name, *words = apps.split()
    pytest.importorskip(name.partition(".")[0] if name != "around" else "django", reason=f"needs {name}")
    _command(tmp_path, "around", "print('around it'); super().inner_run(*arguments, **options)")
    port = free_port()
    server = _runserver(tmp_path, name, f"127.0.0.1:{port}", *words)
    with stopping(server):
        server.serves()
        assert _asked(("127.0.0.1", port)) == 1
    assert ("around it" in server.text()) == (name == "around")


@pytest.mark.parametrize("name", ["daphne", "another"])
def test_a_runserver_by_another_server_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    pytest.importorskip("django", reason="needs Django: pip install 'fdhandoff[test]'")
    pytest.importorskip(name if name != "another" else "django", reason=f"needs {name}: pip install 'fdhandoff[test]'")
    _command(tmp_path, "another", "print('served by another'); raise SystemExit(0)")
    refused = _runserver(tmp_path, name, f"127.0.0.1:{free_port()}")
    with stopping(refused):
        assert refused.ends() == 2, refused.text()
    assert f"runserver is {name}'s here, which serves by itself" in refused.text()
    assert "Traceback" not in refused.text()


def _command(folder: Path, app: str, does: str) -> None:
    """An application whose ``runserver`` is Django's with another ``inner_run``."""
    commands = folder / app / "management" / "commands"
    commands.mkdir(parents=True)
    for package in (folder / app, commands.parent, commands):
        (package / "__init__.py").touch()
    (commands / "runserver.py").write_text(
        "from django.core.management.commands import runserver\n"
        "class Command(runserver.Command):\n"
        f"    def inner_run(self, *arguments, **options):\n        {does}\n"
    )


def _runserver(folder: Path, app: str, *words: str) -> Program:
    settings = f"INSTALLED_APPS, STATIC_URL, ASGI_APPLICATION = [{app!r}], 'static/', 'none.asgi'\n{PROJECT}"
    path = str(folder / "h.sock")
    command = ["-m", f"{PACKAGE}.servers.django", "runserver", *words, "--skip-checks", "--handoff-path", path]
    return Program(folder, *command, settings=settings)


WRAPPING = """
import sys
from cheroot.ssl.builtin import BuiltinSSLAdapter
from fdhandoff.servers.cheroot import Server
from wsgi import app

class Wrapping(BuiltinSSLAdapter):
    def bind(self, sock):
        return object()

port, path, *files = sys.argv[1:]
server = Server(("127.0.0.1", int(port)), app, handoff_path=path)
server.ssl_adapter = Wrapping(*files)
server.start()
"""


def test_a_tls_adapter_of_cheroots_that_wraps_the_listener_does_not_serve_without_tls(tmp_path: Path) -> None:
    pytest.importorskip("cheroot", reason="needs cheroot: pip install 'fdhandoff[test]'")
    files, _ = certificate(tmp_path)
    refused = Program(tmp_path, "-c", WRAPPING, str(free_port()), str(tmp_path / "h.sock"), *files)
    with stopping(refused):
        assert refused.ends() == 1, refused.text()
    assert "ValueError: Wrapping wraps the listener" in refused.text()


def test_werkzeug_refuses_a_keyword_that_there_is_not() -> None:
    pytest.importorskip("werkzeug", reason="needs werkzeug: pip install 'fdhandoff[test]'")
    from fdhandoff.servers.werkzeug import run_simple

    with pytest.raises(TypeError, match="unexpected keyword argument 'threads'"):
        run_simple("127.0.0.1", 0, None, threads=4)
