"""``run --daemon``: the command returns when the service is ready, or says why it is not; the pidfile leads to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.cli.target import _pid_in, find
from fdhandoff.system import pidfile as pidfiles

from ...conftest import needs_that
from ...unit.system import as_nobody
from ..master import Load, quick, request, rude
from . import PACKAGE, environment, verb, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UPGRADES = 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no subreapers")


class Daemon:
    """What ``run --daemon`` leaves in the background, known by its pidfile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pidfile = folder / "app.pid"
        self.log = folder / "app.log"
        self.path = folder / "app.sock"
        self.master = 0

    def start(
        self, *options: str, command: Sequence[str] = (), bind: str = "http=127.0.0.1:0"
    ) -> subprocess.CompletedProcess[str]:
        done = verb(
            "run", "--daemon", "--log", str(self.log), "--pidfile", str(self.pidfile), "--path", str(self.path),
            *quick(), "--bind", bind, *options, "--", *(command or rude()),
        )  # fmt: skip
        self.master = pidfiles.alive(self.pidfile) or self.master
        return done

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return verb(words[0], "--pidfile", str(self.pidfile), *words[1:])

    def address(self) -> tuple[str, int]:
        line = next(line for line in self.log.read_text().splitlines() if "listening on http" in line)
        host, _, port = line.split()[4].rpartition(":")
        return host, int(port)

    def end(self) -> None:
        if self.master and self.ask("stop", "--wait").returncode != 0:
            with_it = [self.master, *_children(self.master)]
            for pid in with_it:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


def _children(pid: int) -> list[int]:
    from fdhandoff.system.processes import descendants

    return descendants(pid)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path)
    yield found
    found.end()


def test_it_returns_when_the_service_serves_and_leaves_nothing_of_the_start(daemon: Daemon) -> None:
    done = daemon.start("--ready", "delay:300ms")
    assert done.returncode == 0, done.stderr
    assert f"as pid {daemon.master}" in done.stderr
    assert done.stdout == ""
    assert request(daemon.address())[1] == 1, "it serves as soon as the command has returned"
    status = Path(f"/proc/{daemon.master}/stat").read_text().rpartition(")")[2].split()
    parent, session, terminal = int(status[1]), int(status[3]), int(status[4])
    assert session != daemon.master, "it can't get a terminal"
    assert terminal == 0
    assert parent not in (os.getpid(), session), "neither who started it nor who waited is there any more"
    assert not Path(f"/proc/{session}").exists()
    assert os.readlink(f"/proc/{daemon.master}/fd/0") == "/dev/null"
    assert {os.readlink(f"/proc/{daemon.master}/fd/{fd}") for fd in (1, 2)} == {str(daemon.log)}
    assert b"FDHANDOFF_RUN" not in Path(f"/proc/{daemon.master}/environ").read_bytes().split(b"PATH")[0]


def test_it_is_upgraded_asked_and_stopped_by_its_pidfile_under_load(daemon: Daemon) -> None:
    assert daemon.start().returncode == 0
    with Load(daemon.address()) as load:
        for number in range(2, UPGRADES + 2):
            done = daemon.ask("upgrade")
            assert done.returncode == 0, done.stderr
            load.heard(number)
        done = daemon.ask("upgrade", "--master")
        assert done.returncode == 0, done.stderr
        load.heard(number)
    assert not load.failures
    assert pidfiles.alive(daemon.pidfile) == daemon.master, "the same pid after an exec in place"
    assert "serving" in daemon.ask("status").stdout
    assert daemon.ask("stop", "--wait").returncode == 0
    daemon.master = 0
    assert not daemon.pidfile.exists()
    assert not daemon.path.exists()


@pytest.mark.parametrize(("command", "code", "says"), [
    ([sys.executable, "-c", "raise SystemExit('the database is gone')"], 1, "the database is gone"),
    (["sh", "-c", "exit 9"], 9, "status 9"),
    (["sh", "-c", "kill -9 $$"], 137, "signal 9"),
    (["no-such-program-at-all"], 127, "not found"),
    (["/etc/passwd"], 126, "not an executable"),
])  # fmt: skip
def test_a_start_that_fails_is_told_with_its_last_words_and_status(
    daemon: Daemon, command: list[str], code: int, says: str
) -> None:
    done = daemon.start(command=command)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert says in daemon.log.read_text()
    assert not daemon.pidfile.exists()
    assert not daemon.path.exists()


def test_an_address_in_use_is_told(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = daemon.start(bind=f"127.0.0.1:{other.getsockname()[1]}")
    assert done.returncode == 125
    assert "in use" in done.stderr


@pytest.mark.parametrize("which", ["pidfile", "path"])
def test_a_second_start_is_refused_with_the_pid_of_the_first(daemon: Daemon, tmp_path: Path, which: str) -> None:
    assert daemon.start().returncode == 0
    other = tmp_path / "other"
    other.mkdir()
    place = {"pidfile": daemon.pidfile, "path": daemon.path, which: other / "other"}
    place = {name: place[name] if name == which else other / name for name in place}
    place[which] = daemon.pidfile if which == "pidfile" else daemon.path
    done = verb(
        "run", "--daemon", "--log", str(other / "log"), "--pidfile", str(place["pidfile"]), "--path", str(place["path"]),
        "--bind", "127.0.0.1:0", "--", *rude(),
    )  # fmt: skip
    assert done.returncode == 1
    assert f"pid {daemon.master}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert pidfiles.alive(daemon.pidfile) == daemon.master
    assert request(daemon.address())[1] == 1


def test_a_stale_pidfile_stands_in_nobodys_way(daemon: Daemon) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    daemon.pidfile.write_text(f"{dead.pid}\n")
    assert daemon.start().returncode == 0
    assert daemon.master != dead.pid


def test_to_interrupt_the_start_is_to_give_it_up(daemon: Daemon) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "run", "--daemon", "--log", str(daemon.log), "--pidfile", str(daemon.pidfile),
         "--path", str(daemon.path), "--bind", "127.0.0.1:0", "--ready", "delay:60s", "--", *rude()],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: daemon.log.exists() and "started (pid" in daemon.log.read_text())
    daemon.master = pidfiles.alive(daemon.pidfile) or 0
    assert daemon.master
    starting.send_signal(signal.SIGINT)
    _, errors = starting.communicate(timeout=30)
    assert starting.returncode == 1
    assert "interrupted" in errors
    wait_for(lambda: not Path(f"/proc/{daemon.master}").exists())
    daemon.master = 0
    assert not daemon.pidfile.exists()


def test_the_log_is_appended_to_and_opened_again_after_it_was_moved(daemon: Daemon, tmp_path: Path) -> None:
    daemon.log.write_text("what was there\n")
    assert daemon.start().returncode == 0
    assert daemon.log.read_text().startswith("what was there\n")
    moved = tmp_path / "app.log.1"
    daemon.log.rename(moved)
    os.kill(daemon.master, signal.SIGUSR1)
    wait_for(daemon.log.exists, "the new log")
    assert daemon.ask("upgrade").returncode == 0
    assert "upgraded from generation 1" in daemon.log.read_text()
    assert "upgraded" not in moved.read_text()
    assert daemon.log.stat().st_mode & 0o777 == 0o640 & ~_umask()


TALKER = """
import signal, socket, sys
listener = socket.socket(fileno=3)
listener.setblocking(True)
signal.signal(signal.SIGUSR1, lambda *_: print("a line of its own", file=sys.stderr, flush=True))
print("the beginning", file=sys.stderr, flush=True)
while True:
    listener.accept()[0].close()
"""


def test_what_a_generation_says_goes_to_the_new_log_too(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.start(command=[sys.executable, "-c", TALKER]).returncode == 0
    wait_for(lambda: "the beginning" in daemon.log.read_text())
    moved = tmp_path / "app.log.1"
    daemon.log.rename(moved)
    os.kill(daemon.master, signal.SIGUSR1)
    wait_for(lambda: daemon.log.exists() and "a line of its own" in daemon.log.read_text())
    assert "a line of its own" not in moved.read_text()
    daemon.log.rename(tmp_path / "app.log.2")
    daemon.folder.joinpath("app.log").mkdir()  # it can't be opened
    os.kill(daemon.master, signal.SIGUSR1)
    wait_for(lambda: "the log stays what it was" in (tmp_path / "app.log.2").read_text())
    wait_for(lambda: (tmp_path / "app.log.2").read_text().count("a line of its own") == 2)


def _umask() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask"))
    return int(line.split()[1], 8)


@pytest.mark.parametrize(("words", "says"), [
    (("--daemon",), "--log"),
    (("--daemon", "--log", "/dev/null", "--ready-fd", "3"), "--ready-fd"),
    (("--umask", "9"), "is no mode"),
    (("--rlimit", "nofile"), "is no limit"),
    (("--rlimit", "nofile=2:1"), "above the hard one"),
    (("--user", "nobody-of-that-name"), "there is no user"),
    (("--chroot", "/no/such/place"), "does not exist"),
])  # fmt: skip
def test_a_mistake_is_told_before_anything_is_started(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = verb("run", *words, "--path", str(tmp_path / "sock"), "--bind", "127.0.0.1:0", "--", "true")
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [(), ("--daemon",)])
def test_a_log_that_can_not_be_opened_is_a_failure_of_run_itself(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = verb(
        "run",
        *words,
        "--log",
        "/no/such/place/log",
        "--path",
        str(tmp_path / "sock"),
        "--bind",
        "127.0.0.1:0",
        "--",
        "true",
    )
    assert done.returncode == 125
    assert "/no/such/place/log" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("content", "code", "says"), [
    (None, 4, "there is no pidfile"),
    ("", 3, "half-written"),
    ("12 34\n", 3, "half-written"),
    ("dead", 4, "stale"),
    ("ours", 4, "answers no handoff path"),
])  # fmt: skip
@pytest.mark.parametrize("what", ["status", "stop", "upgrade"])
def test_a_pidfile_that_leads_nowhere_is_explained(
    tmp_path: Path, content: str | None, code: int, says: str, what: str
) -> None:
    path = tmp_path / "app.pid"
    if content == "dead":
        dead = subprocess.Popen(["true"])
        dead.wait()
        content = f"{dead.pid}\n"
    elif content == "ours":
        content = f"{os.getpid()}\n"
    if content is not None:
        path.write_text(content)
    done = verb(what, "--pidfile", str(path))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_daemonizing_keeps_the_socket_file(daemon: Daemon, tmp_path: Path) -> None:
    public = tmp_path / "public.sock"
    assert daemon.start(bind=f"unix:{public}").returncode == 0
    assert request(str(public))[1] == 1
    assert daemon.ask("upgrade").returncode == 0
    assert request(str(public))[1] == 2


def test_the_master_of_another_user_is_alive_and_not_ours_to_ask(daemon: Daemon, tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    assert daemon.start().returncode == 0
    copy = Path(tempfile.mkdtemp()) / "app.pid"
    try:
        copy.parent.chmod(0o755)
        copy.write_text(f"{daemon.master}\n")
        said = as_nobody(lambda: find(_pid_in(str(copy)), named=f", which {copy} names,"))
    finally:
        shutil.rmtree(copy.parent)
    assert f"process {daemon.master}" in said
    assert "of uid 0" in said or "belongs to uid 0" in said
