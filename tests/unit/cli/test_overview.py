"""A master's status as a table."""

from __future__ import annotations

from typing import Any

import pytest

from fdhandoff.cli.overview import age, overview

NOW = 1_000_000.0


def generation(number: int, state: str, **more: Any) -> dict[str, Any]:
    facts = {
        "number": number, "pids": [], "state": state, "since": NOW - 60, "active": 0, "accepted": None, "share": 0.0,
        "deadline": None, "exit": None,
    }  # fmt: skip
    return {**facts, **more}


def answer(**more: Any) -> dict[str, Any]:
    facts = {
        "service": "app", "path": "/run/app/handoff.sock", "state": "serving", "generation": 2,
        "master": {"pid": 7, "since": NOW - 90_000, "version": "1.2"},
        "listeners": [{"name": "http", "address": ":80", "switch": "kernel", "queue": None, "backlog": None}],
        "generations": [generation(2, "serving", pids=[8, 9], share=1.0, active=1234)],
        "last_upgrade": None,
        "counters": {"upgrades": 0},
    }  # fmt: skip
    return {**facts, **more}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3700, "1h1m"),
        (90_000, "1d1h"),
        (172_800, "2d"),
    ],
)
def test_an_age_has_two_units(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a_quiet_service_in_a_few_lines() -> None:
    assert overview(answer(), NOW) == (
        "service       app\n"
        "path          /run/app/handoff.sock\n"
        "master        pid 7, version 1.2, for 1d1h\n"
        "state         serving: generation 2\n"
        "listeners     name  address  switch  waiting  room\n"
        "              http  :80      kernel        -     -\n"
        "generations      state    pids  age  connected  share  until\n"
        "              2  serving  8, 9  1m        1234   100%\n"
        "last upgrade  none\n"
        "counters      0 upgrades\n"
    )


def test_what_drains_says_until_when_and_what_ended_how() -> None:
    text = overview(
        answer(
            generations=[
                generation(5, "serving", pids=[50], share=0.95),
                generation(6, "canary", pids=[60, 61, 62, 63, 64], share=0.05),
                generation(4, "draining", pids=[40], active=3, deadline=28.04),
                *(generation(number, "ended", exit={"status": None, "signal": 9}) for number in (1, 2)),
                generation(3, "ended", exit={"status": 1, "signal": None}),
                generation(0, "ended", exit={"status": None, "signal": None}),
            ]
        ),
        NOW,
    )
    table = text[text.index("generations") : text.index("last upgrade")].splitlines()[1:]
    assert [" ".join(line.split()) for line in table] == [
        "0 ended unseen",
        "2 ended signal 9",
        "3 ended exit 1",
        "4 draining 40 1m 3 0% 28s left",
        "5 serving 50 1m 0 95%",
        "6 canary 60, 61, 62, 63, … (5) 1m 0 5%",
    ], "the last three that ended, by number"


def test_a_failed_upgrade_says_why() -> None:
    last = {
        "result": "failed", "reason": "it exited with status 3", "step": "", "from": 1, "to": 2, "seconds": 0.5,
        "steps": [{"step": "start", "seconds": 0.01}, {"step": "ready", "seconds": 0.49}], "at": NOW - 60,
    }  # fmt: skip
    lines = overview(answer(last_upgrade=last), NOW).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("last upgrade"))
    assert lines[place].startswith("last upgrade  generation 1 to 2: failed, in 500ms, at ")
    assert lines[place].endswith(" (1m ago)")
    assert lines[place + 1].strip() == "it exited with status 3"
    assert lines[place + 2].strip() == "start 10ms, ready 490ms"


def test_one_that_is_under_way_says_where() -> None:
    last = {
        "result": "under way",
        "reason": "",
        "step": "ready",
        "from": 1,
        "to": 2,
        "seconds": 2.0,
        "steps": [],
        "at": None,
    }
    text = overview(answer(state="upgrading", last_upgrade=last), NOW)
    assert "state         upgrading: see the last upgrade below\n" in text
    assert "last upgrade  generation 1 to 2: under way, at ready, for 2s\n" in text
