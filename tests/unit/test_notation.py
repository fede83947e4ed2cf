"""JSON as ``json`` has it, and without what ``json`` imports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, strategies

from fdhandoff import notation

PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_it_writes_what_json_writes(value: Any) -> None:
    assert notation.dumps(value) == json.dumps(value, separators=(",", ":"))


@given(PLAIN, strategies.sampled_from([None, 1]))
def test_it_reads_what_json_reads(value: Any, indent: int | None) -> None:
    text = f" \t{json.dumps(value, indent=indent)}\r\n"
    assert notation.loads(text) == notation.loads(text.encode()) == value


@given(strategies.text(alphabet='{}[],:"\\ue0 1.-nN', max_size=12))
def test_what_is_malformed_for_json_is_refused(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=lambda name: pytest.skip(name))
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            notation.loads(text)
    else:
        assert notation.loads(text) == expected


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "", "[1] x", "[" * 100_000, b"\xff"])
def test_what_no_peer_may_send_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        notation.loads(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"", object(), {(1,): 2}])
def test_what_json_has_no_word_for_is_not_written(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        notation.dumps({"value": value})


def test_without_the_c_half_json_itself_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notation, "_scan", None)
    monkeypatch.setattr(notation, "_encode", None)
    assert notation.loads(notation.dumps({"a": [1, "é"]})) == {"a": [1, "é"]}
    with pytest.raises(ValueError, match="NaN is not JSON"):
        notation.loads("NaN")


def bare(program: str) -> str:
    """What ``program`` prints in an interpreter that has nothing else in it."""
    paths = [entry for entry in sys.path if entry]
    begin = f"import sys; sys.path += {paths!r}; from {notation.__name__} import dumps, loads"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{begin}\n{program}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_it_brings_no_regular_expressions() -> None:
    assert bare("loads(dumps({})); print({'json', 're', 'enum'} & {*sys.modules})") == "set()"


@pytest.mark.parametrize("text", ["", "{", '{"a": ', "[1, 2", "nonsense", '{"a" 1}', '"\\x"', "[1] x", "NaN"])
def test_what_is_malformed_is_a_value_error_also_where_nobody_has_loaded_json(text: str) -> None:
    assert bare(f"try: loads({text!r})\nexcept ValueError as error: print(f'it is {{error}}'[:5])") == "it is"
