"""The handoff's own options, of all adapters: on their command lines, and as keywords."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from fdhandoff.adapting import HELP, PREFIX, named, settings, split, taken
from fdhandoff.service import Service

EVERYTHING: dict[str, Any] = {
    "handoff_name": "shop", "handoff_path": "/run/x.sock", "handoff_probation": 0.5, "handoff_health": ":9000",
    "handoff_health_file": "/run/ready", "handoff_pre_stop_delay": 60.0,
}  # fmt: skip


def test_the_command_line_and_the_keywords_say_the_same_and_the_rest_is_the_servers() -> None:
    words = [
        "--handoff-name=shop",
        "app:app",
        "--handoff-path",
        "/run/x.sock",
        "--handoff-probation",
        "500ms",
        "--port",
        "1",
    ]
    words += ["--handoff-health", ":9000", "--handoff-health-file=/run/ready", "--handoff-pre-stop-delay", "1m"]
    ours, rest = split([*words, "--", "--handoff-name"])
    assert ours == EVERYTHING
    assert rest == ["app:app", "--port", "1", "--", "--handoff-name"]
    keywords = {**EVERYTHING, "port": 1}
    assert taken(keywords) == EVERYTHING
    assert keywords == {"port": 1}


def test_a_service_knows_all_of_them() -> None:
    found = settings(EVERYTHING, "other")
    assert {f"handoff_{name}": value for name, value in found.items()} == EVERYTHING
    assert set(found) <= set(inspect.signature(Service).parameters)
    assert settings({}, "other") == settings({"handoff_name": ""}, "other") == {"name": "other"}
    assert named({"handoff_name": "", "handoff_health": ":1"}, "a") == {"handoff_name": "a", "handoff_health": ":1"}


def test_the_help_names_each() -> None:
    for keyword in EVERYTHING:
        assert f"{PREFIX}{keyword.removeprefix('handoff_').replace('_', '-')} " in HELP


def test_what_there_is_not_is_told() -> None:
    for words in (["--handoff-what", "x"], ["--handoff-health_file", "x"]):
        with pytest.raises(
            ValueError, match=r"there is no option --handoff-.*: there are --handoff-name, .*-health-file"
        ):
            split(words)
    with pytest.raises(ValueError, match="--handoff-name wants a value"):
        split(["--handoff-name"])
    with pytest.raises(ValueError, match="'soon'"):
        split(["--handoff-pre-stop-delay", "soon"])
    with pytest.raises(TypeError, match=r"there is no keyword 'handoff_helth' here: .*handoff_health,"):
        settings({"handoff_helth": ":9000"}, "x")
