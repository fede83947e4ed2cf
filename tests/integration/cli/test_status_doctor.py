"""``status`` and ``doctor``, as a person reads them and as a script does; and what all verbs have in common."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import tempfile
from typing import TYPE_CHECKING

import pytest

from fdhandoff import __version__, cli
from fdhandoff.system.native import FEATURE_NAMES

from ...unit.system import as_nobody, root
from . import Running, status, stopping, verb

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Held


def test_status_tells_a_person_who_serves(path: Path, held: Held) -> None:
    with socket.create_connection(held.address), socket.create_connection(held.address):
        answer = verb("status", str(path))
    assert answer.returncode == 0
    lines = {line[:13].strip(): line[14:] for line in answer.stdout.splitlines()}
    assert lines["path"] == str(path)
    assert lines["owner"].startswith(f"pid {held.holder.pid} (")
    assert f"uid {os.geteuid()}, since " in lines["owner"]
    assert lines["state"] == "holding listeners for others, accepting nothing"
    assert lines["generation"] == "1"
    assert lines["listeners"].startswith(f"http  127.0.0.1:{held.address[1]}  2 waiting, room for ")
    assert lines["last upgrade"] == "none"


def test_status_tells_a_script(path: Path, held: Held) -> None:
    facts = status(path)
    assert facts["pid"] == held.holder.pid
    assert facts["uid"] == os.geteuid()
    assert facts["generation"] == 1
    assert facts["taker"] is None
    assert [one["name"] for one in facts["listeners"]] == ["http"]
    assert facts["holders"] == []


def test_status_of_nobody(path: Path) -> None:
    answer = verb("status", str(path))
    assert (answer.returncode, answer.stdout) == (4, "")
    assert answer.stderr == f"fdhandoff-cli: nobody answers at {path}: there is no such socket\n"
    answer = verb("status", str(path), "--json")
    assert answer.returncode == 4
    facts = json.loads(answer.stdout)
    assert (facts["schema"], facts["state"]) == (1, "nobody")
    assert "there is no such socket" in facts["error"]


def test_status_of_a_dead_owner(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    answer = verb("status", str(path))
    assert answer.returncode == 4
    assert "its owner has ended" in answer.stderr


def test_status_of_something_else(tmp_path: Path) -> None:
    answer = verb("status", str(tmp_path))
    assert answer.returncode == 3
    assert "is a directory, not a socket" in answer.stderr


def test_status_of_one_that_does_not_answer(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        answer = verb("status", str(path), "--timeout", "100ms")
    assert answer.returncode == 1
    assert "did not answer" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_name_stands_for_a_path_in_the_runtime_directory(tmp_path: Path) -> None:
    env = {"FDHANDOFF_RUNTIME_DIR": str(tmp_path)}
    assert verb("status", "--name", "app", env=env).returncode == 4
    holder = Running("hold", "--name", "app", "--bind", "127.0.0.1:0", env=env)
    with stopping(holder):
        holder.says("offered")
        path = tmp_path / "app" / "handoff.sock"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        answer = verb("status", "--name", "app", "--json", env=env)
        assert json.loads(answer.stdout)["path"] == str(path)


def test_socket_mode_and_group_open_the_path(path: Path) -> None:
    group = str(os.getegid())
    holder = Running("hold", str(path), "--bind", "127.0.0.1:0", "--socket-mode", "0660", "--socket-group", group)
    with stopping(holder):
        holder.says("offered")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getegid()


def test_doctor_answers_every_question() -> None:
    answer = verb("doctor", "--json")
    facts = json.loads(answer.stdout)
    assert facts["schema"] == 1
    names = {check["name"] for check in facts["checks"]}
    assert names >= {
        *FEATURE_NAMES, "RLIMIT_NOFILE", "fs.file-max", "fs.nr_open", "net.core.somaxconn", "net.ipv4.tcp_migrate_req",
        "net.ipv4.tcp_abort_on_overflow", "net.ipv4.ip_local_port_range", "net.unix.max_dgram_qlen", "runtime directory",
        "notify socket",
    }  # fmt: skip
    for check in facts["checks"]:
        assert check["verdict"] in ("ok", "warn", "missing")
        assert check["value"]
        assert len(check["consequence"]) > 10
        assert "\n" not in check["consequence"]
    worst = {check["verdict"] for check in facts["checks"]}
    assert answer.returncode == (3 if "missing" in worst else 0)
    people = verb("doctor")
    assert all(name in people.stdout for name in names)


def test_doctor_sees_what_is_wrong_here(tmp_path: Path) -> None:
    env = {
        "NOTIFY_SOCKET": "relative",
        "FDHANDOFF_RUNTIME_DIR": str(tmp_path / "a" / "b"),
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
    }
    answer = verb("doctor", "--json", env=env)
    assert answer.returncode == 3
    checks = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
    assert checks["notify socket"]["verdict"] == "missing"
    assert checks["runtime directory"]["verdict"] == "warn"
    assert "forks" in checks["inherited listeners"]["consequence"]


@pytest.mark.parametrize("name", ["take", "hold", "status", "doctor"])
def test_every_verb_explains_itself_with_examples(name: str) -> None:
    answer = verb(name, "--help")
    assert answer.returncode == 0
    assert "examples:\n  fdhandoff-cli " in answer.stdout
    assert "exit status:" in answer.stdout
    assert answer.stderr == ""
    assert verb("help", name).stdout == answer.stdout


def test_the_program_explains_itself() -> None:
    answer = verb("--help")
    assert answer.returncode == 0
    assert all(f"\n  {name}" in answer.stdout for name in ("take", "hold", "status", "doctor"))
    assert verb("--version").stdout == f"fdhandoff-cli {__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["serve"], ["--wat"], ["status", "a", "b"], ["doctor", "x"], ["status", "--jso", "x"]]
)
def test_wrong_usage_is_one_sentence(words: list[str]) -> None:
    answer = verb(*words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("fdhandoff-cli: ")
    assert answer.stderr.count("\n") == 1


def test_an_interrupt_is_one_sentence(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        running = Running("status", str(path), "--timeout", "1h")
        with stopping(running):
            guest, _ = mute.accept()
            with guest:
                guest.recv(1)
                running.signal(signal.SIGINT)
                assert running.ends() == 130
    assert running.err == ["fdhandoff-cli: status was interrupted"]


@root
def test_another_user_is_let_in_only_on_purpose() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = f"{directory}/h.sock"
        for options, code in (
            ([], 3),
            (["--socket-mode", "0666"], 1),
            (["--socket-mode", "0666", "--allow-uid", "65534"], 0),
        ):
            holder = Running("hold", path, "--bind", "127.0.0.1:0", *options)
            with stopping(holder):
                holder.says("offered")
                assert as_nobody(lambda: cli.main(["status", path, "--json"])) == str(code)
