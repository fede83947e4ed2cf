"""``run`` with real processes: its configuration file, its workers, what a command finds, and bad input."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import DEADLINE, ask, server, verb, wait_for

if TYPE_CHECKING:
    from .mastered import Mastered


def environ_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


# --- the configuration file -------------------------------------------------------------------------------------


def test_listeners_come_and_go_with_the_configuration(mastered: Mastered) -> None:
    mastered.start()
    first = mastered.address()
    mastered.release("two", bind=["http=127.0.0.1:0", "more=127.0.0.2:0"])
    mastered.upgrade()
    assert mastered.address() == first
    assert ask(mastered.address("more")) == "two"
    assert environ_of(mastered.serving()["pids"][0])["LISTEN_FDNAMES"] == "http:more"
    mastered.release("three", bind=["web=127.0.0.2:0"])
    more = mastered.address("more")
    mastered.upgrade()
    assert mastered.address("web") == more, "the same address is the same listener, whatever it is called"
    assert [one["name"] for one in mastered.status()["listeners"]] == ["web"]
    wait_for(lambda: mastered.generation(2)["state"] == "ended")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(first, DEADLINE)
    assert ask(more) == "three"


def test_a_listener_that_came_goes_when_the_upgrade_fails(mastered: Mastered) -> None:
    mastered.start()
    path = mastered.directory / "new.sock"
    mastered.configure(command=["false"], bind=["http=127.0.0.1:0", f"new=unix:{path}"])
    assert mastered.verb("upgrade").returncode == 1
    wait_for(lambda: not path.exists())
    assert [one["name"] for one in mastered.status()["listeners"]] == ["http"]
    assert ask(mastered.address()) == "one"


def test_a_bad_configuration_changes_nothing(mastered: Mastered) -> None:
    mastered.start()
    for settings, reason in (
        ({"grase": "3s"}, "grase: there is no such option"),
        ({"grase": None, "bind": ["http"]}, "has no port and is no path"),
        ({"bind": ["a=127.0.0.1:0", f"b=127.0.0.1:{mastered.address()[1]}"]}, "Address already in use"),
    ):
        mastered.configure(**settings)  # type: ignore[arg-type]
        answer = mastered.verb("upgrade")
        assert answer.returncode == 1
        assert reason in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert ask(mastered.address()) == "one"
    assert mastered.status()["last_upgrade"] is None
    mastered.release("two", bind=["http=127.0.0.1:0"])
    mastered.upgrade()
    mastered.answers("two")


def test_the_command_line_counts_more_than_the_file(mastered: Mastered) -> None:
    mastered.configure(workers=1, env=["WHO=file", "FILE=1"])
    mastered.start("--workers", "2", "--env", "WHO=line")
    assert len(mastered.serving()["pids"]) == 2
    environ = environ_of(mastered.serving()["pids"][0])
    assert (environ["WHO"], environ.get("FILE")) == ("line", None)


def test_a_generation_gets_the_environment_of_its_time(mastered: Mastered) -> None:
    file = mastered.directory / "env"
    file.write_text("# settings\nexport A='1 2'\nGONE=soon\n")
    mastered.configure(env_file=str(file), env=["B=x"])
    mastered.start()
    environ = environ_of(mastered.serving()["pids"][0])
    assert (environ["A"], environ["B"], environ["GONE"]) == ("1 2", "x", "soon")
    file.write_text("A=2\n")
    mastered.upgrade()
    environ = environ_of(mastered.serving()["pids"][0])
    assert environ["A"] == "2"
    assert "GONE" not in environ


def test_a_new_generation_lives_where_the_link_points_now(mastered: Mastered) -> None:
    current = mastered.directory / "current"
    for number in (1, 2):
        (mastered.directory / f"release{number}").mkdir()
    current.symlink_to("release1")
    mastered.configure(directory=str(current))
    mastered.start()
    current.unlink()
    current.symlink_to("release2")
    (mastered.directory / "release1").rmdir()
    mastered.upgrade()
    assert os.readlink(f"/proc/{mastered.serving()['pids'][0]}/cwd").endswith("/release2")


# --- conventions ------------------------------------------------------------------------------------------------


def test_listeners_are_told_by_other_conventions_on_request(mastered: Mastered) -> None:
    path = mastered.directory / "s"
    mastered.configure(
        bind=["http=127.0.0.1:0", f"local=unix:{path}"], convention=["nginx", "einhorn", "server-starter"],
        ready="delay:10ms",
    )  # fmt: skip
    mastered.start(env={"NGINX": "9;", "EINHORN_FD_7": "9", "EINHORN_MASTER_PID": "1"})
    environ = environ_of(mastered.serving()["pids"][0])
    assert environ["NGINX"] == "3;4;"
    assert (environ["EINHORN_FD_COUNT"], environ["EINHORN_FD_0"], environ["EINHORN_FD_1"]) == ("2", "3", "4")
    assert environ["SERVER_STARTER_PORT"] == f"127.0.0.1:{mastered.address()[1]}=3;{path}=4"
    assert environ["SERVER_STARTER_GENERATION"] == "1"
    assert "EINHORN_FD_7" not in environ


def test_a_check_is_not_told_of_listeners_that_it_does_not_get(mastered: Mastered) -> None:
    seen = mastered.directory / "seen"
    conventions = ["nginx", "einhorn", "server-starter"]
    mastered.configure(convention=conventions, check=f"sh -c 'env > {seen}'", ready="delay:10ms")
    mastered.start()
    mastered.upgrade()
    environ = dict(line.partition("=")[::2] for line in seen.read_text().splitlines())
    assert environ["FDHANDOFF_GENERATION"] == "2"
    assert [name for name in environ if name.startswith(("NGINX", "EINHORN_FD", "SERVER_STARTER", "LISTEN_"))] == []


# --- workers, signals, timers -----------------------------------------------------------------------------------


def test_signals_change_the_number_of_workers(mastered: Mastered) -> None:
    mastered.configure(workers=2)
    mastered.start()
    before = mastered.serving()["pids"]
    mastered.running.signal(signal.SIGTTIN)
    wait_for(lambda: len(mastered.serving()["pids"]) == 3)
    mastered.upgrade()
    assert len(mastered.serving()["pids"]) == 3, "the generations to come have as many"
    assert not set(before) & set(mastered.serving()["pids"])
    for left in (2, 1):
        mastered.running.signal(signal.SIGTTOU)
        wait_for(lambda left=left: len(mastered.serving()["pids"]) == left)
    mastered.running.signal(signal.SIGTTOU)
    mastered.running.says("the number of workers stays: generation 2 has one worker only")
    assert ask(mastered.address()) == "one"
    assert mastered.serving()["state"] == "serving"


def test_usr1_is_passed_on(mastered: Mastered) -> None:
    mastered.start()
    mastered.running.signal(signal.SIGUSR1)
    wait_for(lambda: "USR1" in mastered.running.out)


def test_it_is_upgraded_unasked(mastered: Mastered) -> None:
    mastered.configure(restart_every="300ms", probation="0s", settle="0s")
    mastered.start()
    wait_for(lambda: mastered.status()["generation"] >= 3)
    assert mastered.status()["counters"]["failed"] == 0


# --- how it starts, or does not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "say which command to run"),
        (["--wat", "--", "x"], "unrecognized arguments: --wat"),
        (["--bind", "nowhere", "--", "x"], "has no port and is no path"),
        (["--grace", "soon", "--", "x"], "is not a duration"),
        (["--workers", "0", "--", "x"], "is not a number from 1 to 10000"),
        (["--workers", "10001", "--", "x"], "is not a number from 1 to 10000"),
        (["--convention", "systemd", "--", "x"], "is none of nginx, einhorn, server-starter"),
        (["--drain-signal", "BYE", "--", "x"], "is no signal"),
        (["--config", "/no/such/file"], "/no/such/file"),
        (["--env-file", "/no/such/file", "--", "x"], "/no/such/file"),
        (["--env-file", "/dev/zero", "--", "x"], "/dev/zero is no regular file"),
        (["--config", "/dev/zero", "--", "x"], "/dev/zero is no regular file"),
        (["--directory", "/no/such/place", "--", "x"], "does not exist"),
        (["--bind", "a=:0", "--bind", "a=:1", "--", "x"], "two listeners are called 'a'"),
        (["--bind", "unix:s", "--canary", "5%:1s", "--", "x"], "a canary is not to be had on unix:s"),
        (["--switch", "shared", "--canary", "5%:1s", "--", "x"], "a canary needs the kernel switch"),
    ],
)
def test_wrong_usage_is_one_sentence(tmp_path: Path, words: list[str], reason: str) -> None:
    answer = verb("run", "--path", str(tmp_path / "m.sock"), *words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert reason in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_taken_port_is_said_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = verb("run", "--path", str(tmp_path / "m.sock"), "--bind", f"127.0.0.1:{port}", *server("one"))
    assert answer.returncode == 125
    assert f"127.0.0.1:{port}" in answer.stderr
    assert f"pid {os.getpid()}" in answer.stderr


@pytest.mark.parametrize(("command", "code"), [(["/no/such/program"], 127), (["/etc/passwd"], 126), (["false"], 1)])
def test_the_exit_status_says_why_the_command_did_not_start(tmp_path: Path, command: list[str], code: int) -> None:
    answer = verb("run", "--path", str(tmp_path / "m.sock"), "--bind", "127.0.0.1:0", "--", *command)
    assert answer.returncode == code
    assert not (tmp_path / "m.sock").exists()


def test_the_status_of_a_command_that_is_stopped_is_passed_on(mastered: Mastered) -> None:
    mastered.release("one", 7)
    mastered.start()
    assert mastered.verb("stop", "--wait").returncode == 0
    assert mastered.running.ends() == 7


@pytest.mark.parametrize("name", ["run", "upgrade", "rollback", "drain", "stop", "hurry", "status"])
def test_every_option_is_explained(name: str) -> None:
    answer = verb(name, "--help", env={"COLUMNS": "1000"})
    assert answer.returncode == 0
    assert "examples:\n  fdhandoff-cli " in answer.stdout
    assert "exit status:" in answer.stdout
    options = answer.stdout.partition("examples:")[0]
    for entry in re.split(r"\n  (?=-)", options)[1:]:
        words = entry.split()
        # A switch needs neither; what takes a value has its default in parentheses and an example, unless it has choices.
        if words[0].startswith("--") and words[1][:1] in "[ABCDEFGHIJKLMNOPQRSTUVWXYZ" and words[1][-1:].isupper():
            assert f"as in {words[0]} " in " ".join(words), entry
            if name == "run":
                assert "(" in entry, entry
