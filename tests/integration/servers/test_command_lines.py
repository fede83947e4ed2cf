"""The adapters' command lines with the servers' own options: at a Unix socket's path where the server has such an option."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping, verb, wait_for
from ..master.test_health import asked
from . import Client, KeepAlive

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

#: What is asked for to be there, and the words behind ``python -m fdhandoff.servers.…``: ``{path}`` is the socket's, ``{port}``
#: where there is none.
COMMANDS = {
    "uvicorn": "app:app --uds {path} --no-access-log --timeout-keep-alive 60 --log-level warning",
    "hypercorn": "app:app --bind unix:{path} --keep-alive 60",
    "gunicorn": "wsgi:app --bind unix:{path} --worker-class gthread --threads 12 --keep-alive 60 --no-control-socket",
    "daphne": "-v 0 -u {path} app:app",
    "waitress": "--unix-socket={path} --threads=8 wsgi:app",
    "cheroot": "wsgi:app --bind {path} --threads 12 --timeout 60",
    "sanic": "on_sanic:app --unix {path} --single-process --no-access-logs",
    "flask": "--app on_flask run --host unix://{path}",
    "django wsgi": "project.wsgi 127.0.0.1:{port}",
    "django": "runserver 127.0.0.1:{port} --skip-checks",
}
#: These keep connections, but can't move them, or keep none.
RECONNECTING = ("gunicorn", "daphne", "flask")

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "of_the_project")
execute_from_command_line(sys.argv)
"""
WSGI = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "of_the_project")
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""
SETTINGS = """
SECRET_KEY, ROOT_URLCONF, ALLOWED_HOSTS, LOGGING_CONFIG = "of a test", "on_django", ["*"], None
"""


class Server(Running):
    """In a directory of its own, where a project of Django's is, with all of the handoff's options."""

    def __init__(self, name: str, folder: Path, address: tuple[str, int] | str, health: int) -> None:
        (folder / "manage.py").write_text(MANAGE)
        (folder / "of_the_project.py").write_text(SETTINGS)
        (folder / "project").mkdir(exist_ok=True)
        (folder / "project" / "wsgi.py").write_text(WSGI)
        port = address[1] if isinstance(address, tuple) else ""
        words = COMMANDS[name].format(path=address, port=port).split()
        words += ["--handoff-path", str(folder / "h.sock"), "--handoff-probation=500ms"]
        words += ["--handoff-health", f"127.0.0.1:{health}", "--handoff-pre-stop-delay", "10m"]
        env = environment(PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT)]))
        module = name.partition(" ")[0]
        self._start([sys.executable, "-m", f"{PACKAGE}.servers.{module}", *words], env=env, cwd=folder)

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_server_with_its_own_options_hands_over_and_tells_of_its_end_before_it(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name.partition(" ")[0], reason=f"needs {name}: pip install 'fdhandoff[test]'")
    health = free_port()
    address = ("127.0.0.1", free_port()) if "{port}" in COMMANDS[name] else str(tmp_path / "http.sock")
    old = Server(name, tmp_path, address, health)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        with KeepAlive(address, count=2) as busy:
            new = Server(name, tmp_path, address, health)
            stack.enter_context(stopping(new))
            new.serves(2)
            assert old.ends() == 0, old.text()
            busy.heard(2)
            assert asked(health)[0] == 200
        assert not busy.failures
        if name not in RECONNECTING:
            assert busy.reconnects == 0
        new.signal(signal.SIGTERM)
        wait_for(lambda: asked(health)[0] == 503, "readiness to be false")
        with contextlib.closing(Client(address)) as late:
            assert late.ask() == 2, "connections are accepted for the length of the delay"
        assert verb("hurry", str(tmp_path / "h.sock")).returncode == 0
        assert new.ends() == 0, new.text()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", health)), "nobody answers any more"
    assert [path.name for path in tmp_path.iterdir() if path.is_socket()] == []


def test_gunicorns_own_signals_reload_and_upgrade_at_a_path_and_lose_no_request(tmp_path: Path) -> None:
    """HUP replaces the workers below the same arbiter, USR2 the arbiter itself, as without the adapter."""
    pytest.importorskip("gunicorn", reason="needs gunicorn: pip install 'fdhandoff[test]'")
    path = str(tmp_path / "http.sock")
    first = Server("gunicorn", tmp_path, path, free_port())
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    with stopping(first), contextlib.ExitStack() as stack:
        for word in ("hurry", "stop"):
            stack.callback(verb, word, str(tmp_path / "h.sock"))  # whoever serves then, if the test fails
        first.serves(1)
        inode = os.stat(path).st_ino
        with KeepAlive(path, count=2) as busy:
            before = set(children.read_text().split())
            first.signal(signal.SIGHUP)
            wait_for(lambda: before.isdisjoint(children.read_text().split()), "other workers")
            busy.heard(1)
            first.signal(signal.SIGUSR2)
            first.says("generation 2 serves")
            busy.heard(2)
            wait_for(lambda: first.process.poll() is not None, "the end of the first arbiter")
            busy.heard(2)
            assert os.stat(path).st_ino == inode
        assert not busy.failures
        assert verb("stop", str(tmp_path / "h.sock")).returncode == 0
        assert verb("hurry", str(tmp_path / "h.sock")).returncode == 0
        assert first.ends() == 0, first.text()
    assert not os.path.exists(path)
