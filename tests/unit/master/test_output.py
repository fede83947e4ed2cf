"""The last lines of what somebody wrote, made fit to be shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fdhandoff.deadline import after
from fdhandoff.master.loop import Loop
from fdhandoff.master.options import Options
from fdhandoff.master.output import Output, end_all, readable
from fdhandoff.master.tasks import Task
from fdhandoff.system.relay import KEPT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LINES = {
    "nothing": (b"", []),
    "lines": (b"one\ntwo\n", ["one", "two"]),
    "no end": (b"one\ntwo", ["one", "two"]),
    "empty ones": (b"\none\n\ntwo\n\n\n", ["", "one", "", "two"]),
    "too many": (b"a\nb\nc\nd\ne\nf\ng\n", ["c", "d", "e", "f", "g"]),
    "letters": ("schön → 本\n".encode(), ["schön → 本"]),
    "no UTF-8": (b"caf\xe9 \xff\n", ["caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}"]),
    "colours": (b"\x1b[1;31mred\x1b[0m and \x1b[38:2::1:2:3mnew\n", ["red and new"]),
    "a title": (b"\x1b]0;owned\x07visible \x1b]8;;http://x\x1b\\link\n", ["visible link"]),
    "half a sequence": (b"cut \x1b[31", ["cut \N{REPLACEMENT CHARACTER}[31"]),
    "bells and backspaces": (b"a\x07b\x08c\x00d\x7f\n", ["a?b?c?d?".replace("?", "\N{REPLACEMENT CHARACTER}")]),
    "C1 and bidirectional": ("x\x9b31m\u202ey\n".encode(), ["x\N{REPLACEMENT CHARACTER}31m\N{REPLACEMENT CHARACTER}y"]),
    "progress": (b"10%\r50%\rdone\r\nnext\r\n", ["done", "next"]),
    "tabs": (b"\tx\n", ["        x"]),
}


@pytest.mark.parametrize(("raw", "lines"), LINES.values(), ids=LINES)
def test_lines_are_safe_to_be_shown(raw: bytes, lines: list[str]) -> None:
    assert readable(raw, 5) == lines
    assert all(line.isprintable() for line in readable(raw, 5))


def test_none_is_none() -> None:
    assert readable(b"one\n", 0) == []


def test_a_long_line_is_cut() -> None:
    (line,) = readable(b"x" * 3000 + b"\n", 5)
    assert line == "x" * 500 + "…"


def test_where_only_the_end_is_kept_the_first_line_is_not_half_shown() -> None:
    raw = b"".join(b"line %07d\n" % number for number in range(5000))[-KEPT:]
    lines = readable(raw, 1000)
    assert lines == [f"line {number:07d}" for number in range(4000, 5000)]
    every = readable(raw, 5000)
    assert len(every) == KEPT // 13
    assert len(every[0]) == 12


# --- with a relay ---------------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def run(loop: Loop, coroutine: Any) -> Any:
    task: Task[Any] = Task(loop, coroutine)
    task.when_done(loop.stop)
    loop.run()
    return task.result()


def output(loop: Loop, living: set[Output], said: list[str], **values: Any) -> Output:
    return Output(loop, 3, Options(["x"], **values), said.append, living)


def test_what_was_written_before_is_known(loop: Loop) -> None:
    living: set[Output] = set()
    said: list[str] = []
    one = output(loop, living, said, last_lines=2)
    fd = one.streams()[2]
    assert one.streams() == {1: 1, 2: fd}
    assert one.for_commands() == {1: fd, 2: fd}
    os.write(fd, b"first\nsecond\nthird\n")
    assert run(loop, one.last_lines()) == ["second", "third"]
    assert living == {one}
    end_all(living, 5.0)
    assert not living
    assert run(loop, one.last_lines()) == ["second", "third"]
    assert not said


def test_none_are_kept_where_none_are_wanted(loop: Loop) -> None:
    living: set[Output] = set()
    one = output(loop, living, [], last_lines=0)
    assert one.streams() == {1: 1, 2: 2}
    assert not living
    assert run(loop, one.last_lines()) is None
    one.finish()


def test_one_that_was_never_needed_said_nothing(loop: Loop) -> None:
    one = output(loop, set(), [], last_lines=5)
    one.finish()
    assert run(loop, one.last_lines()) == []
    assert one.streams() == {1: 1, 2: 2}


def test_a_dead_relay_is_followed_by_another(loop: Loop) -> None:
    living: set[Output] = set()
    said: list[str] = []
    one = output(loop, living, said, last_lines=5)
    fd = one.streams()[2]
    first = one.state()[0]["relay"]
    os.kill(first[0], 9)
    while not (found := one.state()[0]) or found["relay"] == first:
        loop.turn()
    os.write(fd, b"after\n")
    assert run(loop, one.last_lines()) == ["after"]
    assert "was killed by signal 9: the next one goes on" in said[0]
    end_all(living, 5.0)


def test_it_goes_on_in_the_master_that_follows(loop: Loop) -> None:
    living: set[Output] = set()
    one = output(loop, living, [], last_lines=5)
    os.write(one.streams()[2], b"before\n")
    found, fds = one.state()
    assert sorted(fds) == sorted([found["memory"], *found["readers"], *found["writers"]])
    process = one._process
    assert process is not None
    loop.forget(process.fileno())  # as if we had forgotten all but the state
    two = output(loop, living, [], last_lines=5)
    two.restore(found, process)
    assert run(loop, two.last_lines()) == ["before"]
    os.write(two.streams()[2], b"behind\n")
    assert run(loop, two.last_lines()) == ["before", "behind"]
    two.end(after(5.0))
    one._relay = one._process = None
    one.finish()
    living.discard(one)
    assert not living


def test_one_without_descriptors_left_gets_our_own(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def none_left() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    one = output(loop, set(), said, last_lines=5)
    assert one.streams() == {1: 1, 2: 2}
    assert said == ["generation 3 gets our own standard error, since there is no relay: [Errno 24] Too many open files"]
    assert run(loop, one.last_lines()) is None
