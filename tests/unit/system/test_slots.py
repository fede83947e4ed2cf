"""Places that the kernel holds: no more than there are, over all who share a file, and back when their holder is gone."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from fdhandoff.errors import SystemCallError
from fdhandoff.system.slots import Slots

if TYPE_CHECKING:
    from pathlib import Path


def test_two_who_share_a_file_share_its_places(tmp_path: Path) -> None:
    first, second = Slots(tmp_path / "jobs", 2), Slots(tmp_path / "jobs", 2)
    assert [first.acquire(), second.acquire()] == [0, 1]
    assert first.acquire() == second.acquire() == -1
    first.release(0)
    assert second.acquire() == 0
    second.close()
    assert [first.acquire(), first.acquire()] == [0, 1]
    first.close()
    assert first.acquire() == -1
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o600


def test_a_place_that_one_does_not_have_can_not_be_given_back(tmp_path: Path) -> None:
    first, second = Slots(tmp_path / "jobs", 1), Slots(tmp_path / "jobs", 1)
    slot = first.acquire()
    second.release(slot)
    assert second.acquire() == -1
    first.close()
    second.close()


def test_where_the_numbers_differ_the_higher_one_holds_for_both(tmp_path: Path) -> None:
    old, new = Slots(tmp_path / "jobs", 3), Slots(tmp_path / "jobs", 1)
    assert [old.acquire() for _ in range(3)] == [0, 1, 2]
    assert new.acquire() == -1
    old.close()
    assert new.acquire() == 0
    new.close()


def test_a_forked_child_has_no_places_and_keeps_none(tmp_path: Path) -> None:
    slots, other = Slots(tmp_path / "jobs", 1), Slots(tmp_path / "jobs", 1)
    assert slots.acquire() == 0
    told, tell = os.pipe()
    over, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end)
        slots.close_in_child()
        os.write(tell, b"%d" % (slots.acquire() == -1))
        os.read(over, 1)  # the child lives on
        os._exit(0)
    os.close(over)
    assert os.read(told, 1) == b"1"
    assert other.acquire() == -1  # what the child closed was not the parent's
    slots.close()
    assert other.acquire() == 0
    for fd in (told, tell, end):
        os.close(fd)
    os.waitpid(pid, 0)
    other.close()


def test_without_a_file_the_places_are_its_own() -> None:
    slots = Slots(None, 1)
    assert [slots.acquire(), slots.acquire()] == [0, -1]
    slots.release(0)
    assert slots.acquire() == 0
    slots.close()


def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemCallError, match="which counts jobs"):
        Slots(tmp_path / "jobs", 1)
    assert not (tmp_path / "elsewhere").exists()
