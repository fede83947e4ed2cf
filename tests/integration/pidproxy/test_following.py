"""A program replaces itself, and whoever started it sees one process: its pid, its signals, its status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ..cli import DEADLINE, PACKAGE, Running, environment, verb, wait_for
from ..master import Load, read_answer, request
from . import Proxied, alone, descendants_of, gone

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no subreapers")

PIDFILES = ("none", "its own", "in a missing directory", "stale", "half-written", "garbage", "a directory")


class Slow:
    """One request that takes ``seconds``; it is inside when the block begins."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        self._sock = socket.create_connection(address, timeout=DEADLINE)
        self._sock.sendall(f"GET /sleep{seconds} HTTP/1.1\r\n\r\n".encode())
        for _ in range(2):
            request(address)  # accepted later, and answered

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def answer(self) -> tuple[str, int, int]:
        raw = b""
        while part := self._sock.recv(4096):
            raw += part
        return read_answer(raw)


def pidfile_of(folder: Path, kind: str) -> tuple[list[str], dict[str, str]]:
    """Options for the proxy and the environment of the command."""
    path = folder / "app.pid"
    if kind == "none":
        return [], {}
    if kind == "its own":
        return ["--pidfile", str(path)], {"PIDFILE": str(path)}
    if kind == "in a missing directory":
        return ["--pidfile", str(folder / "nowhere" / "app.pid")], {}
    if kind == "stale":
        done = subprocess.Popen(["true"])
        done.wait()
        path.write_text(f"{done.pid}\n")
    elif kind == "half-written":
        path.write_text(str(os.getpid())[:-1])
    elif kind == "garbage":
        path.write_bytes(b"\0\xff not a number")
    else:
        path.mkdir()
    return ["--pidfile", str(path)], {}


@pytest.mark.parametrize("kind", PIDFILES)
def test_upgrades_under_load_lose_nothing_and_keep_the_pid(tmp_path: Path, kind: str) -> None:
    options, environ = pidfile_of(tmp_path, kind)
    with Proxied(tmp_path, *options, **environ) as proxied:
        with Load(proxied.address, clients=2) as load:
            for number in range(2, 6 if kind in PIDFILES[:2] else 4):
                pid = proxied.upgrade(number)
                load.heard(number)
                alone(proxied.pid, pid)
        assert not load.failures
        assert proxied.running.process.poll() is None
        assert proxied.stop() == 0
        assert gone(pid)


def test_a_stop_waits_for_the_drain_and_passes_the_status_on(tmp_path: Path) -> None:
    with Proxied(tmp_path, STATUS="7") as proxied:
        server = proxied.upgrade(2)
        alone(proxied.pid, server)
        with Slow(proxied.address, 0.7) as slow:
            proxied.signal(signal.SIGTERM)
            wait_for(lambda: "2 SIGTERM" in proxied.signals())
            assert proxied.running.process.poll() is None, "it waits for the drain"
            assert slow.answer() == ("app", 2, server), "what was begun is finished"
        assert proxied.running.ends() == 7
        assert gone(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_reaches_a_server_that_drains(tmp_path: Path, number: int) -> None:
    code = (
        "import signal, sys, time\n"
        "told = []\n"
        "def stop(*_):\n"
        "    told.append(1)\n"
        "    print('told', len(told), flush=True)\n"
        "    if len(told) == 2: sys.exit(5)\n"
        "for name in ('SIGTERM', 'SIGINT', 'SIGQUIT'): signal.signal(getattr(signal, name), stop)\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(100)\n"
    )
    running = Running("pidproxy", "--", sys.executable, "-c", code)
    running.says("up")
    running.signal(number)
    running.says("told 1")
    running.signal(number)
    assert running.ends() == 5


@pytest.mark.parametrize(("code", "status"), [
    ("raise SystemExit(0)", 0),
    ("raise SystemExit(3)", 3),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ("import os; os.abort()", 134),
])  # fmt: skip
def test_the_status_is_the_commands_own(code: str, status: int) -> None:
    assert verb("pidproxy", "--", sys.executable, "-c", code).returncode == status


def test_a_command_that_does_not_handle_term_dies_of_it() -> None:
    running = Running("pidproxy", "--", "sleep", "100")
    wait_for(lambda: descendants_of(running.pid))
    running.signal(signal.SIGTERM)
    assert running.ends() == 143


def test_a_crash_after_an_upgrade_is_noticed_at_once_and_is_no_success(tmp_path: Path) -> None:
    with Proxied(tmp_path, "--pidfile", str(tmp_path / "app.pid"), PIDFILE=str(tmp_path / "app.pid")) as proxied:
        server = proxied.upgrade(2)
        alone(proxied.pid, server)
        began = time.monotonic()
        os.kill(server, signal.SIGKILL)
        assert proxied.running.ends() == 137
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("with_pidfile", [True, False])
def test_a_successor_that_dies_as_soon_as_it_is_alone_is_no_success(tmp_path: Path, with_pidfile: bool) -> None:
    pidfile = str(tmp_path / "app.pid")
    options, environ = (["--pidfile", pidfile], {"PIDFILE": pidfile}) if with_pidfile else ([], {})
    with Proxied(tmp_path, *options, **environ) as proxied:
        old = proxied.serves(1)
        new = proxied.upgrade(2)
        wait_for(lambda: gone(old))
        os.kill(proxied.pid, signal.SIGSTOP)  # both ends are seen at once
        os.kill(new, signal.SIGKILL)
        wait_for(lambda: gone(new))
        os.kill(proxied.pid, signal.SIGCONT)
        assert proxied.running.ends() == 137


def test_workers_that_a_crashed_parent_leaves_behind_are_no_successors(tmp_path: Path) -> None:
    with Proxied(tmp_path, MODE="workers") as proxied:
        family = descendants_of(proxied.pid)
        assert len(family) == 3
        os.kill(proxied.serves(1), signal.SIGKILL)
        assert proxied.running.ends() == 137
        assert all(map(gone, family)), "nothing stands in the way of the next start"
        assert "has no successor" in proxied.running.text()


def test_a_new_one_that_crashes_leaves_the_old_one_in_charge(tmp_path: Path) -> None:
    pidfile = tmp_path / "app.pid"
    with Proxied(tmp_path, "--pidfile", str(pidfile), PIDFILE=str(pidfile), MODE="manual") as proxied:
        old = proxied.serves(1)
        new = proxied.upgrade(2)
        proxied.signal(signal.SIGUSR1)
        wait_for(lambda: "2 USR1" in proxied.signals())
        os.kill(new, signal.SIGKILL)
        proxied.running.says(f"process {old}")
        proxied.signal(signal.SIGUSR1)
        wait_for(lambda: "1 USR1" in proxied.signals())
        assert request(proxied.address)[2] == old
        assert proxied.stop() == 0


def test_an_upgrade_that_fails_at_once_changes_nothing(tmp_path: Path) -> None:
    with Proxied(tmp_path, FAULT="boot") as proxied:
        old = proxied.serves(1)
        for _ in range(3):
            proxied.signal(signal.SIGHUP)
        proxied.signal(signal.SIGUSR1)
        wait_for(lambda: "1 USR1" in proxied.signals())
        assert request(proxied.address)[2] == old
        assert proxied.stop() == 0


def test_while_two_live_the_new_one_gets_the_signals_and_both_are_stopped(tmp_path: Path) -> None:
    pidfile = tmp_path / "app.pid"
    with Proxied(tmp_path, "--pidfile", str(pidfile), PIDFILE=str(pidfile), MODE="manual") as proxied:
        proxied.upgrade(2)
        proxied.signal(signal.SIGUSR1)
        wait_for(lambda: "2 USR1" in proxied.signals())
        assert "1 USR1" not in proxied.signals()
        assert proxied.stop() == 0
        assert {"1 SIGTERM", "2 SIGTERM"} <= set(proxied.signals())


def test_without_a_pidfile_the_new_one_is_known_once_the_old_one_has_stopped_listening(tmp_path: Path) -> None:
    with Proxied(tmp_path) as proxied, Slow(proxied.address, 2.0) as slow:
        old = proxied.serves(1)
        proxied.upgrade(2)
        wait_for(lambda: "1 SIGTERM" in proxied.signals())

        def reached() -> bool:
            proxied.signal(signal.SIGUSR1)
            return "2 USR1" in proxied.signals()

        wait_for(reached, "a signal to the new one")
        assert not gone(old), "the old one still drains"
        assert slow.answer() == ("app", 1, old)


def test_chosen_signals_go_to_all(tmp_path: Path) -> None:
    pidfile = tmp_path / "app.pid"
    options = ("--pidfile", str(pidfile), "--to-all", "USR1")
    with Proxied(tmp_path, *options, PIDFILE=str(pidfile), MODE="manual") as proxied:
        proxied.upgrade(2)
        proxied.signal(signal.SIGUSR1)
        wait_for(lambda: {"1 USR1", "2 USR1"} <= set(proxied.signals()))
        assert proxied.stop() == 0


def test_a_signal_before_the_command_has_a_handler_is_kept_for_it() -> None:
    code = (
        "import signal, sys, time\n"
        "sys.stdin.close()\n"
        "print('before', flush=True)\n"
        "time.sleep(0.5)\n"
        "signal.signal(signal.SIGHUP, lambda *_: sys.exit(4))\n"
        "while True: time.sleep(100)\n"
    )
    running = Running("pidproxy", "--", sys.executable, "-c", code)
    running.says("before")
    for _ in range(20):
        running.signal(signal.SIGHUP)
    assert running.ends() == 4


def test_a_signal_that_was_kept_for_one_that_ended_is_its_successors() -> None:
    code = (
        "import os, signal, sys, time\n"
        "if os.fork():\n"
        "    print('before', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGHUP, lambda *_: sys.exit(4))\n"
        "while True: time.sleep(100)\n"
    )
    reader, writer = os.pipe()
    proxy = subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "pidproxy", "--", sys.executable, "-c", code],
        stdin=reader, stdout=subprocess.PIPE, env=environment(), text=True,
    )  # fmt: skip
    os.close(reader)
    assert proxy.stdout is not None
    assert proxy.stdout.readline() == "before\n"
    proxy.send_signal(signal.SIGHUP)  # the parent, which has no handler, would die of it
    os.write(writer, b"go\n")
    os.close(writer)
    assert proxy.wait(DEADLINE) == 4
    proxy.stdout.close()


def test_somebody_elses_pidfile_is_not_followed_nor_its_process_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "100"])
    try:
        (tmp_path / "app.pid").write_text(f"{other.pid}\n")
        with Proxied(tmp_path, "--pidfile", str(tmp_path / "app.pid")) as proxied:
            proxied.upgrade(2)
            proxied.running.says("did not come from here")
            assert proxied.stop() == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_program_that_goes_into_the_background_is_followed(tmp_path: Path) -> None:
    with Proxied(tmp_path, MODE="background") as proxied:
        for number in (2, 3):
            alone(proxied.pid, proxied.upgrade(number))
        assert proxied.stop() == 0


def test_a_successor_without_a_program_of_its_own_is_known_by_the_pidfile(tmp_path: Path) -> None:
    pidfile = tmp_path / "app.pid"
    with Proxied(tmp_path, "--pidfile", str(pidfile), PIDFILE=str(pidfile), MODE="forked", STATUS="6") as proxied:
        old = proxied.serves(1)
        server = proxied.upgrade(2)
        wait_for(lambda: gone(old))
        proxied.running.says(f"process {server}")
        assert proxied.stop() == 6


def test_a_successor_that_is_started_in_the_moment_of_the_stop_ends_too(tmp_path: Path) -> None:
    with Proxied(tmp_path, MODE="lastgasp") as proxied:
        assert proxied.stop() in (0, 128 + signal.SIGTERM), "the second where it was told before it had a handler"
        assert "1 SIGTERM" in proxied.signals()


def test_what_does_not_end_is_killed_where_that_was_asked_for() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(100)"
    running = Running("pidproxy", "--kill-after", "300ms", "--", sys.executable, "-c", code)
    running.says("up")
    running.signal(signal.SIGTERM)
    assert running.ends() == 137
    assert "killed" in running.text()


def test_a_stop_is_heard_where_a_script_has_started_it_in_the_background() -> None:
    """A shell without job control has such a program ignore INT and QUIT; nginx, for one, hears them again."""
    code = "import signal, time; signal.signal(3, lambda *_: exit(5)); print('up', flush=True); time.sleep(100)"

    def in_background() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)

    running = Running("pidproxy", "--", sys.executable, "-c", code, preexec_fn=in_background)
    running.says("up")
    running.signal(signal.SIGQUIT)
    assert running.ends() == 5


def test_an_orphan_that_the_command_leaves_behind_does_not_outlive_the_proxy() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print('child', child.pid, flush=True)\n"
        "sys.exit(9)\n"
    )
    running = Running("pidproxy", "--", sys.executable, "-c", code)
    assert running.ends() == 9
    assert gone(int(running.says("child").split()[1]))


def test_a_signal_to_the_group_reaches_the_command_once(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))\n"
        f"job = subprocess.Popen(['sh', '-c', 'sleep 1; echo \"$0\" > {tmp_path}/done', 'work'], process_group=0)\n"
        if sys.version_info >= (3, 11)
        else "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))\n"
        f"job = subprocess.Popen(['sh', '-c', 'sleep 1; echo \"$0\" > {tmp_path}/done', 'work'], preexec_fn=os.setpgrp)\n"
    )
    script.write_text(script.read_text() + "print('up', flush=True)\nsys.exit(job.wait())\n")
    running = Running("pidproxy", "--", sys.executable, str(script), start_new_session=True)
    running.says("up")
    os.killpg(running.pid, signal.SIGTERM)
    assert running.ends() == 0
    assert running.out.count("told") == 1
    assert (tmp_path / "done").read_text() == "work\n", "an accepted job is finished"


@pytest.mark.parametrize(("words", "code", "says"), [
    ((), 2, "say what to start"),
    (("--", "no-such-program-at-all"), 127, "not found"),
    (("--", "/etc/passwd"), 126, "not an executable"),
    (("--kill-after", "soon", "--", "true"), 2, "soon"),
    (("--to-all", "NOTHING", "--", "true"), 2, "is no signal"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(words: tuple[str, ...], code: int, says: str) -> None:
    done = verb("pidproxy", *words)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_finds_what_the_proxy_was_given(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['LISTEN_FDS'], os.environ['LISTEN_PID'] == str(os.getpid()), os.fstat(3).st_ino)"
    start = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import os; os.dup2({reader}, 3); os.set_inheritable(3, True)\n{start}", "-m", "fdhandoff",
             "pidproxy", "--", sys.executable, "-c", code],
            pass_fds=[reader], env={**os.environ, "LISTEN_FDS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, timeout=DEADLINE, check=True,
        )  # fmt: skip
        assert done.stdout.split() == ["1", "True", str(os.fstat(reader).st_ino)]
    finally:
        os.close(reader)
        os.close(writer)
