"""``deploy --supervisord``: one line that starts or upgrades, with a real supervisord."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ...cli import Running, verb, wait_for
from ...master import Load
from ..life import ended
from .test_supervisord import Supervisord

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisord]:
    with ended(Supervisord(tmp_path)) as one:
        yield one


def words(supervisor: Supervisord, *more: str) -> list[str]:
    return ["deploy", "--supervisord", "web", "--supervisord-conf", f"{supervisor.folder}/supervisord.conf", *more]


def deploy(supervisor: Supervisord, *more: str) -> subprocess.CompletedProcess[str]:
    return verb(*words(supervisor, *more))


def answer(supervisor: Supervisord, *more: str) -> dict[str, Any]:
    done = deploy(supervisor, "--json", *more)
    assert done.returncode == 0, done.stderr + done.stdout
    return dict(json.loads(done.stdout))


def test_the_first_deployment_starts_and_the_next_ones_upgrade(supervisor: Supervisord) -> None:
    supervisor.begin()
    supervisor.stop()
    first = answer(supervisor, "--release", "v1")
    assert (first["schema"], first["result"], first["generation"], first["release"]) == (1, "started", 1, "v1")
    assert first["pid"] == supervisor.pid()
    with Load(supervisor.address(), 2) as load:
        second = answer(supervisor, "--release", "v2")
        load.heard(2)
        load.end()
    assert not load.failures
    assert (second["result"], second["generation"], second["release"]) == ("upgraded", 2, "v2")
    assert (second["upgrade"]["result"], second["upgrade"]["release"]) == ("done", "v2")
    assert second["pid"] == first["pid"] == supervisor.pid()
    assert {one["number"]: one["release"] for one in supervisor.status()["generations"]} == {1: "v1", 2: "v2"}


def test_the_same_release_again_changes_nothing(supervisor: Supervisord) -> None:
    supervisor.begin()
    assert answer(supervisor, "--release", "v1")["result"] == "upgraded"
    again = answer(supervisor, "--release", "v1")
    assert (again["result"], again["generation"]) == ("unchanged", 2)
    assert answer(supervisor, "--release", "v1", "--again")["generation"] == 3
    assert answer(supervisor)["release"] is None, "nobody said what it is"


def test_it_speaks_in_sentences(supervisor: Supervisord) -> None:
    supervisor.begin()
    supervisor.stop()
    assert deploy(supervisor, "--release", "v1").stdout == "started: generation 1 (release v1) serves\n"
    done = deploy(supervisor, "--release", "v2")
    assert done.stdout.startswith("upgraded: generation 2 (release v2) serves instead of 1, after ")
    assert "probation (generation 2)" in done.stderr
    assert deploy(supervisor, "--release", "v2").stdout == "unchanged: generation 2 (release v2) serves already\n"


def test_a_release_is_known_by_a_link_or_by_its_files(supervisor: Supervisord) -> None:
    supervisor.begin()
    current = supervisor.folder / "current"
    current.symlink_to("releases/2026-11-26/")
    assert answer(supervisor, "--release", f"link:{current}")["release"] == "2026-11-26"
    file = supervisor.folder / "artefact"
    seen = set()
    for content in ("one", "two", "one"):
        file.write_text(content)
        seen.add(
            answer(supervisor, "--release", f"hash:{file}", "--release", f"hash:{current.parent}/rude.py")["release"]
        )
    assert len(seen) == 2
    assert all(one.startswith("sha256:") and len(one) == 23 for one in seen)


def test_a_release_outlives_the_master(supervisor: Supervisord) -> None:
    supervisor.begin()
    answer(supervisor, "--release", "v7")
    pid = supervisor.pid()
    os.kill(pid, 9)
    wait_for(lambda: supervisor.pid() not in (0, pid), "another master")
    supervisor.serves()
    assert answer(supervisor, "--release", "v7")["result"] == "unchanged"
    table = verb("status", str(supervisor.path)).stdout
    assert "release" in table
    assert "v7" in table


def test_a_bad_release_is_refused_and_the_one_before_serves(supervisor: Supervisord) -> None:
    supervisor.begin()
    answer(supervisor, "--release", "v1")
    supervisor.env_file.write_text("FAULT=exit3\n")
    with Load(supervisor.address(), 2) as load:
        done = deploy(supervisor, "--release", "v2")
        load.heard(2)
        load.end()
    assert not load.failures
    assert (done.returncode, "exited with status 3" in done.stderr) == (1, True)
    failed = deploy(supervisor, "--release", "v2", "--json")
    facts = json.loads(failed.stdout)
    assert (failed.returncode, facts["result"], facts["serving"]) == (1, "failed", "old")
    supervisor.release("fine")
    assert answer(supervisor, "--release", "v1")["result"] == "unchanged"


def test_a_first_start_that_fails_says_why(supervisor: Supervisord) -> None:
    supervisor.more = "startretries=0\n"
    supervisor.begin()
    supervisor.stop()
    supervisor.env_file.write_text("FAULT=exit3\n")
    done = deploy(supervisor)
    assert done.returncode == 4, done.stderr
    assert "exited with status 3" in done.stderr
    assert done.stderr.count("\n") == 1


def test_of_two_deployments_at_once_one_is_told(supervisor: Supervisord) -> None:
    supervisor.begin("--probation", "3s")
    first = Running(*words(supervisor, "--release", "v2"))
    try:
        first.says("probation")
        done = deploy(supervisor, "--release", "v3")
        assert (done.returncode, done.stdout) == (1, "")
        assert "another deployment of supervisord's web is under way" in done.stderr
    finally:
        assert first.ends() == 0, first.text()
    assert answer(supervisor, "--release", "v2")["result"] == "unchanged"


def test_a_program_that_is_not_run_by_run_is_refused(supervisor: Supervisord) -> None:
    supervisor.begin()
    (supervisor.folder / "unit" / "other.conf").write_text("[program:other]\ncommand=sleep 1000\nstartsecs=0\n")
    supervisor.control("update", "other")
    conf = ["--supervisord-conf", f"{supervisor.folder}/supervisord.conf"]
    done = verb("deploy", "--supervisord", "other", *conf)
    supervisor.control("stop", "other")
    assert done.returncode == 1
    assert "answers no handoff path: let it start the program by `fdhandoff-cli run`" in done.stderr
    done = verb("deploy", "--supervisord", "nobody", *conf)
    assert (done.returncode, "knows no program 'nobody'" in done.stderr) == (1, True)


def test_a_supervisord_that_is_not_there_is_said(tmp_path: Path) -> None:
    conf = tmp_path / "supervisord.conf"
    done = verb("deploy", "--supervisord", "web", "--supervisord-conf", str(conf))
    assert (done.returncode, "can't be read" in done.stderr) == (3, True)
    for text, reason in (
        ("[supervisorctl\n", "is no configuration of supervisord"),
        (f"[supervisorctl]\nserverurl=unix://{tmp_path}/none.sock\n", "does not answer at unix://"),
        ("[supervisorctl]\nserverurl=ftp://localhost/\n", "neither unix:// nor http://"),
        ("[supervisorctl]\nserverurl=unix://%(nothing)s/x\n", "can't be expanded"),
    ):
        conf.write_text(text)
        done = verb("deploy", "--supervisord", "web", "--supervisord-conf", str(conf))
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert reason in done.stderr
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        conf.write_text("[supervisorctl]\nserverurl=unix://%(here)s/deaf.sock ; not even listening\n")
        done = verb("deploy", "--supervisord", "web", "--supervisord-conf", str(conf))
    assert (done.returncode, "Connection refused" in done.stderr) == (3, True)


def test_a_password_is_said_as_supervisorctl_says_it(supervisor: Supervisord) -> None:
    supervisor.begin()
    conf = supervisor.folder / "supervisord.conf"
    secured = conf.read_text().replace("control.sock\n[rpc", "control.sock\nusername=me\npassword=secret\n[rpc", 1)
    conf.write_text(secured.replace("control.sock\n[include]", "control.sock\nusername=me\npassword=wrong\n[include]"))
    supervisor.end()
    supervisor.start_again()
    wait_for(lambda: (supervisor.folder / "control.sock").exists(), "supervisord")
    done = wait_for(lambda: (said := deploy(supervisor)).returncode == 1 and said, "a refusal")
    assert "another user or password" in done.stderr
    conf.write_text(conf.read_text().replace("password=wrong", "password=secret"))
    assert answer(supervisor)["result"] == "upgraded"
