"""The old side of a service's handover, in one process with a taker in a thread: order, outcome, and what is undone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import fdhandoff
from fdhandoff import Service, errors
from fdhandoff.service import DRAINING, SERVING

from .system import finish, python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAKE = """
import sys, {package}
takeover = {package}.receive(sys.argv[1], timeout=10)
print("taken", takeover.state.decode(), flush=True)
sys.stdin.readline()
takeover.ready()
print("ready", takeover.state.decode(), flush=True)
sys.stdin.readline()
"""

GIVE_BACK = """
import sys, {package}
takeover = {package}.receive(sys.argv[1], timeout=10)
takeover.ready()
print("ready", flush=True)
sys.stdin.readline()
print(takeover.give_back("a test"), takeover.listeners[0].fileno() >= 0)
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    lines: list[str] = []
    with Service("test", path=tmp_path / "h.sock", probation=5, ready_timeout=10, log=lines.append) as made:
        made.listen("http", "127.0.0.1:0")
        made.seen = []  # type: ignore[attr-defined]
        made.lines = lines  # type: ignore[attr-defined]
        for when in ("before", "after"):
            for step in ("offer", "commit", "rollback", "upgrade"):
                if (when, step) != ("before", "rollback"):
                    getattr(made, when)(step, lambda word=f"{when} {step}": made.seen.append(word))  # type: ignore[attr-defined]
        made.ready()
        yield made


def taker(service: Service) -> Any:
    process = python(TAKE, str(service.path))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("taken")
    return process


def step(process: Any) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    line: str = process.stdout.readline()
    return line.strip()


def wait_for(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never happened")


def test_a_stranger_gets_the_state_made_at_the_commit(service: Service) -> None:
    service.on_state(lambda: b"closed" if service.gate.closed else b"open")
    process = taker(service)
    assert not service.gate.closed
    assert step(process) == "ready closed"
    assert service.gate.closed
    wait_for(lambda: service.state_word == "probation")  # once it has heard that the new one serves
    assert service.wait(0) == "", "nobody is told to end before probation is over"
    service.stop()
    assert service.wait(10) == "handed over"
    assert service.state_word == DRAINING
    assert not service.owner
    assert service.seen == ["before offer", "after offer", "before commit", "after commit"]  # type: ignore[attr-defined]
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def test_a_death_in_probation_brings_the_service_back(service: Service) -> None:
    process = taker(service)
    step(process)
    process.kill()
    process.communicate()
    wait_for(lambda: service.state_word == SERVING)
    assert service.owner
    assert not service.gate.closed
    wait_for(lambda: service.seen[-1] == "after rollback")  # type: ignore[attr-defined]
    status = fdhandoff.ask(str(service.path), "status")
    assert status["last_upgrade"]["result"] == "rolled back"
    process = taker(service)  # and the next one may come
    process.kill()
    process.communicate()


def test_a_death_before_ready_changes_nothing(service: Service) -> None:
    process = taker(service)
    with pytest.raises(errors.InProgress):
        fdhandoff.receive(str(service.path), timeout=5)
    with pytest.raises(errors.InProgress):
        service.upgrade()
    process.kill()
    process.communicate()
    wait_for(lambda: service.state_word == SERVING)
    assert service.upgrader.last is not None
    assert service.upgrader.last["result"] == "failed"


def test_a_stop_aborts_a_strangers_takeover(service: Service) -> None:
    process = taker(service)
    service.stop()
    assert service.wait(10) == "stop"
    process.stdin.write("\n")
    process.stdin.flush()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 1
    assert output == ""


def test_a_service_that_nobody_takes_back_stays(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given back at the very moment at which the old side's probation ends."""
    process = python(GIVE_BACK, str(service.path))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    service.stop()  # ends probation
    assert service.wait(10) == "handed over"
    service.close()
    process.stdin.write("\n")  # type: ignore[union-attr]
    assert finish(process) == "False True\n"


def test_whoever_took_it_has_everything(service: Service) -> None:
    process = taker(service)
    assert step(process) == "ready"
    service.stop()
    assert service.wait(10) == "handed over"
    process.stdin.write("\n")
    assert finish(process) == ""
