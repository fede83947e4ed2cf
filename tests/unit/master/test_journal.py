"""The journal is written whole or not at all, and what makes no sense in one is said in words."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.errors import HandoffError
from fdhandoff.master import journal
from fdhandoff.master.shape import fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATE: dict[str, Any] = {
    "pid": 4711,
    "number": 3,
    "current": 3,
    "since": 1.5,
    "slots": 5,
    "upgrades": 2,
    "failures": 0,
    "coalesced": 1,
    "more_workers": -1,
    "last_upgrade": {
        "result": "done", "reason": "", "step": "", "from": 2, "to": 3, "seconds": 1.0,
        "steps": [{"step": "start", "seconds": 0.1}], "at": None,
    },
    "history": [{"number": 1, "pids": [], "state": "ended", "since": 1.0}],
    "outlets": [
        {"mode": "kernel", "name": "http", "text": "", "address": "127.0.0.1:80", "cookies": {"0": 7, "1": 8}},
        {"mode": "rename", "name": "local", "text": "unix:/s", "address": "unix:/s", "cookies": {"0": 9}},
    ],
    "runs": [
        {
            "number": 3, "slot": 1, "state": "serving", "since": 2.0, "command": ["server"],
            "processes": [[4712, 99]], "workers": 1, "leaving": [], "deadline": None,
            "options": {
                "directory": "", "conventions": [], "drain_signal": "SIGQUIT", "grace": None, "kill_after": 10.0,
                "pre_stop_delay": 0.0, "settle": 1.0,
            },
        }
    ],
}  # fmt: skip
#: What came later: a journal of an earlier release does not have it.
OPTIONAL = {
    ("coalesced",), ("more_workers",), ("last_upgrade", "step"), ("last_upgrade", "steps"), ("last_upgrade", "at"),
    ("runs", 0, "workers"), ("runs", 0, "leaving"), ("runs", 0, "deadline"), ("runs", 0, "options"),
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a state: keys and positions from its top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(path: tuple[Any, ...], value: Any = None, *, gone: bool = False) -> dict[str, Any]:
    state = copy.deepcopy({"schema": journal.SCHEMA, **STATE})
    at: Any = state
    for key in path[:-1]:
        at = at[key]
    if gone:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return state


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """A disk that has room for so many bytes of a file: the first write is short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal.write(path, STATE)
    assert journal.read(path) == {"schema": journal.SCHEMA, **STATE}
    assert os.stat(path).st_mode & 0o777 == 0o600
    journal.remove(path)
    assert journal.read(path) is None


def test_a_full_disk_leaves_the_journal_that_there_was(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal.write(path, STATE)
    with files_end_at(100), pytest.raises(OSError, match="too large") as raised:
        journal.write(path, {**STATE, "number": 4})
    assert raised.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["journal"]
    assert journal.read(path) == {"schema": journal.SCHEMA, **STATE}


@pytest.mark.parametrize("value", [True, -1, "wat", None, [[]], {"a": 1}, 1e400, 2**70], ids=repr)
def test_whatever_stands_anywhere_is_believed_or_named(value: Any) -> None:
    for path in places(STATE):
        wrong = fault(changed(path, value), journal.SCHEMA)
        assert not wrong or str(path[0]) in wrong


def test_what_is_missing_is_named_unless_it_came_later() -> None:
    for path in places(STATE):
        if not isinstance(path[-1], int) and not path[-1].isdigit():  # a list may be shorter
            wrong = fault(changed(path, gone=True), journal.SCHEMA)
            assert bool(wrong) == (path not in OPTIONAL), path
            assert not wrong or wrong.endswith(f"{path[-1]} is missing")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("slots",), 0, "slots is 0"),
        (("slots",), 10**9, "slots is 1000000000"),
        (("runs", 0, "slot"), 5, "runs[0].slot is 5"),
        (("runs", 0, "state"), "asleep", "runs[0].state is 'asleep'"),
        (("runs", 0, "command"), [], "runs[0].command is []"),
        (("runs", 0, "processes", 0), [1], "runs[0].processes is [[1]]"),
        (("runs", 0, "processes", 0, 0), 0, "runs[0].processes is [[0, 99]]"),
        (("runs", 0, "options", "drain_signal"), "SIGWAT", "runs[0].options is"),
        (("runs", 0, "options", "grace"), -1, "runs[0].options is"),
        (("outlets", 0, "mode"), "magic", "outlets[0].mode is 'magic'"),
        (("outlets", 0, "address"), "nowhere", "outlets[0].address is 'nowhere'"),
        (("outlets", 0, "cookies"), {"x": 1}, "outlets[0].cookies has the key 'x'"),
        (("schema",), 2, "it has the schema 2, and this release knows 1"),
    ],
)
def test_what_can_not_be_is_named(path: tuple[Any, ...], value: Any, said: str) -> None:
    assert said in fault(changed(path, value), journal.SCHEMA)


def test_two_generations_of_one_number_are_none() -> None:
    state = changed(("pid",), 1)
    state["runs"] *= 2
    assert fault(state, journal.SCHEMA) == "runs[0].number is 3"


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1', "[]", "null", "{}", "\x00"])
def test_a_part_of_a_journal_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    (tmp_path / "journal").chmod(0o600)
    with pytest.raises(ValueError, match="it is"):
        journal.read(str(tmp_path / "journal"))


def test_only_a_journal_of_ours_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps({"schema": journal.SCHEMA, **STATE}))
    path.chmod(0o622)
    with pytest.raises(HandoffError, match="can be written by others"):
        journal.read(str(path))
    path.rename(tmp_path / "real")
    path.symlink_to("real")
    with pytest.raises(HandoffError, match="can't be read"):
        journal.read(str(path))
