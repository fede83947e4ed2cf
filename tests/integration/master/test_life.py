"""A service from its first start to its end."""

from __future__ import annotations

import concurrent.futures
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ..cli import verb, wait_for
from . import Load, Service, kill, quick, request, rude


def test_the_process_keeps_its_name_without_a_line_feed_in_it(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        name = Path(f"/proc/{service.pid}/comm").read_bytes()
        assert (name[-1:], name.count(b"\n")) == (b"\n", 1), "the kernel adds one, and ss and ps show the rest"


def test_the_first_generation_serves_and_status_shows_it(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        service.release()
        _, generation, pid = request(service.address())
        facts = service.status()
        (one,) = facts["generations"]
        assert (generation, one["number"], one["pids"], one["state"]) == (1, 1, [pid], "serving")
        assert facts["master"]["pid"] == service.pid
        assert facts["listeners"][0]["name"] == "http"
        assert facts["listeners"][0]["switch"] == "kernel"
        assert service.stop() == 0
        assert not service.path.exists()


ONE_BY_ONE = """
import os, socket, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    connection, _ = listener.accept()
    with connection:
        if connection.recv(1000):
            connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\none 1 %d" % os.getpid())
"""


@pytest.mark.parametrize("kind", ["127.0.0.1:0", ":0", "unix"])
def test_a_server_that_takes_one_connection_after_the_other_starts_while_users_wait(tmp_path: Path, kind: str) -> None:
    """It sits on our probe, which is silent, and the users behind that would hide that it was accepted."""
    bind, go = f"unix:{tmp_path}/public" if kind == "unix" else kind, tmp_path / "go"
    command = [sys.executable, "-c", ONE_BY_ONE, str(go)]
    with Service(tmp_path, "--ready-timeout", "5", bind=f"http={bind}", command=command, wait=False) as service:
        wait_for(lambda: service.quietly().get("listeners", [{}])[0].get("queue") == 1, "the probe")
        address = f"{tmp_path}/public" if kind == "unix" else ("127.0.0.1", service.address()[1])
        with concurrent.futures.ThreadPoolExecutor() as users:
            answers = [users.submit(request, address) for _ in range(3)]
            wait_for(lambda: service.status()["listeners"][0]["queue"] == 4, "the users behind it")
            go.touch()
            assert [answer.result()[0] for answer in answers] == ["one"] * 3
        assert service.serves()["generation"] == 1


def test_an_upgrade_under_load_fails_no_request(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service, Load(service.address()) as load:
        for number in range(2, 7):
            before = service.pid
            assert service.upgrade()["result"] == "done"
            load.heard(number)
            assert service.pid == before
        service.settled(6)
        load.end()
        assert not load.failures
        assert set(load.generations()) == {1, 2, 3, 4, 5, 6}


def test_a_new_generation_has_the_new_environment_and_directory(tmp_path: Path) -> None:
    """The release directory is a link that is flipped; a variable comes, another goes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "release.py").write_text(
            "import os, socket\n"
            "listener = socket.socket(fileno=3); listener.setblocking(True)\n"
            "while True:\n"
            "    connection, _ = listener.accept(); connection.recv(1000)\n"
            f"    body = '{name}:' + os.getcwd().rpartition('/')[2] + ':' + os.environ.get('A', '-') +"
            " os.environ.get('B', '-') + f\" {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}\"\n"
            "    connection.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n' + body.encode()); connection.close()\n"
        )
    current = tmp_path / "current"
    current.symlink_to("one")
    command = [sys.executable, "release.py"]
    with Service(tmp_path, "--directory", str(current), *quick(), command=command, wait=False) as service:
        service.release(A="a")
        service.serves()
        address = service.address()
        first = request(address)[0]
        service.release(B="b")
        current.unlink()
        current.symlink_to("two")
        for file in (tmp_path / "one").iterdir():
            file.unlink()
        (tmp_path / "one").rmdir()
        service.upgrade()
        assert (first.split(":")[:2], request(address)[0]) == (["one", "one"], "two:two:-b")
        service.stop()


def test_a_generation_that_dies_is_restarted_while_connections_wait(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), env={"SLOW": "0"}) as service:
        address = service.address()
        _, _, first = request(address)
        kill(first)
        began = time.monotonic()
        _, generation, second = request(address)  # it waits in the queue, and is not refused
        assert (generation, second != first) == (1, True)
        for _ in range(3):
            kill(request(address)[2])
        request(address)
        # 0.1, 0.2, 0.4, 0.8 seconds: later and later.
        assert time.monotonic() - began >= 1.4
        assert service.status()["state"] == "serving"
        assert service.upgrade()["result"] == "done"


def test_a_restarted_server_is_not_told_to_notify_who_no_longer_listens(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "notify")) as service:
        (first,) = service.generations()[1]["pids"]
        assert b"\0NOTIFY_SOCKET=" in Path(f"/proc/{first}/environ").read_bytes()
        kill(first)
        wait_for(lambda: service.generations().get(1, {}).get("pids", [first]) != [first], "another server")
        (second,) = service.generations()[1]["pids"]
        assert request(service.address())[2] == second
        assert b"\0NOTIFY_SOCKET=" not in Path(f"/proc/{second}/environ").read_bytes()


def test_stop_works_while_a_generation_keeps_dying(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        service.release(FAULT="exit1")
        kill(service.generations()[1]["pids"][0])
        service.running.says("exited with status 1")
        service.running.signal(signal.SIGTERM)
        assert service.running.ends() in (0, 1)


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (["/nowhere/server"], 127, "no such file"),
        (["no-such-server"], 127, "not found in PATH"),
        (["/etc/passwd"], 126, "not an executable file"),
        ([sys.executable, "-c", "import sys; sys.exit(7)"], 7, "exited with status 7"),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], 137, "signal 9"),
        ([sys.executable, "-c", "syntax error"], 1, "exited with status 1"),
    ],
)
def test_a_first_start_that_fails_ends_with_the_documented_status(
    tmp_path: Path, command: list[str], code: int, sentence: str
) -> None:
    done = verb("run", "--path", str(tmp_path / "s"), "--bind", "127.0.0.1:0", "--", *command)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "s").exists()


def test_a_first_start_that_never_becomes_ready_is_our_own_failure(tmp_path: Path) -> None:
    done = verb(
        "run", "--path", str(tmp_path / "s"), "--bind", "127.0.0.1:0", "--ready-timeout", "0.5", "--", "sleep", "100"
    )
    assert (done.returncode, "did not become ready" in done.stderr) == (125, True), done.stderr


def test_the_status_of_a_command_that_ends_by_itself_after_a_stop_is_passed_on(tmp_path: Path) -> None:
    polite = "import signal, sys, socket; signal.signal(15, lambda *_: sys.exit(5)); s = socket.socket(fileno=3)\n"
    polite += "s.setblocking(True)\nwhile True: s.accept()"
    with Service(tmp_path, *quick(), command=[sys.executable, "-c", polite]) as service:
        assert service.stop() == 5


def test_term_during_the_start_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    with Service(tmp_path, *quick(), command=command, wait=False) as service:
        service.running.says("generation 1 started")
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 5


def test_a_stop_under_load_answers_all_that_was_accepted(tmp_path: Path) -> None:
    """Whoever connects afterwards is refused; nobody is reset, although the server dies of its signal at once."""
    with Service(tmp_path, *quick()) as service, Load(service.address()) as load:
        load.heard(1, 200)
        assert service.stop() == 0
        load.end()
        assert {kind for kind in load.failures if "refused" not in kind} == set()


def test_a_second_signal_hurries_but_not_at_once(tmp_path: Path) -> None:
    with Service(tmp_path, "--grace", "60") as service:
        address = service.address()
        slow = Load(address, 1, "/sleep50")
        slow._threads[0].start()
        wait_for(lambda: service.status()["generations"][0]["active"] == 1)
        began = time.monotonic()
        service.running.signal(signal.SIGTERM)
        service.running.signal(signal.SIGTERM)  # the same one, delivered to the pid and to the group
        service.running.says("draining")
        wait_for(lambda: time.monotonic() - began > 1.2)
        assert service.running.process.poll() is None
        service.running.signal(signal.SIGTERM)
        service.running.ends()
        assert time.monotonic() - began < 20
        slow.end()


def test_hup_upgrades_and_hups_while_one_is_under_way_become_one(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        for _ in range(5):
            service.running.signal(signal.SIGHUP)
            service.running.signal(signal.SIGUSR2)
            service.running.says("generation 2 started")
        service.running.says("to generation 3 in")
        service.settled(3)
        counters = service.status()["counters"]
        assert counters["upgrades"] == 2
        assert counters["coalesced"] >= 1


def test_a_storm_of_upgrade_signals_from_exec_to_ready_does_not_kill_the_new_master(tmp_path: Path) -> None:
    """A44: it is the same process, and whoever sends the signals knows nothing of the exec."""
    with Service(tmp_path, *quick()) as service:
        codes: list[int] = []
        upgrade = threading.Thread(target=lambda: codes.append(service.command("--master")[0]))
        upgrade.start()
        service.running.says("the new master takes over, in place")
        while upgrade.is_alive():
            for number in (signal.SIGHUP, signal.SIGUSR2):
                service.running.signal(number)
            upgrade.join(0.001)
        assert codes == [0], service.running.text()
        service.running.says("upgraded from generation 1 to generation 2")  # as it was told to
        wait_for(lambda: request(service.address())[1] >= 2, "an answer of the new one")
        assert service.status()["pid"] == service.pid
        assert service.stop() == 0


def test_of_two_upgrades_at_once_one_is_told_so(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "delay:2s")) as service:
        assert service.command("--no-wait")[0] == 0
        code, _, errors = service.command()
        assert (code, "under way" in errors) == (1, True), errors
        assert len(errors.splitlines()) == 1
        service.running.says("upgraded from generation 1 to generation 2")


def test_no_more_generations_drain_than_allowed(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--max-draining", "2", "--grace", "60")) as service:
        slow = []
        for number in (1, 2):
            one = Load(service.address(), 1, "/sleep8")
            one._threads[0].start()
            slow.append(one)
            wait_for(lambda number=number: service.generations()[number]["active"] == 1)
            service.upgrade()
        assert len(service.generations()) == 3
        code, _, errors = service.command()
        assert (code, "2 old generations still drain" in errors) == (1, True), errors
        assert request(service.address())[1] == 3
        for one in slow:
            one._over.set()
        service.settled(3)
        for one in slow:
            one.end()
            assert not one.failures
        assert [one.generations() for one in slow] == [{1: 1}, {2: 1}]
        assert service.upgrade()["result"] == "done"


def test_usr1_is_passed_on(tmp_path: Path) -> None:
    command = rude()
    command[2] = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: print('logs reopened', flush=True))\n" + command[2]
    )
    with Service(tmp_path, *quick(), command=command) as service:
        service.running.signal(signal.SIGUSR1)
        service.running.says("logs reopened")
