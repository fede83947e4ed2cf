"""How words become options, how ends become exit codes, and how a status becomes lines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from fdhandoff import cli, errors
from fdhandoff.cli import command, hearing
from fdhandoff.cli.hearing import Hearing, Interrupted
from fdhandoff.cli.outcome import Failure, UsageError, code_of, guarded
from fdhandoff.cli.readiness import Readiness, parse_ready
from fdhandoff.cli.status import describe
from fdhandoff.cli.watching import watch
from fdhandoff.deadline import after
from fdhandoff.system.channel import wait
from fdhandoff.system.process import Exit
from tests.support.signalled import by_another_thread

PACKAGE = cli.__name__.rpartition(".")[0]


def test_what_is_watched_is_looked_at_ten_times_a_second_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    looks: list[float] = []

    def look() -> str:
        looks.append(time.monotonic())
        if len(looks) == 3:
            raise KeyboardInterrupt
        return "as it is"

    assert watch(look, 0) == 0
    assert looks[-1] - looks[0] >= 0.2
    assert capsys.readouterr().out == "as it is\nas it is\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", ("auto", 0)), ("notify", ("notify", 0)), ("accept", ("accept", 0)), ("delay:1500ms", ("delay", 1.5))],
)
def test_ways_of_being_ready(text: str, expected: tuple[str, float]) -> None:
    assert parse_ready(text) == expected


@pytest.mark.parametrize("text", ["", "delay", "delay:", "delay:soon", "notify:1s", "http:/", "AUTO"])
def test_what_is_no_way_of_being_ready(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no kind of readiness|is not a duration"):
        parse_ready(text)


@pytest.mark.parametrize("text", ["TERM", "term", "SIGTERM", "15"])
def test_signals_by_name_and_number(text: str) -> None:
    assert command.parse_signal(text) == signal.SIGTERM


@pytest.mark.parametrize("text", ["", "0", "-15", "999", "BANG", "SIG", "SIGSIGTERM"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(ValueError, match="is no signal"):
        command.parse_signal(text)


def test_descriptors_by_name_in_arguments() -> None:
    assert command.fill(["a{fd:x}b{fd:y}", "{fd:x}", "{}", "{fd}"], ["x", "y", "x"]) == ["a3b4", "3", "{}", "{fd}"]
    with pytest.raises(Failure, match="names no listener") as caught:
        command.fill(["{fd:}"], ["x"])
    assert caught.value.code == 125


@pytest.mark.parametrize(
    ("ended", "code"), [(Exit(status=0), 0), (Exit(status=7), 7), (Exit(signal=9), 137), (Exit(), 125)]
)
def test_the_status_that_is_passed_on(ended: Exit, code: int) -> None:
    assert command.code_of(ended) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PeerRefused("no", code="x"), 1),
        (errors.InProgress("no"), 1),
        (errors.DeadlineExceeded("late"), 1),
        (errors.PathInUse("taken", path="x"), 1),
        (errors.PathError("bad", path="x"), 3),
        (errors.PathError("absent", path="x", serving="nobody"), 4),
        (errors.SystemCallError("bind", 13), 3),
        (errors.Unsupported("old"), 3),
        (errors.EnvironmentInvalid("odd"), 3),
    ],
)
def test_exit_codes_say_who_serves(error: errors.HandoffError, code: int) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("say more"), 2, "say more"),
        (Failure("no luck", 125), 125, "no luck"),
        (KeyboardInterrupt(), 130, "x was interrupted"),
        (errors.PeerGone("it died"), 1, "it died"),
        (PermissionError(13, "no", "file"), 3, "file: no"),
    ],
)
def test_every_end_is_one_sentence(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert guarded("x", work) == code
    assert capsys.readouterr().err == f"fdhandoff-cli: {sentence}\n"


def test_a_fault_of_the_program_is_not_hidden() -> None:
    def work() -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        guarded("x", work)


def test_signals_are_heard_in_order_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Hearing([signal.SIGUSR1, signal.SIGTERM]) as heard:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.take() == [signal.SIGUSR1, signal.SIGTERM]
        assert heard.take() == []
        heard.interrupt = True
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_that_another_thread_got_is_heard_by_who_waits() -> None:
    with Hearing([signal.SIGUSR1]) as heard:
        by_another_thread(signal.SIGUSR1)
        wait((heard.fileno(),), (), after(20))
        assert heard.take() == [signal.SIGUSR1]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Hearing([signal.SIGHUP]) as heard:
            os.kill(os.getpid(), signal.SIGHUP)
            assert heard.take() == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_signals_that_mean_something_are_passed_on() -> None:
    numbers = hearing.forwardable()
    assert {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, *hearing.STOPS} <= set(numbers)
    assert not {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGPIPE} & set(numbers)


def test_ready_is_said_by_an_allowed_user_and_status_passed_on() -> None:
    said: list[str] = []
    readiness = Readiness("notify", 0.0, {}, said.append)
    try:
        readiness.begin()
        assert not readiness.check(os.getpid())
        assert readiness.why_not() == "did not say READY=1"
        assert readiness.address is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + readiness.address[1:])
            sock.send(b"STATUS=warming up\nREADY=0")
            assert not readiness.check(os.getpid())
            sock.send(b"READY=1")
        assert readiness.check(os.getpid())
        assert (readiness.by, readiness.assumed, said) == ("notify", False, ["warming up"])
    finally:
        readiness.close()


FULL: dict[str, Any] = {
    "schema": 1, "path": "/run/x", "pid": 2**22 + 5, "uid": 7, "since": 1000.0, "state": "handing over", "taker": 9,
    "generation": 4, "listeners": [{"name": "a", "address": ":1", "queue": 3, "backlog": 8},
                                   {"name": "b", "address": "unix:/x", "queue": None, "backlog": None}],
    "command": {"pid": 12, "argv": ["srv", "-x"], "ready": "accept"},
    "draining": [{"generation": 3, "pid": 2**22 + 6}],
    "last_upgrade": {"result": "failed", "reason": "it died", "from": 4, "to": 5, "at": 1900.0},
}  # fmt: skip


def test_a_status_in_words() -> None:
    text = describe(FULL, 2000.0)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[1].startswith("owner         pid 4194309, uid 7, since ")
    assert lines[1].endswith("(16m40s ago)")
    assert lines[2:] == [
        "state         handing over at this moment to pid 9",
        "generation    4",
        "command       pid 12: srv -x (ready by accept)",
        "listeners     a  :1  3 waiting, room for 8",
        "              b  unix:/x",
        "draining      generation 3, pid 4194310",
        "last upgrade  generation 4 to 5: failed, 1m40s ago: it died",
    ]


def test_a_status_of_an_owner_that_tells_little_or_new_things() -> None:
    text = describe({"schema": 1, "pid": 0, "state": "levitating", "news": {"a": 1}}, 2000.0)
    assert "owner         a process that can't be seen from here\n" in text
    assert "state         levitating\n" in text
    assert "listeners     none\n" in text


def test_only_the_verb_that_runs_is_imported() -> None:
    code = (
        f"import sys; from {PACKAGE}.cli import main; main(['status', '/nowhere/at/all']);"
        "print([name for name in sys.modules if name.rpartition('.')[2] in "
        "('take', 'hold', 'doctor', 'handoff', 'offer', 'service', 'asyncio', 'dataclasses', 'inspect')])"
    )
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"
