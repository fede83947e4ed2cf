"""Bad input to run and upgrade: one clear sentence, the documented exit code, and nothing left."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs_that
from ..cli import environment, verb
from . import Service, kill, quick, request

if TYPE_CHECKING:
    from pathlib import Path


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What it said of itself: one line, and no traceback."""
    lines = [line for line in done.stderr.splitlines() if "listening on" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fdhandoff-cli: "), done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--no-such-option", "--", "true"], 2, "--no-such-option"),
        ([], 2, "command"),
        (["--bind", "nonsense", "--", "true"], 2, "nonsense"),
        (["--bind", ":99999", "--", "true"], 2, "99999"),
        (["--bind", "127.0.0.1:0", "--ready", "later", "--", "true"], 2, "later"),
        (["--bind", "127.0.0.1:0", "--ready", "http:healthz", "--", "true"], 2, "path"),
        (["--bind", "127.0.0.1:0", "--canary", "5", "--", "true"], 2, "canary"),
        (["--bind", "127.0.0.1:0", "--grace", "soon", "--", "true"], 2, "soon"),
        (["--bind", "127.0.0.1:0", "--workers", "0", "--", "true"], 2, "workers"),
        (["--bind", "127.0.0.1:0", "--max-draining", "0", "--", "true"], 2, "max-draining"),
        (["--bind", "127.0.0.1:0", "--drain-signal", "NOPE", "--", "true"], 2, "NOPE"),
        (["--bind", "127.0.0.1:0", "--env", "nothing", "--", "true"], 2, "NAME=value"),
        (["--bind", "unix:{folder}/app", "--canary", "5%:1s", "--", "true"], 2, "canary"),
        (["--bind", "127.0.0.1:0", "--config", "{folder}/absent.toml", "--", "true"], 2, "absent.toml"),
        (["--bind", "127.0.0.1:0", "--env-file", "{folder}/absent.env", "--", "true"], 2, "absent.env"),
        (["--bind", "203.0.113.9:1", "--", "true"], 125, "203.0.113.9"),
        (["--bind", "unix:{folder}/no/app", "--", "true"], 125, "no"),
        (["--bind", "127.0.0.1:0", "--", "server", "--fd", "{{fd:https}}"], 125, "{fd:https}"),
        (["--bind", "127.0.0.1:0", "--directory", "{folder}/absent", "--", "/bin/true"], 2, "absent"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_run_says_what_is_wrong(tmp_path: Path, words: list[str], code: int, part: str) -> None:
    words = [word.replace("{folder}", str(tmp_path)).replace("{{", "{").replace("}}", "}") for word in words]
    done = verb("run", "--path", str(tmp_path / "s"), *words)
    assert (done.returncode, part in sentence(done)) == (code, True), done.stderr
    assert not (tmp_path / "s").exists()


def test_a_broken_configuration_file_is_told_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("workers = [\n")
    done = verb("run", "--path", str(tmp_path / "s"), "--config", str(config), "--", "true")
    assert (done.returncode, "run.toml" in sentence(done)) == (2, True), done.stderr
    config.write_text("wrokers = 2\n")
    done = verb("run", "--path", str(tmp_path / "s"), "--config", str(config), "--", "true")
    assert (done.returncode, "wrokers" in sentence(done)) == (2, True), done.stderr


def test_a_taken_port_is_told_with_who_has_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = verb("run", "--path", str(tmp_path / "s"), "--bind", f"127.0.0.1:{port}", "--", "true")
        said = sentence(done)
        assert (done.returncode, str(port) in said, str(os.getpid()) in said) == (125, True, True), said


def test_a_privileged_port_is_told_to_nobody(tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0, "root")
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        if int(file.read()) <= 80:
            pytest.skip("this kernel has no privileged ports")
    folder = tmp_path / "nobody"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    parent = tmp_path
    while parent != parent.parent and not parent.stat().st_mode & 0o001:
        parent.chmod(parent.stat().st_mode | 0o011)
        parent = parent.parent
    # Everything is loaded before, since nobody may not be allowed to read it.
    words = ["run", "--path", str(folder / "s"), "--bind", "127.0.0.1:80", "--", "true"]
    code = (
        "import encodings.ascii, encodings.idna, importlib, locale, os, shutil, sys, fdhandoff.master.master\n"
        "import fdhandoff.cli.run\n"
        f"os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(fdhandoff.cli.main({words!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=30, check=False
    )
    assert (done.returncode, "127.0.0.1:80" in sentence(done), "Permission denied" in done.stderr) == (
        125,
        True,
        True,
    ), done.stderr


def test_a_second_run_at_the_same_path_is_refused(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        done = verb("run", "--path", str(service.path), "--bind", "127.0.0.1:0", "--", "true")
        assert (done.returncode, "serves at" in sentence(done), str(service.pid) in done.stderr) == (125, True, True)
        assert request(service.address())[1] == 1


def test_upgrade_of_nobody(tmp_path: Path) -> None:
    done = verb("upgrade", str(tmp_path / "nobody"))
    assert (done.returncode, "nobody answers" in sentence(done)) == (4, True), done.stderr
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    done = verb("upgrade", "--pid", str(gone.pid))
    assert (done.returncode, str(gone.pid) in sentence(done)) == (4, True), done.stderr
    done = verb("upgrade", "--pid", str(os.getpid()))
    assert (done.returncode, str(os.getpid()) in sentence(done)) == (4, True), done.stderr


def test_upgrade_of_a_master_that_was_killed(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        pids = [pid for one in service.generations().values() for pid in one["pids"]]
        kill(service.pid)
        done = verb("upgrade", str(service.path))
        assert (done.returncode, "has ended" in sentence(done)) == (4, True), done.stderr
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)


@pytest.mark.parametrize("words", [["--abort"], ["--hold"], ["--promote"]])
def test_steering_what_is_not_under_way_is_refused(tmp_path: Path, words: list[str]) -> None:
    with Service(tmp_path, *quick()) as service:
        done = verb("upgrade", str(service.path), *words)
        assert (done.returncode, "is under way" in sentence(done)) == (1, True), done.stderr


def test_an_upgrade_whose_environment_file_is_broken_is_refused(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        service.env_file.write_text("nonsense\n")
        done = verb("upgrade", str(service.path))
        assert (done.returncode, "release.env, line 1" in done.stderr) == (1, True), done.stderr
        service.env_file.unlink()
        done = verb("upgrade", str(service.path))
        assert (done.returncode, "release.env" in done.stderr) == (1, True), done.stderr
        service.release()
        assert service.command()[0] == 0
        assert request(service.address())[1] > 1
