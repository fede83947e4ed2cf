"""``daemonize()`` in programs of one's own: who waits for them, what they find, and what they leave to nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fdhandoff
from fdhandoff.client import ask
from fdhandoff.system import pidfile as pidfiles

from ..conftest import needs_that
from .cli import environment, wait_for
from .master import Load
from .pidproxy import gone

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = fdhandoff.__name__

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no /proc to look into")

#: Tells what it finds, says ready, and stays until TERM.
PROGRAM = """
import json, os, signal, sys, time
from {package} import daemonize
options = json.loads(sys.argv[1])
facts = options.pop("facts", "facts")
fault = options.pop("fault", "")
daemon = daemonize(**options)
if fault == "raise":
    raise RuntimeError("no database")
if fault == "exit":
    sys.exit(7)
if fault == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "zero":
    sys.exit(0)
if fault == "hang":
    time.sleep(100)
there, here = os.pipe()
worker = os.fork()
if not worker:
    os.close(there)
    print("the worker", flush=True)
    os.close(here)
    time.sleep(100)
    os._exit(0)
os.close(here)
os.read(there, 1)  # until the worker has settled
os.close(there)
with open(facts + ".new", "w") as file:
    json.dump(dict(
        pid=os.getpid(), ppid=os.getppid(), sid=os.getsid(0), cwd=os.getcwd(), umask=os.umask(0), uid=os.getresuid(),
        gid=os.getresgid(), groups=os.getgroups(), environ=dict(os.environ), worker=worker,
        fds=[os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)] if os.path.isdir("/proc/self") else [],
        locks=[os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")]
              if os.access(f"/proc/{worker}/fd", os.R_OK) else [],
    ), file)
os.rename(facts + ".new", facts)
daemon.ready()
print("after ready", flush=True)
signal.signal(signal.SIGUSR1, lambda *_: (daemon.reopen_log(), print("reopened", flush=True)))
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
while not told:
    time.sleep(0.01)
os.kill(worker, signal.SIGKILL)
os.waitpid(worker, 0)
"""


class Started:
    """The program, started to its end or its readiness; ``facts`` are what it found. What lives at the end is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: set[int] = set()

    def __call__(self, *, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        import json

        options.setdefault("facts", str(self.folder / "facts"))
        program = self.folder / "program.py"
        program.write_text(PROGRAM.replace("{package}", PACKAGE))
        done = subprocess.run(
            [sys.executable, str(program), json.dumps(options)],
            env=environment(**(env or {})), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        facts = self.facts()
        self.pids |= {facts["pid"], facts["worker"]} if facts else set()
        return done

    def facts(self) -> dict[str, Any]:
        import json

        try:
            return dict(json.loads((self.folder / "facts").read_text()))
        except FileNotFoundError:
            return {}

    def stop(self) -> None:
        pid = self.facts()["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: gone(pid))

    def end(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    found = Started(tmp_path)
    yield found
    found.end()


def test_the_command_returns_when_the_program_is_ready(start: Started, tmp_path: Path) -> None:
    done = start(pidfile=str(tmp_path / "app.pid"), log=str(tmp_path / "log"), umask=0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    facts = start.facts()
    assert pidfiles.alive(tmp_path / "app.pid") == facts["pid"]
    assert facts["sid"] != facts["pid"]
    assert facts["cwd"] == "/"
    assert facts["umask"] == 0
    assert facts["fds"] == ["/dev/null", str(tmp_path / "log"), str(tmp_path / "log")]
    wait_for(lambda: "after ready" in (tmp_path / "log").read_text())
    start.stop()
    assert not (tmp_path / "app.pid").exists()


def test_nothing_of_the_start_reaches_a_worker(start: Started, tmp_path: Path) -> None:
    assert start(pidfile=str(tmp_path / "app.pid"), log=str(tmp_path / "log")).returncode == 0
    facts = start.facts()
    assert str(tmp_path / "app.pid") not in facts["locks"], "a lock that a worker has outlives its owner"
    assert not [one for one in facts["locks"] if one.startswith("pipe:")], "nor would its death be seen"
    ours = {**environment(), "PYTEST_CURRENT_TEST": facts["environ"].get("PYTEST_CURRENT_TEST", "")}
    assert {name for name in facts["environ"] if name not in ours} <= {"LC_CTYPE"}, "no mark in the environment"
    os.kill(facts["pid"], signal.SIGKILL)
    wait_for(lambda: gone(facts["pid"]))
    assert Path(f"/proc/{facts['worker']}").exists()
    done = start(pidfile=str(tmp_path / "app.pid"), log=str(tmp_path / "log"))
    assert done.returncode == 0, "the dead one's pidfile is nobody's, whatever its worker does"


@pytest.mark.parametrize("with_log", [True, False])
@pytest.mark.parametrize(("fault", "code", "says"), [
    ("raise", 1, "RuntimeError: no database"),
    ("exit", 7, "exited with status 7 before it was ready"),
    ("kill", 137, "killed by signal 9 before it was ready"),
    ("zero", 1, "exited with status 0 before it was ready"),
])  # fmt: skip
def test_a_start_that_fails_is_told(
    start: Started, tmp_path: Path, fault: str, code: int, says: str, with_log: bool
) -> None:
    more = {"log": str(tmp_path / "log")} if with_log else {}
    done = start(fault=fault, pidfile=str(tmp_path / "app.pid"), **more)
    assert done.returncode == code
    assert says in done.stderr
    assert fault == "kill" or not (tmp_path / "app.pid").exists()


def test_one_that_is_never_ready_is_given_up(start: Started, tmp_path: Path) -> None:
    done = start(fault="hang", pidfile=str(tmp_path / "app.pid"), timeout=0.3)
    assert done.returncode == 1
    assert "not ready within 300ms" in done.stderr
    assert pidfiles.alive(tmp_path / "app.pid") is None


def test_a_second_one_is_refused_with_the_pid_of_the_first(start: Started, tmp_path: Path) -> None:
    assert start(pidfile=str(tmp_path / "app.pid")).returncode == 0
    done = start(pidfile=str(tmp_path / "app.pid"), facts=str(tmp_path / "others"))
    assert done.returncode == 1
    assert f"pid {start.facts()['pid']}" in done.stderr
    assert not (tmp_path / "others").exists()


def test_output_without_a_log_goes_nowhere_once_it_is_ready(start: Started) -> None:
    assert start().returncode == 0
    pid = start.facts()["pid"]
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert not [fd for fd in os.listdir(f"/proc/{pid}/fd") if "memfd" in os.readlink(f"/proc/{pid}/fd/{fd}")]


def test_the_log_is_opened_again(start: Started, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start(log=str(log)).returncode == 0
    wait_for(lambda: "after ready" in log.read_text())
    log.rename(tmp_path / "log.1")
    os.kill(start.facts()["pid"], signal.SIGUSR1)
    wait_for(lambda: log.exists() and log.read_text() == "reopened\n")


def test_it_becomes_who_it_shall_be(start: Started, tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    facts = Path("/tmp") / f"facts-{os.getpid()}"
    try:
        done = start(user="nobody", group="nogroup", directory="/tmp", facts=str(facts), environ={"PATH": "/bin"})
        facts.rename(tmp_path / "facts")
        start.pids |= {start.facts()["pid"], start.facts()["worker"]}
        assert done.returncode == 0, done.stderr
        found = start.facts()
        assert (found["uid"], found["gid"]) == ([65534] * 3, [65534] * 3)
        assert found["groups"] == [65534]
        assert found["cwd"] == "/tmp"
        assert {**found["environ"], "LC_CTYPE": ""} == {
            "PATH": "/bin", "HOME": "/nonexistent", "USER": "nobody", "LOGNAME": "nobody", "LC_CTYPE": "",
        }  # fmt: skip
    finally:
        facts.unlink(missing_ok=True)


def test_a_pidfile_that_can_not_be_removed_any_more_stays_without_a_word(start: Started, tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    facts = Path("/tmp") / f"facts-{os.getpid()}"
    pidfile, log = tmp_path / "app.pid", tmp_path / "log"
    try:
        done = start(user="nobody", facts=str(facts), pidfile=str(pidfile), log=str(log))
        facts.rename(tmp_path / "facts")
        start.pids |= {start.facts()["pid"], start.facts()["worker"]}
        assert done.returncode == 0, done.stderr
        wait_for(lambda: "after ready" in log.read_text())
        start.stop()
        assert "Traceback" not in log.read_text()
        assert pidfiles.alive(pidfile) is None
    finally:
        facts.unlink(missing_ok=True)
    (tmp_path / "facts").unlink()
    assert start(pidfile=str(pidfile)).returncode == 0, "it is in nobody's way"


def test_another_root_is_entered(start: Started, tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    root = tmp_path / "root"
    root.mkdir()
    done = start(chroot=str(root), directory="/", facts="/facts")
    assert done.returncode == 0, done.stderr
    (root / "facts").rename(tmp_path / "facts")
    start.pids |= {start.facts()["pid"], start.facts()["worker"]}
    assert os.readlink(f"/proc/{start.facts()['pid']}/root") == str(root)


@pytest.mark.parametrize(("options", "says"), [
    ({"user": "no-such-user"}, "there is no user 'no-such-user'"),
    ({"group": "no-such-group"}, "there is no group"),
    ({"directory": "/no/such/place"}, "not a directory"),
    ({"log": "/no/such/place/log"}, "No such file"),
])  # fmt: skip
def test_what_can_not_be_had_is_told_before_anything_is_forked(options: dict[str, Any], says: str) -> None:
    with pytest.raises((fdhandoff.HandoffError, OSError)) as caught:
        fdhandoff.daemonize(**options)
    assert says in str(caught.value)


SERVICE = """
import os, socket, sys, threading
import {package}
folder = sys.argv[1]
{package}.daemonize(pidfile=folder + "/app.pid", log=folder + "/log")
service = {package}.Service("app", path=folder + "/app.sock", pidfile=folder + "/app.pid", probation=0.2, grace=10)
listener = service.listen("http", "127.0.0.1:0")
with open(folder + "/port", "w") as file:
    file.write(str(listener.getsockname()[1]))
def handle(connection, _):
    connection.recv(4096)
    body = f"app {service.generation.number} {os.getpid()}".encode()
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body)
    connection.close()
service.ready()
service.serve(handle)
service.close()
"""


def test_a_service_is_ready_when_it_says_so_and_its_successors_stay_in_the_background(tmp_path: Path) -> None:
    program = tmp_path / "service.py"
    program.write_text(SERVICE.replace("{package}", PACKAGE))
    done = subprocess.run(
        [sys.executable, program.name, str(tmp_path)],  # found again though the daemon is elsewhere
        env=environment(), capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    pidfile, sock = tmp_path / "app.pid", tmp_path / "app.sock"
    pids = {pidfiles.alive(pidfile)}
    try:
        with Load(("127.0.0.1", int((tmp_path / "port").read_text())), clients=2) as load:
            for number in (2, 3):
                ask(sock, "upgrade", timeout=30)
                load.heard(number)
                pids.add(pidfiles.alive(pidfile))
        assert not load.failures
        assert len(pids) == 3
        assert None not in pids
    finally:
        ask(sock, "stop", timeout=30)
    wait_for(lambda: all(gone(pid) for pid in pids if pid))
    assert not pidfile.exists()
