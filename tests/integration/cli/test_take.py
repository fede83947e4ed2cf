"""``take`` with a server that knows nothing of handoffs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import Load, ask, server, status, verb, wait_for

if TYPE_CHECKING:
    from .conftest import Held, Start


def proc(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def test_a_chain_of_takes_under_load_loses_nothing(path: Path, given: Held, start: Start) -> None:
    first = start("take", str(path), "--probation", "300ms", *server("one", 11))
    first.says("generation 2")
    assert given.holder.ends() == 0
    with Load(given.address) as load:
        load.heard("one")
        previous = first
        for number, name in enumerate(("two", "three", "four"), start=3):
            running = start("take", str(path), "--probation", "300ms", *server(name, 10 + number))
            running.says(f"generation {number}: the command")
            load.heard(name)
            assert previous.ends() == (11 if number == 3 else 9 + number), "each ends with its command's own status"
            load.heard(name)
            previous = running
        facts = status(path)
        assert (facts["pid"], facts["generation"], facts["state"]) == (previous.pid, 5, "offering")
        assert facts["last_upgrade"]["result"] == "done"
        assert facts["draining"] == []
    assert load.failures == []
    assert set(load.answers) == {"one", "two", "three", "four"}
    previous.signal(signal.SIGTERM)
    assert previous.ends() == 15
    assert not path.exists(), "the last owner removes the path"


def test_the_old_command_is_told_only_after_probation(path: Path, given: Held, start: Start) -> None:
    first = start("take", str(path), "--probation", "1h", *server("one"))
    first.says("generation 2")
    second = start("take", str(path), *server("two"))
    second.says("generation 3")
    facts = status(path)
    assert facts["pid"] == second.pid
    assert [one["pid"] for one in facts["draining"]] == [first.pid]
    assert first.process.poll() is None, "it stays for its probation"
    second.process.kill()  # within probation, so that the first is given the service back
    assert second.ends() == -signal.SIGKILL
    first.says("took the service back")
    wait_for(lambda: status(path)["state"] == "offering")
    assert status(path)["pid"] == first.pid
    assert status(path)["last_upgrade"]["result"] == "rolled back"
    assert ask(given.address) == "one"


def test_a_command_that_dies_in_probation_gives_the_service_back(path: Path, given: Held, start: Start) -> None:
    first = start("take", str(path), "--probation", "1h", *server("one"))
    first.says("generation 2")
    with Load(given.address, clients=2) as load:
        second = start("take", str(path), "--json", *server("two"))
        load.heard("two")
        os.kill(int(second.says('"event": "serving"').partition('"pid": ')[2].split(",")[0]), signal.SIGTERM)
        assert second.ends() == 0
        second.says('"event": "given back"')
        first.says("took the service back")
        load.heard("one")
    assert load.failures == []
    assert status(path)["pid"] == first.pid
    assert path.exists()


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("", 125)]
)
def test_a_command_that_ends_before_it_is_ready_leaves_the_old_one(
    path: Path, held: Held, start: Start, code: str, expected: int
) -> None:
    answer = verb("take", str(path), "--", sys.executable, "-c", code)
    assert answer.returncode == expected
    assert answer.stderr.count("\n") == 1
    assert "before the service was ours" in answer.stderr
    assert "serves on" in answer.stderr
    held.holder.says("not given: pid")
    start("take", str(path), *server("later")).says("generation 2")
    assert ask(held.address) == "later"


def test_a_command_that_never_gets_ready_is_ended(path: Path, held: Held) -> None:
    code = "import time; time.sleep(600)"
    answer = verb("take", str(path), "--ready-timeout", "200ms", "--", sys.executable, "-c", code)
    assert answer.returncode == 125
    assert "did not accept from http, nor say READY=1, within 200ms" in answer.stderr
    assert "serves on" in answer.stderr


def test_a_wrapper_that_forks_is_explained(path: Path, held: Held) -> None:
    answer = verb("take", str(path), "--ready-timeout", "300ms", "--grace", "0", "--", "sh", "-c", "sleep 600; true")
    assert answer.returncode == 125
    assert "does not find the listeners by LISTEN_PID" in answer.stderr
    assert "{fd:NAME}" in answer.stderr


def test_the_command_finds_exactly_its_descriptors_and_variables(path: Path, start: Start) -> None:
    holder = start("hold", str(path), "--bind", "a=127.0.0.1:0", "udp:127.0.0.1:0", "b=127.0.0.1:0")
    holder.says("offered")
    code = (
        "import os, sys; print(sys.argv[1:], os.environ['LISTEN_FDS'], os.environ['LISTEN_PID'] == str(os.getpid()),"
        " os.environ['LISTEN_FDNAMES'], os.environ['FDHANDOFF_GENERATION'], 'WATCHDOG_USEC' in os.environ,"
        " sorted(map(int, os.listdir('/proc/self/fd')))[:-1], flush=True); raise SystemExit(9)"
    )
    words = ["--", sys.executable, "-c", code, "x={fd:b}", "{fd:a}{fd:listener1}", "{other}"]
    answer = verb("take", str(path), *words, env={"WATCHDOG_USEC": "1", "FDHANDOFF_GENERATION": "77"})
    assert answer.returncode == 9
    expected = "['x=5', '34', '{other}'] 3 True a:listener1:b 2 False [0, 1, 2, 3, 4, 5]\n"
    assert answer.stdout == expected


def test_readiness_by_notify(path: Path, held: Held, start: Start) -> None:
    code = (
        "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.sendto(b'READY=1\\nSTATUS=here', '\\0' + os.environ['NOTIFY_SOCKET'][1:]); time.sleep(600)"
    )
    running = start("take", str(path), "--ready", "notify", "--", sys.executable, "-c", code)
    assert running.says("serves instead of").endswith(
        f"ready by notify; the path stays with pid {held.holder.pid}, uid 0"
    )


def test_readiness_by_delay_is_called_assumed(path: Path, held: Held, start: Start) -> None:
    running = start("take", str(path), "--ready", "delay:50ms", "--", "sleep", "600")
    assert "ready by delay of 50ms (assumed)" in running.says("serves instead of")


def test_a_command_that_boots_slowly_is_waited_for(path: Path, held: Held, start: Start) -> None:
    running = start("take", str(path), *server("slow"), env={"BOOT": "1.5"})
    assert "ready by accept;" in running.says("serves instead of")
    assert ask(held.address) == "slow"


def test_signals_are_passed_on_also_those_that_came_too_early(path: Path, given: Held, start: Start) -> None:
    running = start("take", str(path), *server("one", 4), env={"BOOT": "1"})
    wait_for(lambda: status(path)["state"] == "handing over")
    for _ in range(20):
        running.signal(signal.SIGUSR1)
    running.says("generation 2")
    running.says("USR1")
    running.out.clear()
    running.signal(signal.SIGUSR1)
    running.says("USR1")
    running.signal(signal.SIGTERM)
    assert running.ends() == 4


def test_a_command_that_a_signal_kills_is_told_so(path: Path, given: Held, start: Start) -> None:
    running = start("take", str(path), "--ready", "delay:0", "--", "sh", "-c", "exec sleep 600")
    running.says("generation 2")
    running.signal(signal.SIGTERM)
    assert running.ends() == 143


def test_stop_before_ready_leaves_the_old_one(path: Path, held: Held, start: Start) -> None:
    running = start("take", str(path), "--grace", "200ms", *server("one"), env={"BOOT": "600"})
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    wait_for(lambda: status(path)["state"] == "handing over" and children.read_text(), "the command's start")
    running.signal(signal.SIGTERM)
    assert running.ends() in (143, 137), "it died of TERM before it had a handler, or of KILL after the grace"
    running.says("stopped by signal 15 before the service was ours")
    wait_for(lambda: status(path)["state"] == "holding")


def test_stop_while_it_waits_for_an_owner(path: Path, start: Start) -> None:
    running = start("take", str(path), "--timeout", "1h", *server("one"))
    wait_for(lambda: running.process.poll() is None)
    wait_for(lambda: "SigCgt" in (text := proc(running.pid)) and _catches(text, signal.SIGUSR1))
    running.signal(signal.SIGINT)
    assert running.ends() == 130
    assert running.err == ["fdhandoff-cli: stopped by signal 2 before anything was taken over"]


def _catches(text: str, number: int) -> bool:
    mask = next(line.split()[1] for line in text.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_stop_lets_the_next_taker_finish(path: Path, given: Held, start: Start) -> None:
    first = start("take", str(path), "--probation", "0", *server("one", 5))
    first.says("generation 2")
    second = start("take", str(path), *server("two"), env={"BOOT": "2"})
    wait_for(lambda: status(path)["state"] == "handing over")
    first.signal(signal.SIGTERM)
    second.says("generation 3")
    assert first.ends() == 5
    assert ask(given.address) == "two"


def test_a_killed_take_takes_its_command_along(path: Path, held: Held, start: Start) -> None:
    running = start("take", str(path), "--json", *server("one"))
    pid = int(running.says('"event": "serving"').partition('"pid": ')[2].split(",")[0])
    running.process.kill()
    running.ends()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or "State:\tZ" in proc(pid))


def test_a_drained_command_that_hangs_is_killed(path: Path, given: Held, start: Start) -> None:
    hang = "import signal, sys; signal.signal(15, signal.SIG_IGN); exec(sys.argv[3])"
    from . import SERVER

    words = [
        "--",
        sys.executable,
        "-c",
        hang,
        "one",
        "0",
        SERVER.replace("signal.signal(signal.SIGTERM", "(lambda *a: 0)(0"),
    ]
    first = start("take", str(path), "--probation", "0", "--grace", "300ms", *words)
    first.says("generation 2")
    second = start("take", str(path), *server("two"))
    second.says("generation 3")
    assert first.ends() == 137
    first.says("did not finish within 300ms: killed")


def test_state_that_came_along_is_kept_on_request(path: Path, tmp_path: Path, start: Start) -> None:
    import socket
    import threading

    import fdhandoff

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(
            target=lambda: fdhandoff.send(path, {"http": listener}, state=b"early", on_commit=lambda: b"final")
        )
        sender.start()
        out = tmp_path / "state"
        running = start("take", str(path), "--state-out", str(out), *server("one"))
        running.says("generation 2")
        sender.join(20)
        wait_for(lambda: out.read_bytes() == b"final")
        assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["take"], 2, "say what to start"),
        (["take", "x.sock", "--"], 2, "say what to start"),
        (["take", "x.sock"], 2, "say what to start"),
        (["take", "--", "true"], 2, "say either a handoff PATH or --name"),
        (["take", "x.sock", "--name", "y", "--", "true"], 2, "say either a handoff PATH or --name"),
        (["take", "", "--", "true"], 2, "empty"),
        (["take", "--name", "a/b", "--", "true"], 2, "can't name a service"),
        (["take", "x.sock", "--ready", "soon", "--", "true"], 2, "is no kind of readiness"),
        (["take", "x.sock", "--ready", "delay:x", "--", "true"], 2, "is not a duration"),
        (["take", "x.sock", "--grace", "-1", "--", "true"], 2, "is not a duration"),
        (["take", "x.sock", "--grace"], 2, "expected one argument"),
        (["take", "x.sock", "--drain-signal", "BANG", "--", "true"], 2, "is no signal"),
        (["take", "x.sock", "--allow-uid", "nobody-at-all", "--", "true"], 2, "there is no user"),
        (["take", "x.sock", "--wat", "--", "true"], 2, "unrecognized arguments"),
        (["take", "x.sock", "--", "no-such-program-here"], 127, "not found"),
        (["take", "x.sock", "--", "/etc/passwd"], 126, "not an executable file"),
        (["take", "x.sock", "--timeout", "50ms", "--", "true"], 125, "nobody handed over at x.sock within 0.05 s"),
        (["take", ".", "--", "true"], 125, "is a directory"),
        (["take", "x" * 200, "--", "true"], 125, "choose a shorter one"),
    ],
)
def test_bad_input(words: list[str], code: int, part: str, tmp_path: Path) -> None:
    answer = verb(*words, cwd=tmp_path)
    assert answer.returncode == code, answer.stderr
    assert part in answer.stderr
    assert answer.stderr.startswith("fdhandoff-cli: ")
    assert answer.stderr.count("\n") == 1, "one sentence"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_in_the_arguments_leaves_the_old_one(path: Path, held: Held) -> None:
    answer = verb("take", str(path), "--", "echo", "{fd:https}")
    assert answer.returncode == 125
    assert "{fd:https} names no listener: the owner offers http; it serves on" in answer.stderr
