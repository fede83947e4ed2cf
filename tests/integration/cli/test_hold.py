"""``hold``: queues that outlive every service."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from . import DEADLINE, Load, ask, server, status, verb, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Held, Start


def test_a_service_that_crashes_loses_no_queued_connection(path: Path, held: Held, start: Start) -> None:
    first = start("take", str(path), *server("one"))
    first.says("generation 2")
    assert ask(held.address) == "one"
    first.process.kill()
    first.ends()
    clients = [socket.create_connection(held.address, timeout=DEADLINE) for _ in range(20)]
    for client in clients:
        client.sendall(b"hello")
    wait_for(lambda: status(path)["holders"] == [])
    start("take", str(path), *server("two")).says("generation 3")
    for client in clients:
        with client:
            assert client.recv(100) in (b"one", b"two"), "answered, not reset"
    assert held.holder.process.poll() is None


def test_services_take_turns_at_a_holder_under_load(path: Path, held: Held, start: Start) -> None:
    running = start("take", str(path), *server("s0"))
    running.says("generation 2")
    with Load(held.address) as load:
        for number in range(1, 5):
            load.heard(f"s{number - 1}")
            following = start("take", str(path), *server(f"s{number}"))
            following.says(f"generation {number + 2}: the command")
            assert {one["pid"] for one in status(path)["holders"]} == {running.pid, following.pid}
            running.signal(signal.SIGTERM)
            assert running.ends() == 0
            running = following
        load.heard("s4")
    assert load.failures == []


def test_the_path_stays_and_goes_with_the_holder(path: Path, held: Held, start: Start) -> None:
    taker = start("take", str(path), *server("one"))
    assert f"the path stays with pid {held.holder.pid}" in taker.says("serves instead of")
    facts = status(path)
    assert facts["pid"] == held.holder.pid
    assert facts["state"] == "holding"
    assert facts["holders"] == [{"generation": 2, "pid": taker.pid}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    taker.signal(signal.SIGTERM)
    assert taker.ends() == 0
    assert path.exists()
    held.holder.signal(signal.SIGINT)
    assert held.holder.ends() == 0
    assert not path.exists()


def test_json_tells_what_happens(path: Path, start: Start) -> None:
    holder = start("hold", str(path), "--json", "--once", "--bind", "a=127.0.0.1:0")
    holding = json.loads(holder.says('"holding"'))
    assert (holding["schema"], holding["path"], holding["pid"]) == (1, str(path), holder.pid)
    assert [one["name"] for one in holding["listeners"]] == ["a"]
    taker = start("take", str(path), *server("one"))
    given = json.loads(holder.says('"given"'))
    assert (given["generation"], given["pid"], given["uid"]) == (2, taker.pid, os.geteuid())
    assert holder.ends() == 0


def test_once_gives_up_when_nobody_comes(path: Path) -> None:
    answer = verb("hold", str(path), "--bind", "127.0.0.1:0", "--once", "--timeout", "100ms")
    assert answer.returncode == 1
    assert "no taker came" in answer.stderr
    assert not path.exists()


def test_unix_paths_go_with_a_holder_that_gave_nothing(path: Path, tmp_path: Path, start: Start) -> None:
    public = tmp_path / "public"
    holder = start("hold", str(path), "--bind", f"unix:{public}?mode=0666")
    holder.says("offered")
    assert stat.S_IMODE(public.stat().st_mode) == 0o666
    holder.signal(signal.SIGTERM)
    assert holder.ends() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_unix_path_that_somebody_serves_stays(path: Path, tmp_path: Path, start: Start) -> None:
    public = tmp_path / "public"
    holder = start("hold", str(path), "--bind", f"web=unix:{public}")
    holder.says("offered")
    start("take", str(path), *server("one")).says("generation 2")
    holder.signal(signal.SIGTERM)
    assert holder.ends() == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(public))
        client.sendall(b"hello")
        assert client.recv(10) == b"one"


def test_inherited_listeners_are_held(path: Path, start: Start) -> None:
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='web');"
        "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[2:]])"
    )
    with socket.create_server(("127.0.0.1", 0)) as sock:
        prefix = ["-c", code, str(sock.fileno())]
        holder = start("hold", str(path), prefix=prefix, pass_fds=[sock.fileno()])
        assert holder.says("holding web").endswith(f"127.0.0.1:{sock.getsockname()[1]}")


def test_notify_says_ready(path: Path, tmp_path: Path, start: Start) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        start("hold", str(path), "--bind", "127.0.0.1:0", env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(1000).decode().splitlines()[0] == "READY=1"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["hold"], 2, "say either a handoff PATH or --name"),
        (["hold", "h"], 2, "say what to hold"),
        (["hold", "h", "--bind"], 2, "expected at least one argument"),
        (["hold", "h", "--bind", "nonsense"], 2, "has no port"),
        (["hold", "h", "--bind", "127.0.0.1:99999"], 2, "99999"),
        (["hold", "h", "--bind", "::1:80"], 2, "without brackets"),
        (["hold", "h", "--bind", ":0", "--timeout", "1s"], 2, "needs --once"),
        (["hold", "h", "--bind", ":0", "--socket-mode", "0999"], 2, "is no mode"),
        (["hold", "h", "--bind", "192.0.2.1:0"], 3, "is no address of this machine"),
        (["hold", "h", "--bind", ":0", "--socket-group", "no-such-group-here"], 3, "there is no group"),
        (["hold", "d/h", "--bind", ":0"], 3, "there is no directory d"),
        (["hold", "file", "--bind", ":0"], 3, "is a regular file, not a socket, and was not touched"),
        (["hold", "h" * 200, "--bind", ":0"], 3, "choose a shorter one"),
    ],
)
def test_bad_input(words: list[str], code: int, part: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    answer = verb(*words, cwd=tmp_path)
    assert answer.returncode == code, answer.stderr
    assert part in answer.stderr
    assert answer.stderr.startswith("fdhandoff-cli: ")
    assert answer.stderr.count("\n") == 1, "one sentence"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_taken_port_or_path_is_refused_and_nothing_stays_behind(path: Path, held: Held, tmp_path: Path) -> None:
    answer = verb("hold", str(path), "--bind", "127.0.0.1:0")
    assert answer.returncode == 1
    assert f"is in use by pid {held.holder.pid}" in answer.stderr
    other = tmp_path / "other.sock"
    answer = verb("hold", str(other), "--bind", f"127.0.0.1:{held.address[1]}")
    assert answer.returncode == 3
    assert f"is taken by pid {held.holder.pid}" in answer.stderr
    assert not other.exists()
    assert status(path)["state"] == "holding"


def test_a_holder_is_the_same_after_many_takers(path: Path, held: Held) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{held.holder.pid}/fd"))

    def give() -> None:
        code = "import socket; s = socket.socket(fileno=3); s.settimeout(0.2)\ntry: s.accept()\nexcept OSError: pass"
        assert verb("take", str(path), "--", sys.executable, "-c", code).returncode == 0
        wait_for(lambda: status(path)["holders"] == [])

    give()
    before = descriptors()
    for _ in range(10):
        give()
    # The last taker's pidfd is let go when the next one comes.
    assert descriptors() <= before
    assert status(path)["generation"] == 12
