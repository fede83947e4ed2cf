from __future__ import annotations

import pytest

from fdhandoff.generation import Generation


def test_a_recycled_pid_is_not_the_same_generation() -> None:
    assert Generation(2, 100, 5000) != Generation(2, 100, 9000)


def test_the_same_number_pid_and_start_are_the_same_generation() -> None:
    assert Generation(2, 100, 5000) == Generation(2, 100, 5000)
    assert len({Generation(2, 100, 5000), Generation(2, 100, 5000), Generation(3, 100, 5000)}) == 2


@pytest.mark.parametrize("number", [0, -1])
def test_generations_are_numbered_from_one(number: int) -> None:
    with pytest.raises(ValueError, match="from 1"):
        Generation(number, 100)


def test_a_generation_is_called_by_number_and_pid() -> None:
    assert str(Generation(3, 4711)) == "generation 3 (pid 4711)"


def test_a_process_that_we_can_t_see_is_called_by_its_number_alone() -> None:
    assert str(Generation(3, 0)) == "generation 3"


def test_what_it_is_shows_in_its_repr() -> None:
    assert repr(Generation(3, 4711, 12)) == "Generation(number=3, pid=4711, started=12)"


def test_a_generation_differs_from_anything_else() -> None:
    assert Generation(1, 2) != (1, 2, 0)
