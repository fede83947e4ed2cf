"""The verbs of an operator, asked of a master and of a program that lives by ``Service``."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.cli.target import find

from ...unit.system import as_nobody, root
from ..services import App
from . import DEADLINE, PACKAGE, Load, environment, verb, wait_for
from .schema import check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Start
    from .mastered import Mastered

QUICK = "5%:30s"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """A program that lives by ``Service``."""
    with App(tmp_path) as app:
        app.start()
        yield app


def last(mastered: Mastered) -> dict[str, Any]:
    found: dict[str, Any] = mastered.status()["last_upgrade"]
    return found


def under_way(mastered: Mastered, step: str) -> None:
    wait_for(lambda: (last(mastered) or {}).get("step", "").startswith(step), f"the step {step}")


# --- which service ----------------------------------------------------------------------------------------------


def test_a_service_is_found_by_any_of_its_processes(mastered: Mastered) -> None:
    mastered.start()
    server = mastered.serving()["pids"][0]
    for words in (["--pid", str(mastered.running.pid)], ["--pid", str(server)], ["--path", str(mastered.path)]):
        answer = verb("status", *words, "--json")
        assert (answer.returncode, answer.stderr) == (0, "")
        assert json.loads(answer.stdout)["path"] == str(mastered.path)


def test_a_service_is_found_in_the_runtime_directory(tmp_path: Path, start: Start) -> None:
    env = {"FDHANDOFF_RUNTIME_DIR": str(tmp_path)}
    holder = start("hold", "--name", "app", "--bind", "127.0.0.1:0", env=env)
    holder.says("offered")
    answer = verb("status", "--pid", str(holder.pid), "--json", env=env)
    assert json.loads(answer.stdout)["path"] == str(tmp_path / "app" / "handoff.sock")


def test_a_dead_process_is_nobody() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    answer = verb("upgrade", "--pid", str(process.pid))
    assert answer.returncode == 4
    assert answer.stderr == (f"fdhandoff-cli: there is no process {process.pid}: nothing serves under that number\n")


def test_a_stranger_is_no_service() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        answer = verb("upgrade", "--pid", str(process.pid))
    finally:
        process.kill()
        process.wait()
    assert answer.returncode == 4
    assert f"process {process.pid} (sleep) runs, but answers no handoff path" in answer.stderr


@root
def test_somebody_elses_process_is_not_ours_to_ask(mastered: Mastered) -> None:
    mastered.start()
    answer = as_nobody(lambda: find(mastered.running.pid))
    assert answer.startswith(f"Failure: process {mastered.running.pid} (")
    assert answer.endswith("belongs to uid 0: ask as that user, or as root")


@pytest.mark.parametrize("words", [[], ["--name", "a", "--pid", "1"], ["--pid", "x"], ["--pid", "0"]])
def test_say_which_service(words: list[str]) -> None:
    answer = verb("stop", *words)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1


# --- upgrade ----------------------------------------------------------------------------------------------------


def test_upgrade_shows_its_steps_and_ends_with_one_line(mastered: Mastered) -> None:
    mastered.start()
    mastered.release("two")
    with Load(mastered.address()) as load:
        answer = mastered.verb("upgrade")
        load.heard("two")
    assert load.failures == []
    assert answer.returncode == 0, answer.stderr
    assert re.fullmatch(r"upgraded from generation 1 to 2 in [\d.]+m?s\n", answer.stdout)
    steps = [line.split()[2] for line in answer.stderr.splitlines()]
    assert steps == ["start", "ready", "switch", "settle", "probation"]


def test_upgrade_can_be_left_alone_or_waited_for_until_it_serves(mastered: Mastered) -> None:
    mastered.release("one", probation="30s")
    mastered.start()
    mastered.release("two")
    answer = mastered.verb("upgrade", "--wait", "served")
    assert answer.returncode == 0
    assert "generation 2 serves" in answer.stdout
    mastered.answers("two")
    assert mastered.verb("upgrade", "--abort").returncode == 0
    answer = mastered.verb("upgrade", "--no-wait")
    assert (answer.returncode, answer.stdout) == (0, "upgrade from generation 1 to 3 has begun\n")
    wait_for(lambda: last(mastered)["step"] == "probation")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([sys.executable, "-c", "import sys; sys.exit(3)"], "exited with status 3"),
        ([sys.executable, "-c", "syntax error"], "exited with status 1"),
        (["/no/such/program"], "no such file"),
    ],
)
def test_a_bad_release_is_refused_with_its_reason(mastered: Mastered, command: list[str], reason: str) -> None:
    mastered.start()
    mastered.configure(command=command)
    with Load(mastered.address()) as load:
        answer = mastered.verb("upgrade")
        load.heard("one")
    assert load.failures == []
    assert answer.returncode == 1
    (sentence,) = (line for line in answer.stderr.splitlines() if line.startswith("fdhandoff-cli: "))
    assert reason in sentence
    assert ("  | SyntaxError: invalid syntax" in answer.stderr) == (command[-1] == "syntax error")
    answer = mastered.verb("upgrade", "--json")
    facts = json.loads(answer.stdout)
    assert (facts["schema"], facts["result"], facts["serving"], facts["upgrade"]["to"]) == (1, "failed", "old", 3)
    assert reason in facts["error"]
    mastered.release("four")
    assert mastered.upgrade()["result"] == "done"
    mastered.answers("four")


def test_a_dry_run_looks_and_touches_nothing(mastered: Mastered) -> None:
    mastered.start()
    answer = mastered.verb("upgrade", "--dry-run")
    assert (answer.returncode, answer.stdout) == (0, "an upgrade could begin\n")
    assert [line.split()[1] for line in answer.stderr.splitlines()] == [
        "room:",
        "configuration:",
        "memory:",
        "listeners:",
        "command:",
    ]
    mastered.configure(command=["/no/such/program"], check="false", bind=["http=127.0.0.1:0", "two=127.0.0.2:0"])
    answer = mastered.verb("upgrade", "--dry-run", "--json")
    assert answer.returncode == 1
    checks = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
    assert {name for name, one in checks.items() if not one["ok"]} == {"command", "check"}
    assert checks["listeners"]["detail"] == "two=127.0.0.2:0 would be bound"
    facts = mastered.status()
    assert (facts["generation"], len(facts["generations"]), facts["last_upgrade"]) == (1, 1, None)


def test_a_check_that_fails_starts_nothing(mastered: Mastered) -> None:
    mastered.start()
    mastered.configure(check="false")
    answer = mastered.verb("upgrade")
    assert answer.returncode == 1
    assert "the check of the new release failed: the command exited with status 1" in answer.stderr


def test_of_two_upgrades_at_once_one_is_told_so(mastered: Mastered) -> None:
    mastered.configure(probation="30s")
    mastered.start()
    assert mastered.verb("upgrade", "--wait", "served").returncode == 0
    answer = mastered.verb("upgrade")
    assert answer.returncode == 1
    assert "an upgrade to generation 2 is under way" in answer.stderr


def test_an_upgrade_that_nobody_waits_for_any_more_goes_on_and_says_so(mastered: Mastered) -> None:
    mastered.configure(probation="30s")
    mastered.start()
    answer = mastered.verb("upgrade", "--timeout", "1s")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "fdhandoff-cli: the upgrade is not decided after 1s, and goes on: status shows how far it is, "
        "upgrade --abort takes it back"
    )
    assert last(mastered)["result"] == "under way"


def test_a_canary_is_held_promoted_and_taken_back(mastered: Mastered) -> None:
    mastered.start()
    mastered.release("two")
    assert mastered.verb("upgrade", "--no-wait", "--canary", "20%:60s").returncode == 0
    assert mastered.verb("upgrade", "--hold").stdout == "the canary stays as it is\n"
    under_way(mastered, "canary 20%")
    mastered.running.says("canary: held at its present share")
    assert last(mastered)["held"] is True
    assert "at canary 20% (held)" in mastered.verb("status").stdout
    assert mastered.generation(2)["share"] == pytest.approx(0.2)
    assert mastered.verb("upgrade", "--promote").returncode == 0
    mastered.answers("two")
    wait_for(lambda: last(mastered)["result"] == "done")
    assert last(mastered)["held"] is False
    assert mastered.verb("upgrade", "--no-wait", "--canary", QUICK).returncode == 0
    under_way(mastered, "canary 5%")
    assert mastered.verb("rollback").stdout == "rolled back: generation 2 serves\n"
    assert last(mastered)["result"] == "rolled back"
    assert last(mastered)["reason"].startswith("the upgrade was aborted: rolled back by pid ")


@pytest.mark.parametrize("word", ["--abort", "--hold", "--promote"])
def test_there_is_nothing_to_steer_without_an_upgrade(mastered: Mastered, word: str) -> None:
    mastered.start()
    answer = mastered.verb("upgrade", word)
    assert answer.returncode == 1
    assert re.fullmatch(r"fdhandoff-cli: no (upgrade|canary) is under way\n", answer.stderr)


def test_a_unix_listener_has_no_canary(mastered: Mastered) -> None:
    mastered.configure(bind=[f"http=unix:{mastered.directory}/s"], ready="delay:100ms")
    mastered.start()
    answer = mastered.verb("upgrade", "--canary", QUICK)
    assert answer.returncode == 1
    assert "a canary is not to be had on" in answer.stderr
    assert mastered.verb("upgrade", "--canary", "5:1s").returncode == 2


# --- rollback ---------------------------------------------------------------------------------------------------


def test_rollback_within_probation(mastered: Mastered) -> None:
    mastered.configure(probation="30s")
    mastered.start()
    mastered.release("two")
    mastered.verb("upgrade", "--wait", "served")
    mastered.answers("two")
    with Load(mastered.address()) as load:
        answer = mastered.verb("rollback")
        load.heard("one")
    assert load.failures == []
    assert (answer.returncode, answer.stdout) == (0, "rolled back: generation 1 serves\n")


def test_rollback_to_a_generation_that_was_kept(mastered: Mastered) -> None:
    mastered.configure(keep_old="1h")
    mastered.start()
    mastered.release("two")
    mastered.upgrade()
    kept = mastered.generation(1)
    assert kept["state"] == "kept"
    assert 3500 < kept["deadline"] <= 3600
    with Load(mastered.address()) as load:
        load.heard("two")
        answer = mastered.verb("rollback")
        load.heard("one")
    assert load.failures == []
    assert answer.stdout == "rolled back: generation 1 serves\n"
    wait_for(lambda: mastered.generation(2)["state"] == "ended")
    mastered.release("three")
    assert mastered.upgrade()["from"] == 1
    mastered.answers("three")


def test_the_kept_one_ends_when_another_is_kept(mastered: Mastered) -> None:
    mastered.configure(keep_old="1h")
    mastered.start()
    mastered.upgrade()
    mastered.upgrade()
    wait_for(lambda: mastered.generation(1)["state"] == "ended")
    assert mastered.generation(2)["state"] == "kept"


def test_there_is_nothing_to_roll_back_to_once_the_old_one_is_gone(mastered: Mastered) -> None:
    mastered.start()
    mastered.upgrade()
    answer = mastered.verb("rollback")
    assert answer.returncode == 1
    assert "generation 2 passed its probation, and the one before is gone" in answer.stderr


# --- the end ----------------------------------------------------------------------------------------------------


def test_stop_waits_until_it_has_ended(mastered: Mastered) -> None:
    mastered.start()
    answer = mastered.verb("stop", "--wait")
    assert (answer.returncode, answer.stdout) == (0, "stopped\n")
    assert mastered.running.ends() == 0
    assert not mastered.path.exists()
    answer = mastered.verb("stop")
    assert answer.returncode == 4


def test_drain_lets_the_last_connection_finish(mastered: Mastered) -> None:
    mastered.start()
    with socket.create_connection(mastered.address(), timeout=DEADLINE) as late:
        wait_for(lambda: mastered.serving()["active"] == 1)
        assert mastered.verb("drain").stdout == "draining\n"
        facts = mastered.status()
        assert facts["state"] == "draining"
        assert facts["generations"][-1]["deadline"] <= 30
        answer = mastered.verb("drain")
        assert answer.returncode == 1
        assert "the service is draining already" in answer.stderr
        late.sendall(b"hello")
        assert late.recv(100) == b"one"
    assert mastered.running.ends() == 0


def test_hurry_cuts_a_drain_short(mastered: Mastered) -> None:
    mastered.configure(grace="1h")
    mastered.start()
    with socket.create_connection(mastered.address(), timeout=DEADLINE):
        wait_for(lambda: mastered.serving()["active"] == 1)
        mastered.upgrade()
        wait_for(lambda: mastered.generation(1)["state"] == "draining")
        assert mastered.verb("hurry").stdout == "ended: generation 1\n"
        wait_for(lambda: mastered.generation(1)["state"] == "ended")
    assert mastered.verb("hurry").stdout == "nothing drains\n"
    mastered.answers("one")


# --- status -----------------------------------------------------------------------------------------------------


def test_a_masters_status_is_what_the_reference_says(mastered: Mastered) -> None:
    mastered.configure(bind=["http=127.0.0.1:0", f"local=unix:{mastered.directory}/s"], ready="delay:10ms")
    mastered.start()
    check("master", mastered.status())
    mastered.upgrade()
    check("master", mastered.status())
    mastered.configure(probation="30s", keep_old="1m")
    mastered.verb("upgrade", "--wait", "served")
    facts = mastered.status()
    check("master", facts)
    assert facts["state"] == "upgrading"
    assert facts["last_upgrade"]["step"] in ("settle", "probation")
    mastered.verb("upgrade", "--abort")
    check("master", mastered.status())


def test_a_programs_status_is_what_the_reference_says(app: App) -> None:
    answer = verb("status", str(app.path), "--json")
    check("Service", json.loads(answer.stdout))
    assert verb("upgrade", str(app.path)).returncode == 0
    facts = json.loads(verb("status", str(app.path), "--json").stdout)
    check("Service", facts)
    assert facts["generations"][0]["number"] == 2


def test_status_is_a_table_for_people(mastered: Mastered) -> None:
    mastered.start()
    mastered.upgrade()
    wait_for(lambda: mastered.generation(1)["state"] == "ended")
    text = mastered.verb("status").stdout
    rows = {line[:13].strip(): line[14:] for line in text.splitlines() if line[:13].strip(" 0123456789")}
    assert rows["state"] == "serving: generation 2"
    assert rows["master"].startswith(f"pid {mastered.running.pid}, version ")
    assert rows["listeners"].split() == ["name", "address", "switch", "waiting", "room"]
    assert re.search(r"\n +http +127\.0\.0\.1:\d+ +kernel +0 +\d+\n", text)
    assert re.search(r"\n +1 +ended +exit 0\n +2 +serving +\d+ +\d+s +\d+ +100%\n", text)
    assert rows["last upgrade"].startswith("generation 1 to 2: done, in ")
    assert rows["counters"] == "1 upgrades, 0 failed, 0 coalesced, 0 recycled"


def test_watch_appends_where_it_can_not_draw(mastered: Mastered, start: Start) -> None:
    mastered.start()
    watching = start("status", str(mastered.path), "--watch", "20ms")
    wait_for(lambda: watching.out.count("state         serving: generation 1") >= 2)
    assert "\x1b" not in watching.text()
    mastered.verb("stop", "--wait")
    watching.says("nobody answers at")
    watching.signal(signal.SIGINT)
    assert watching.ends() == 0


def test_watch_draws_over_itself_on_a_terminal(mastered: Mastered) -> None:
    mastered.start()
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", PACKAGE, "status", str(mastered.path), "--watch", "20ms"]
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, stdin=theirs, env=environment())
    os.close(theirs)
    seen = bytearray()
    try:
        while seen.count(b"\x1b[J") < 3:
            seen += os.read(ours, 65536)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        os.close(ours)
    first, second = bytes(seen).split(b"\x1b[J")[1:3]
    lines = first.count(b"\n")
    assert first.endswith(b"\x1b[%dF" % lines), "it goes back to its first line"
    assert b"serving: generation 1" in second


# --- a program that lives by Service ----------------------------------------------------------------------------


def test_a_service_is_stopped_from_outside(app: App) -> None:
    answer = verb("stop", str(app.path), "--wait")
    assert (answer.returncode, answer.stdout) == (0, "stopped\n")


def test_a_service_knows_no_dry_run_and_does_not_begin_one(app: App) -> None:
    for words in (["--dry-run"], ["--canary", QUICK]):
        answer = verb("upgrade", str(app.path), *words)
        assert answer.returncode == 1
        assert "replaces itself, and knows no" in answer.stderr
    facts = json.loads(verb("status", str(app.path), "--json").stdout)
    assert (facts["generation"], facts["last_upgrade"]) == (1, None)


def test_a_service_drains_and_is_hurried(app: App) -> None:
    assert verb("hurry", str(app.path)).stdout == "hurrying\n"
    answer = verb("drain", str(app.path), "--wait")
    assert (answer.returncode, answer.stdout) == (0, "drained, and ended\n")
