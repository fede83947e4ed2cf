"""What an operator has done around each upgrade: before a generation is started, and after the switch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..cli import verb, wait_for
from . import Load, Service, kill, quick, request, rude

if TYPE_CHECKING:
    from pathlib import Path


def noted(folder: Path) -> list[str]:
    file = folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def notes_become(folder: Path, lines: list[str]) -> None:
    wait_for(lambda: noted(folder) == lines, f"{lines}, not {noted(folder)}")


def note(folder: Path, word: str, more: str = "") -> str:
    return f"sh -c 'echo {word} $FDHANDOFF_GENERATION >> {folder}/notes; {more}'"


def noting(folder: Path) -> list[str]:
    """A server that notes when it starts."""
    command = rude()
    command[2] = (
        "import os\n"
        f"with open({str(folder / 'notes')!r}, 'a') as notes: print('start', os.environ['FDHANDOFF_GENERATION'], file=notes)\n"
    ) + command[2]
    return command


def test_a_command_runs_before_each_generation_and_after_each_switch(tmp_path: Path) -> None:
    options = ["--pre-start", note(tmp_path, "before"), "--post-switch", note(tmp_path, "after")]
    expected = ["before 1", "start 1", "after 1"]
    with Service(tmp_path, *quick(*options), command=noting(tmp_path)) as service, Load(service.address(), 2) as load:
        notes_become(tmp_path, expected)
        for number in (2, 3):
            expected += [f"before {number}", f"start {number}", f"after {number}"]
            upgraded = service.upgrade()
            assert upgraded["result"] == "done"
            assert [one["step"] for one in upgraded["steps"]][:2] == ["pre-start", "start"]
            notes_become(tmp_path, expected)
        load.end()
        assert not load.failures


def test_a_command_may_veto_a_generation(tmp_path: Path) -> None:
    options = quick("--pre-start", note(tmp_path, "before", "exit ${VETO:-0}"))
    with Service(tmp_path, *options, command=noting(tmp_path)) as service:
        service.release(VETO="3")
        code, _, errors = service.command()
        reason = "the pre-start command did not let generation 2 start: the command exited with status 3"
        assert (code, errors.splitlines()[-1]) == (1, f"fdhandoff-cli: {reason}")
        assert noted(tmp_path) == ["before 1", "start 1", "before 2"]
        assert request(service.address())[1] == 1
        assert service.status()["last_upgrade"]["result"] == "failed"
        service.release()
        assert service.command()[0] == 0


def test_a_veto_of_the_first_generation_is_our_own_failure(tmp_path: Path) -> None:
    done = verb(
        "run",
        "--path",
        str(tmp_path / "s"),
        "--bind",
        "127.0.0.1:0",
        "--pre-start",
        "sh -c 'exit 3'",
        "--",
        *noting(tmp_path),
    )
    assert (done.returncode, "did not let generation 1 start" in done.stderr) == (125, True), done.stderr
    assert noted(tmp_path) == []


def test_a_rollback_is_a_switch_too_and_a_command_that_fails_changes_nothing(tmp_path: Path) -> None:
    options = ["--settle", "0.1", "--probation", "20", "--post-switch", note(tmp_path, "after", "exit 4")]
    with Service(tmp_path, *options) as service:
        service.upgrade(wait="served")
        service.running.says("the post-switch command for generation 2 failed: the command exited with status 4")
        kill(service.generations()[2]["pids"][0])
        notes_become(tmp_path, ["after 1", "after 2", "after 1"])
        assert request(service.address())[1] == 1


def test_an_upgrade_that_is_aborted_ends_its_pre_start_command(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--pre-start", "sh -c 'sleep ${LONG:-0}'")) as service:
        service.release(LONG="1000")
        service.command("--no-wait")
        wait_for(lambda: service.status()["last_upgrade"]["step"] == "pre-start")
        assert service.command("--abort")[0] == 0
        assert "aborted" in service.status()["last_upgrade"]["reason"]
        service.settled(1)


def test_a_dry_run_looks_for_them_and_runs_neither(tmp_path: Path) -> None:
    options = quick("--pre-start", note(tmp_path, "before"), "--post-switch", "no-such-program")
    with Service(tmp_path, *options) as service:
        service.running.says("the post-switch command for generation 1 failed")
        code, _, errors = service.command("--dry-run")
        assert (code, "no-such-program" in errors.splitlines()[-1]) == (1, True), errors
        assert "ok  pre-start: " in errors
        assert noted(tmp_path) == ["before 1"]


@pytest.mark.parametrize("option", ["--check", "--pre-start", "--post-switch"])
def test_a_command_that_can_not_be_split_is_wrong_usage(tmp_path: Path, option: str) -> None:
    done = verb("run", "--path", str(tmp_path / "s"), option, "it's", "--", "true")
    assert (done.returncode, done.stderr.count("\n"), "quotation" in done.stderr) == (2, 1, True), done.stderr
