from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given, strategies as st

from fdhandoff.deadline import FOREVER, after, format_duration, parse_duration, passed, remaining


def test_a_duration_becomes_a_moment_that_far_away() -> None:
    before = time.monotonic_ns()
    moment = after(2.5)
    assert before + 2_500_000_000 <= moment <= time.monotonic_ns() + 2_500_000_000


def test_no_duration_is_forever() -> None:
    assert after(None) == FOREVER
    assert remaining(FOREVER) is None
    assert not passed(FOREVER)


@pytest.mark.parametrize("endless", [math.inf, 1e300, 10**400])
def test_a_duration_beyond_all_clocks_neither_overflows_nor_passes(endless: float) -> None:
    moment = after(endless)
    assert time.monotonic_ns() < moment <= FOREVER
    assert not passed(moment)


@pytest.mark.parametrize("senseless", [-1, -0.001, -math.inf, math.nan])
def test_a_negative_duration_is_refused(senseless: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"):
        after(senseless)


def test_zero_has_passed_at_once_and_nothing_remains() -> None:
    moment = after(0)
    assert passed(moment)
    assert remaining(moment) == 0


def test_what_remains_is_never_more_than_was_given() -> None:
    left = remaining(after(30))
    assert left is not None
    assert 29 < left <= 30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("2m", 120), ("1h", 3600), ("7", 7), ("0", 0), ("1.5s", 1.5), (" 3s ", 3), ("0.25", 0.25),
     ("2m5s", 125), ("1h30m", 5400), ("1s500ms", 1.5)],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


NONSENSE = "|s|-1|+1|1d|5s2m|1s1s|1 s|1S|1e3|1m30|.5s|5.|ten|1s\nx|nan|inf|٣s|³".split("|")


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_duration_is_refused_in_its_own_words(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.25, "250ms"), (0.0005, "0.5ms"), (1, "1s"), (1.5, "1.5s"), (10, "10s"), (59, "59s"), (60, "1m"),
     (125, "2m5s"), (59.96, "1m"),
     (0.99999, "1s"), (3600, "1h"), (3725, "1h2m5s"), (86400, "24h")],
)  # fmt: skip
def test_durations_are_shown_as_people_write_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e7))
def test_no_duration_is_shown_with_a_unit_that_is_full(seconds: float) -> None:
    units = {unit: float(count) for count, unit in re.findall(r"([0-9.]+)(ms|[hms])", format_duration(seconds))}
    assert units.get("ms", 0) < 1000
    assert units.get("s", 0) < 60
    assert units.get("m", 0) < 60


@given(st.floats(min_value=0, max_value=1e7))
def test_what_is_shown_can_be_typed_in_again(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.01, abs=0.001)


@pytest.mark.parametrize(
    "text", ["1.h", ".5s", "1..2s", "1ms1s", "1s1s", "1hh", "h", "1 s", "²s", "1m2m", "-1s", "1e3"]
)
def test_what_only_looks_like_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
