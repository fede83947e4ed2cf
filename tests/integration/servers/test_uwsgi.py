"""The adapter for uWSGI, where a release is slow to become ready, ends before it is, and has many workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.system.processes import descendants

from ...conftest import needs_that
from ..cli import DEADLINE, PACKAGE, Running, environment, free_port, stopping, wait_for
from . import Client, KeepAlive, gone

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]

#: The second worker that has this says so once there is a file ``go``, where it shall be held up: it loads it, or is forked.
APPLICATION = """
import os, select, time
import uwsgi
from tests.integration.servers.wsgi import app as answer

def be_held():
    if "HELD" in os.environ and uwsgi.worker_id():
        try:
            os.mkdir("first")
        except FileExistsError:
            open("second", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)

if uwsgi.worker_id():
    be_held()
else:
    uwsgi.post_fork_hook = be_held

def app(environ, start_response):
    if environ["PATH_INFO"] == "/full":
        pipe = environ["fdhandoff"]._fds["said"]
        while select.select([], [pipe], [], 0)[1]:
            os.write(pipe, bytes(4096))
    return answer(environ, start_response)
"""
STYLES = {
    "in the master": (),
    "in each worker": ("--lazy-apps",),
    "with threads": ("--lazy-apps", "--threads", "2"),
}


class Server(Running):
    def __init__(self, folder: Path, port: int, *words: str, held: bool = False) -> None:
        there = (Path(sys.executable).parent / "uwsgi").exists() or shutil.which("uwsgi") is not None
        needs_that(there, "uWSGI: pip install 'fdhandoff[test]'")
        (folder / "held.py").write_text(APPLICATION)
        command = [sys.executable, "-m", f"{PACKAGE}.servers.uwsgi", "--http-socket", f"127.0.0.1:{port}"]
        command += ["--module", "held:app", "--disable-logging", *words]
        command += ["--handoff-path", str(folder / "h.sock"), "--handoff-probation", "500ms"]
        env = environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]), **({"HELD": "1"} if held else {}))
        self._start(command, env=env, cwd=folder)

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def another_in_place(server: Server, worker: int) -> None:
    wait_for(lambda: descendants(server.pid)[-1] != worker, "another worker")


class Scene:
    """Generation 1 serves, and ``new``'s second worker is held up until ``go()``; ``family``: all processes of ``new``."""

    def __init__(self, folder: Path, old: Server, new: Server, port: int) -> None:
        self.old, self.new, self.port = old, new, port
        self.family = [new.pid, *descendants(new.pid)]
        self.go = (folder / "go").touch

    def load(self) -> Any:
        return KeepAlive(("127.0.0.1", self.port), once=True)


@contextlib.contextmanager
def scene(folder: Path, *words: str) -> Iterator[Scene]:
    port = free_port()
    words = ("--processes", "2", *words)
    with contextlib.ExitStack() as stack:
        old = Server(folder, port, *words)
        stack.enter_context(stopping(old))
        old.serves(1)
        new = Server(folder, port, *words, held=True)
        stack.enter_context(stopping(new))
        stack.callback((folder / "go").touch)
        wait_for((folder / "second").exists, "the second worker to begin")
        one = Scene(folder, old, new, port)
        try:
            yield one
        finally:
            for pid in one.family[1:]:
                if new.process.poll() is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("style", STYLES)
def test_no_worker_answers_before_all_are_ready(style: str, tmp_path: Path) -> None:
    with scene(tmp_path, *STYLES[style]) as one:
        with one.load() as load:
            load.heard(1, 80)
            assert load.answers[2] == 0
            one.go()
            one.new.serves(2)
            load.heard(2, 40)
            assert one.old.ends() == 0, one.old.text()
            load.heard(2, 40)
        assert not load.failures


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_one_that_ends_before_it_is_ready_has_answered_nobody(end: str, style: str, tmp_path: Path) -> None:
    with scene(tmp_path, *STYLES[style]) as one:
        with one.load() as load:
            load.heard(1)
            one.new.signal(signal.Signals[end])
            one.new.process.wait(DEADLINE)  # its streams may live on in uWSGI
            one.go()
            wait_for(lambda: gone(one.family), "the end of all of its processes")
            load.heard(1, 50)
        assert load.answers[2] == 0
        assert not load.failures


@pytest.mark.parametrize("style", STYLES)
def test_workers_that_come_later_serve_however_many_there_were(style: str, tmp_path: Path) -> None:
    port = free_port()
    only = Server(tmp_path, port, *STYLES[style])
    address = ("127.0.0.1", port)
    with stopping(only):
        only.serves(1)
        with contextlib.closing(Client(address)) as client:
            assert client.ask("/full") == 1
        for _ in range(2):
            *_, worker = descendants(only.pid)
            os.kill(worker, signal.SIGKILL)
            another_in_place(only, worker)
            with contextlib.closing(Client(address)) as client:
                client.sock.settimeout(10)
                assert client.ask() == 1
        only.signal(signal.SIGTERM)
        assert only.ends() == 0, only.text()
