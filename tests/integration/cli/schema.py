"""The tables of docs/reference/status.md, and whether an answer is what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "status.md"

_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "object": (dict,),
    "list": (list,),
    "null": (type(None),),
}


def tables() -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Heading → key → type and who tells it."""
    found: dict[str, dict[str, tuple[str, list[str]]]] = {}
    heading = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        row = re.fullmatch(r"\| `(\w+)` \| ([a-z ]+) \| ([A-Za-z, ]+) \| .*", line)
        if row and row[2] != "all":
            found.setdefault(heading, {})[row[1]] = (row[2], row[3].split(", "))
    return found


def check(who: str, answer: dict[str, Any]) -> None:
    """Raises when ``answer`` has a key that is not documented, lacks one that is, or has one of another type."""
    known = tables()
    _object(who, answer, known["The answer"], "the answer")
    if answer["master"] is not None:
        _object(who, answer["master"], known["master"], "master")
    for one in answer["listeners"]:
        _object(who, one, known["listeners"], "a listener")
    for one in answer["generations"]:
        _object(who, one, known["generations"], "a generation")
        if one["exit"] is not None:
            assert set(one["exit"]) == {"status", "signal"}
    if answer["last_upgrade"] is not None:
        _object(who, answer["last_upgrade"], known["last_upgrade"], "last_upgrade")
        for step in answer["last_upgrade"].get("steps", ()):
            assert isinstance(step["step"], str)
            assert isinstance(step["seconds"], float)
    if answer.get("releases") is not None:
        _object(who, answer["releases"], known["releases"], "releases")
    _object(who, answer["counters"], known[f"counters of a {who}"], "counters")


def _object(who: str, value: dict[str, Any], table: dict[str, tuple[str, list[str]]], what: str) -> None:
    expected = {key for key, (_, tellers) in table.items() if who in tellers or "all" in tellers}
    assert set(value) >= expected, f"{what} lacks {expected - set(value)}"
    assert set(value) <= set(table), f"{what} has {set(value) - set(table)}, which the reference does not know"
    for key, item in value.items():
        types = tuple(kind for word in table[key][0].split(" or ") for kind in _TYPES[word])
        assert isinstance(item, types), f"{what}: {key} is {item!r}, not {table[key][0]}"
        assert bool in types or not isinstance(item, bool), f"{what}: {key} is a truth value"
