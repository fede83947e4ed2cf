"""Where a service's listeners come from, where they go, and what it leaves behind: kinds of sockets, the environment, the
pidfile, files, workers, signals, and two starts at once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from .services import App, alive, ask_on, eventually

if TYPE_CHECKING:
    from pathlib import Path


def datagram(address: object, text: bytes = b"hello") -> str:
    with socket.socket(socket.AF_INET if isinstance(address, list) else socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(("127.0.0.1", 0) if isinstance(address, list) else "")
        sock.sendto(text, tuple(address) if isinstance(address, list) else address)  # type: ignore[arg-type]
        return sock.recv(4096).decode()


def seqpacket(address: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(address)
        return ask_on(sock)


def test_listeners_of_every_kind_are_handed_over_and_not_confused(tmp_path: Path) -> None:
    listeners = {
        "main": "127.0.0.1:0",
        "other": "127.0.0.1:0",
        "udp": "udp:127.0.0.1:0",
        "udp2": "udp:127.0.0.1:0",
        "unix": f"unix:{tmp_path}/stream",
        "gram": f"unixgram:{tmp_path}/gram",
        "packet": f"unixpacket:{tmp_path}/packet",
        "abstract": f"unix:@fdhandoff-test-{os.getpid()}",
    }
    with App(tmp_path, listeners=listeners) as app:
        app.start()
        before = {name: app.address(name) for name in listeners}
        assert len({str(address) for address in before.values()}) == len(listeners)
        for generation in (1, 2, 3):
            assert {name: app.address(name) for name in listeners} == before
            for name in ("main", "other", "unix", "abstract"):
                assert app.ask(name=name).startswith(f"{generation} ")
            for name in ("udp", "udp2"):
                assert datagram(before[name]).split()[::2][:2] == [str(generation), name]
            assert datagram(before["gram"]).startswith(f"{generation} ")
            assert seqpacket(before["packet"]).startswith(f"{generation} ")
            if generation < 3:
                app.ask("upgrade")
                app.wait_for(" closed", count=generation)
        app.stop()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_a_unix_listener_goes_through_ten_unrelated_processes(tmp_path: Path) -> None:
    with App(tmp_path, listeners={"main": f"unix:{tmp_path}/s"}, probation=0.05) as app:
        previous = app.start()
        inode = os.stat(tmp_path / "s").st_ino
        for number in range(2, 11):
            process = app.start(start_new_session=True)
            assert previous.wait(20) == 0
            assert os.stat(tmp_path / "s").st_ino == inode, "the dying one touched the path"
            assert app.ask() == f"{number} {process.pid} "
            previous = process
        app.stop()
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("misbehave", ["boot:exit1", "boot:raise", "ready:kill"])
def test_the_unix_path_survives_a_new_one_that_fails(tmp_path: Path, misbehave: str) -> None:
    with App(tmp_path, listeners={"main": f"unix:{tmp_path}/s"}, probation=10) as app:
        first = app.start()
        app.deploy(misbehave=misbehave)
        app.start(wait=False)
        app.wait_for("failed: ")
        assert app.ask().startswith(f"1 {first.pid}")
        app.deploy(misbehave="", probation=0.1)
        app.start()
        assert app.generation() == 2
        app.stop()


def test_listeners_that_nobody_claims_are_closed_at_ready(tmp_path: Path) -> None:
    with App(tmp_path, listeners={"main": "127.0.0.1:0", "unused": "127.0.0.1:0"}) as app:
        app.start()
        unused = app.address("unused")
        app.deploy(listeners={"main": "127.0.0.1:0"})
        app.ask("upgrade")
        assert app.ask("came") == "main,unused"
        app.wait_for(" closed")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(tuple(unused))
        app.stop()


def test_files_arrive_under_their_names(tmp_path: Path) -> None:
    with App(tmp_path, files=["log", "lock"]) as app:
        app.start()
        assert app.ask("files") == "none"
        (tmp_path / "log").unlink()  # so it can only be the very same file
        for generation in (2, 3):
            app.deploy(files=["log"] if generation == 3 else ["log", "lock"])
            app.ask("upgrade")
            assert app.generation() == generation
            assert app.ask("write log hello") == "written"
        assert app.ask("files") == "log"
        app.stop()


def test_the_state_is_the_one_made_after_the_gate_had_closed(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        app.start()
        for _ in range(3):
            app.ask()
        app.ask("upgrade")
        generation, accepted = app.ask("state").split(":")
        assert (generation, accepted) == ("1", "4")
        app.stop()


# --- who owns -------------------------------------------------------------------------------------------------


def test_racing_newcomers_yield_one_owner(tmp_path: Path) -> None:
    with App(tmp_path, probation=0.05, takeover_timeout=20) as app:
        starters = [app.start(wait=False, start_new_session=True) for _ in range(4)]
        # Each becomes the owner in its turn, or is told that somebody else is taking: one serves in the end.
        eventually(lambda: sum(alive(process.pid) for process in starters) == 1, "several, or none, remain", 40)
        survivor = next(process for process in starters if alive(process.pid))
        assert app.pid() == survivor.pid
        for process in starters:
            if process is not survivor and process.wait(5) != 0:
                assert app.find("InProgress"), app.lines
        app.stop()


def test_a_start_where_the_owner_died_binds_anew(tmp_path: Path) -> None:
    with App(tmp_path, listeners={"main": f"unix:{tmp_path}/s"}) as app:
        app.start().kill()
        app.starters[0].wait(10)
        second = app.start()
        assert app.ask() == f"1 {second.pid} "
        app.stop()


def test_the_owners_death_during_the_new_ones_start_makes_it_the_owner(tmp_path: Path) -> None:
    with App(tmp_path) as app:
        first = app.start()
        first.send_signal(signal.SIGHUP)
        eventually(lambda: app.find("generation 2 started"))
        first.kill()
        app.wait_for(r"^\d+ ready")
        eventually(lambda: len(app.find(r"^\d+ ready")) == 2)
        assert app.pid() != first.pid
        app.stop()


# --- pidfile and signals --------------------------------------------------------------------------------------


def test_the_pidfile_follows_and_is_removed_at_the_end(tmp_path: Path) -> None:
    pidfile = tmp_path / "run.pid"
    with App(tmp_path, pidfile="run.pid", probation=0.5) as app:
        first = app.start(cwd=tmp_path, env={"PWD": str(tmp_path)})
        assert pidfile.read_text() == f"{first.pid}\n"
        app.deploy(misbehave="ready:kill")
        assert app.ask("upgrade").startswith("RolledBack")
        assert pidfile.read_text() == f"{first.pid}\n"
        app.deploy(misbehave="")
        app.ask("upgrade")
        second = app.pid()
        assert pidfile.read_text() == f"{second}\n"
        assert first.wait(20) == 0
        assert pidfile.read_text() == f"{second}\n"
        app.stop()
        assert not pidfile.exists()


def test_a_second_stop_signal_hurries_and_the_same_one_twice_does_not(tmp_path: Path) -> None:
    with App(tmp_path, grace=60) as app:
        first = app.start()
        with app.connect():
            eventually(lambda: json.loads(app.ask("status"))["counters"]["active"] >= 2)
            first.send_signal(signal.SIGTERM)
            first.send_signal(signal.SIGTERM)  # to the pid and to its group
            app.wait_for("ends stop")
            with pytest.raises(subprocess.TimeoutExpired):
                first.wait(1.1)
            first.send_signal(signal.SIGINT)
            assert first.wait(10) == 0
        assert app.find("drained 0 1|drained 1 1")
        app.gone()


def test_hooks_run_around_each_step_and_signal(tmp_path: Path) -> None:
    with App(tmp_path, hooks=True, probation=0.1) as app:
        first = app.start()
        first.send_signal(signal.SIGUSR1)
        app.wait_for("hook after SIGUSR1")
        first.send_signal(signal.SIGHUP)
        assert first.wait(20) == 0
        second = app.pid()
        app.stop()
        order = [" ".join(line.split()[2:]) for line in app.find(f"^{first.pid} hook")]
        drain = [order.pop(order.index(f"{when} drain")) for when in ("before", "after")]  # in another thread
        assert drain
        assert order == [
            "before ready", "after ready", "before SIGUSR1", "after SIGUSR1", "before SIGHUP", "before upgrade",
            "before offer", "after offer", "before commit", "after commit", "after upgrade", "after SIGHUP",
        ]  # fmt: skip
        last = [" ".join(line.split()[2:]) for line in app.find(f"^{second} hook")]
        assert last[:4] == ["before ready", "after ready", "before SIGTERM", "before stop"]
        assert set(last[4:]) == {"after SIGTERM", "after stop", "before drain", "after drain"}


@pytest.mark.parametrize("veto", ["before SIGHUP", "before upgrade", "before offer", "before commit"])
def test_a_hook_may_veto_an_upgrade(tmp_path: Path, veto: str) -> None:
    with App(tmp_path, hooks=True, veto=[veto]) as app:
        first = app.start()
        first.send_signal(signal.SIGHUP)
        app.wait_for("log .*SIGHUP: .*not today")
        assert app.pid() == first.pid
        assert app.ask("who").startswith("1 ")
        app.stop()


def test_a_hook_may_veto_a_stop(tmp_path: Path) -> None:
    with App(tmp_path, hooks=True, veto=["before stop"]) as app:
        first = app.start()
        first.send_signal(signal.SIGTERM)
        app.wait_for("log .*vetoed")
        assert app.ask("upgrade").startswith("handed 2")
        app.kill()


def test_a_bind_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = f"127.0.0.1:{sock.getsockname()[1]}"
        with App(tmp_path, listeners={"unix": f"unix:{tmp_path}/s", "main": taken}) as app:
            process = app.start(wait=False)
            assert process.wait(20) == 1
            app.gone()
            assert app.find(f"SystemCallError: {re.escape(taken)} is taken by pid {os.getpid()}")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_threads_that_ask_while_it_is_replaced_all_get_answers(tmp_path: Path) -> None:
    with App(tmp_path, probation=0.05) as app:
        app.start()
        failures: list[BaseException] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    app.ask()
                except BaseException as error:
                    failures.append(error)
                time.sleep(0.002)  # each connection takes a port for a minute, and there are 28,000

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            app.start(start_new_session=True)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert not failures
        app.stop()
