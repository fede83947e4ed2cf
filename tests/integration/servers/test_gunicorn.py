"""The adapter for gunicorn, where arbiters die early, workers are many, and paths belong to somebody."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from fdhandoff.system.processes import descendants

from ...conftest import needs_that
from ..cli import DEADLINE, PACKAGE, Running, environment, free_port, stopping, wait_for
from . import Client, gone

pytest.importorskip("gunicorn", reason="needs gunicorn: pip install 'fdhandoff[test]'")

ROOT = Path(__file__).parents[3]

#: The second worker that loads this has done so once there is a file ``go``, where it shall be held up.
APPLICATION = """
import os, time
from tests.integration.servers.{module} import app
if "HELD" in os.environ:
    try:
        os.mkdir("first")
    except FileExistsError:
        open("second", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
"""
#: No byte more goes into the pipe by which workers say that they have loaded the application.
FULL = """
import os, select
def pre_fork(arbiter, worker):
    if arbiter._watcher is not None:
        while select.select([], [arbiter._booted[1]], [], 0)[1]:
            os.write(arbiter._booted[1], bytes(4096))
"""


class Server(Running):
    def __init__(self, folder: Path, bind: str, *words: str, module: str = "wsgi", held: bool = False) -> None:
        (folder / "held.py").write_text(APPLICATION.format(module=module))
        command = [sys.executable, "-m", f"{PACKAGE}.servers.gunicorn", "held:app", "--bind", bind, *words]
        command += ["--handoff-path", str(folder / "h.sock")]
        if "--handoff-probation" not in words:
            command += ["--handoff-probation", "500ms"]
        if "--control-socket" not in words:
            command.append("--no-control-socket")
        env = environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]), **({"HELD": "1"} if held else {}))
        self._start(command, env=env, cwd=folder)

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def replaced(server: Server, worker: int) -> None:
    wait_for(lambda: descendants(server.pid) not in ([], [worker]), "a worker in its place")


@pytest.mark.parametrize(("module", "kind"), [("wsgi", "sync"), ("wsgi", "gthread"), ("app", "asgi")])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_of_one_that_never_was_ready_answer_nobody(
    module: str, kind: str, end: signal.Signals, tmp_path: Path
) -> None:
    """One of them waits for the start when the arbiter ends, the other comes to it later."""
    port = free_port()
    words = ("--worker-class", kind, "--workers", "2", "--graceful-timeout", "3")
    bind = f"127.0.0.1:{port}"
    old = Server(tmp_path, bind, *words, module=module)
    with stopping(old):
        old.serves(1)
        new = Server(tmp_path, bind, *words, module=module, held=True)
        workers: list[int] = []
        try:
            wait_for((tmp_path / "second").exists, "the second worker to begin")
            workers = descendants(new.pid)
            with contextlib.ExitStack() as stack:
                serving = descendants(old.pid)
                for pid in serving:
                    os.kill(pid, signal.SIGSTOP)  # so that whoever else accepts has the queue to itself
                    stack.callback(os.kill, pid, signal.SIGCONT)
                clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(10)]
                for client in clients:
                    client.send()
                new.signal(end)
                if end == signal.SIGKILL:
                    new.process.wait(DEADLINE)  # its streams live on in the workers
                (tmp_path / "go").touch()
                wait_for(lambda: gone(workers), "the workers' end")
                for pid in serving:
                    os.kill(pid, signal.SIGCONT)
                assert [client.receive() for client in clients] == [1] * 10
        finally:
            (tmp_path / "go").touch()
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            new.stop()


@pytest.mark.parametrize(("module", "kind"), [("wsgi", "sync"), ("app", "asgi")])
def test_however_many_workers_were_there_the_next_one_serves(module: str, kind: str, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "gunicorn.conf.py").write_text(FULL)
    only = Server(tmp_path, f"127.0.0.1:{port}", "--worker-class", kind, module=module)
    with stopping(only):
        only.serves(1)
        for _ in range(2):
            (worker,) = descendants(only.pid)
            os.kill(worker, signal.SIGKILL)
            replaced(only, worker)
            with contextlib.closing(Client(("127.0.0.1", port))) as client:
                client.sock.settimeout(10)
                assert client.ask() == 1


def test_a_path_belongs_to_the_user_and_group_of_the_workers(tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # it is theirs to enter
    path = tmp_path / "http.sock"
    words = ("--user", "65534", "--group", "65533", "--umask", "7")
    old = Server(tmp_path, f"unix:{path}", *words)
    with stopping(old):
        old.serves(1)
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (65534, 65533)
        assert stat.S_IMODE(found.st_mode) == 0o770
        new = Server(tmp_path, f"unix:{path}", *words)
        with stopping(new):
            new.serves(2)
            assert old.ends() == 0, old.text()
            with contextlib.closing(Client(str(path))) as client:
                assert client.ask() == 2
            assert path.stat().st_ino == found.st_ino
            new.signal(signal.SIGTERM)
            assert new.ends() == 0, new.text()
    assert not path.exists()


def listener_of(path: Path) -> int:
    """The process that listens at a Unix socket's path; 0 where none does."""
    with socket.socket(socket.AF_UNIX) as sock:
        if sock.connect_ex(str(path)):
            return 0
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


def test_the_control_socket_is_of_the_arbiter_that_serves(tmp_path: Path) -> None:
    """Also once the older one, whose workers came and went meanwhile, has ended, or has the service again."""
    control = tmp_path / "control" / "gunicorn.ctl"
    words = ("--control-socket", str(control), "--handoff-probation", "60s")
    bind = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:

        def started(number: int) -> Server:
            server = Server(tmp_path, bind, *words)
            stack.enter_context(stopping(server))
            server.serves(number)
            wait_for(lambda: listener_of(control) == server.pid, f"the control socket of generation {number}")
            return server

        first = started(1)
        second = started(2)
        (worker,) = descendants(first.pid)
        os.kill(worker, signal.SIGKILL)
        replaced(first, worker)
        assert listener_of(control) == second.pid
        second.signal(signal.SIGKILL)
        first.says("took the service back")
        wait_for(lambda: listener_of(control) == first.pid, "the control socket to be the first one's again")
        third = started(2)
        first.signal(signal.SIGTERM)
        assert first.ends() == 0, first.text()
        assert listener_of(control) == third.pid
        third.signal(signal.SIGTERM)
        assert third.ends() == 0, third.text()
        assert not control.exists()
