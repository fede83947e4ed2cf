"""The servers that are swapped: as they are, and with their adapters. One line each; the programs are the tests'. All answer
``/`` with ``app GENERATION LENGTH``, ``/slow/SECONDS`` later, and ``/big`` with 500 kB, as far as they can."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING

from .measure import ROOT

TESTS = ROOT / "tests" / "integration" / "servers"
PROGRAMS = TESTS / "unmodified"

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    return Server(needs, lambda _: [sys.executable, str(PROGRAMS / name)])


def _nginx(folder: Path, port: int, number: int) -> None:
    facts = {"folder": folder, "address": f"127.0.0.1:{port}", "number": number}
    (folder / "nginx.conf").write_text((PROGRAMS / "nginx.conf").read_text(encoding="utf-8") % facts)
    (folder / "big.new").write_text(f"app {number} 0" + " " * 500_000)
    (folder / "big.new").rename(folder / "big")  # the one before is being sent


def _uwsgi(protocol: str) -> Server:
    return Server("uwsgi", lambda _: [
        str(program("uwsgi")), protocol, "fd://3", "--master", "--disable-logging", "--threads", "24", "--need-app",
        "--module", "wsgi:app"])  # fmt: skip


_GUNICORN = ("--log-level", "error", "--no-control-socket")
_UVICORN = ("--log-level", "error", "--fd", "3")

UNMODIFIED = {
    "gunicorn sync": module("gunicorn", *_GUNICORN, "--workers", "4", "wsgi:app"),
    "gunicorn gthread": module("gunicorn", *_GUNICORN, "-k", "gthread", "--threads", "24", "wsgi:app"),
    "gunicorn asgi": module("gunicorn", *_GUNICORN, "-k", "asgi", "asgi:app"),
    "gunicorn uvicorn-worker": Server("uvicorn_worker", lambda _: [
        sys.executable, "-m", "gunicorn", *_GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "asgi:app"]),
    "uvicorn": module("uvicorn", *_UVICORN, "asgi:app"),
    "uvicorn --workers 2": module("uvicorn", *_UVICORN, "--workers", "2", "asgi:app"),
    "hypercorn": module("hypercorn", "--log-level", "error", "--bind", "fd://3", "asgi:app"),
    "granian": script("granian", "with_granian.py"),
    "daphne": module("daphne", "-v", "0", "--fd", "3", "asgi:app"),
    "aiohttp": script("aiohttp", "with_aiohttp.py"),
    "asyncio streams": script("asyncio", "with_asyncio.py"),
    "tornado": script("tornado", "with_tornado.py"),
    "sanic": script("sanic", "with_sanic.py"),
    "waitress": script("waitress", "with_waitress.py"),
    "bjoern": script("bjoern", "with_bjoern.py"),
    "cheroot": module("cheroot", "--bind", "127.0.0.1:0", "--threads", "24", "wsgi:app"),
    "cherrypy": script("cherrypy", "with_cherrypy.py"),
    "http.server": script("http", "with_threads.py"),
    "flask": module("flask", "--app", "with_flask:app", "run"),
    "django": script("django", "with_django.py"),
    "twisted": module("twisted", "web", "--listen", "systemd:domain=INET:index=0", "--wsgi", "wsgi.app"),
    "uwsgi --http11-socket": _uwsgi("--http11-socket"),
    "uwsgi --http-socket": _uwsgi("--http-socket"),
    "node": Server("node", lambda _: ["node", str(PROGRAMS / "server.js")]),
    "nginx": Server("nginx", lambda folder: [
        str(program("nginx")), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"], deploy=_nginx),
    "haproxy": Server("haproxy", lambda _: [str(program("haproxy")), "-db", "-f", str(PROGRAMS / "haproxy.cfg")]),
}  # fmt: skip


def adapters() -> dict[str, Server]:
    """The programs of the adapters' tests: they take a port and a handoff path, or are a module with options."""
    from tests.integration.servers.test_adapters import PROGRAMS as MOVING
    from tests.integration.servers.test_announcing import PROGRAMS as ANNOUNCING

    asgi = "tests.integration.servers.app:app"
    quiet = ("--log-level", "error")
    uvicorn = ("fdhandoff.servers.uvicorn", "--no-access-log", *quiet)
    worker = ("-k", "fdhandoff.servers.gunicorn_uvicorn.Worker")
    found = {
        "uvicorn": module(*uvicorn, asgi),
        "uvicorn --workers 2": module(*uvicorn, "--workers", "2", asgi),
        "gunicorn uvicorn-worker": module("gunicorn", *_GUNICORN, *worker, asgi),
        "asyncio streams": Server("asyncio", _here(sys.executable, str(TESTS / "on_asyncio.py"), "streams", "0", "")),
    }
    for name, words in MOVING.items():
        needs = "http" if name == "socketserver" else name
        found[{"socketserver": "http.server", "asyncio": "asyncio protocol"}.get(name, name)] = Server(
            needs, _here(*words, "0", "")
        )
    for name, (needs, (program, *words)) in ANNOUNCING.items():
        if program.endswith(".py"):
            found[name] = Server(needs, _here(sys.executable, str(TESTS / program), "0", ""))
        else:
            words = [word.format(port=0) for word in words]
            found[name] = Server(needs, _here(sys.executable, "-m", f"fdhandoff.servers.{program}", *words))
    return found


def _here(*words: str) -> Callable[[Path], list[str]]:
    return lambda _: list(words)


def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{PROGRAMS}"}
