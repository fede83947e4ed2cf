"""TOML is read when it has changed, and in another process where this one stays."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.master import toml
from fdhandoff.master.config import read_file
from fdhandoff.master.toml import Reader, parse, parse_elsewhere

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11) and importlib.util.find_spec("tomli") is None, reason="needs tomli (it is optional)"
)

TEXT = b'command = ["a", "\xc3\xa9"]\nworkers = 3\nprobation = 1.50\n[env]\nA = "x"\nB = true\n'


def test_both_ways_read_the_same() -> None:
    assert parse("run.toml", TEXT) == parse_elsewhere("run.toml", TEXT)
    assert parse_elsewhere("run.toml", TEXT) == {
        "command": ["a", "é"], "workers": 3, "probation": "1.50", "env": {"A": "x", "B": True},
    }  # fmt: skip
    assert parse_elsewhere("run.toml", b"") == {}


@pytest.mark.parametrize("text", [b"grace = ", b"\xff = 1", b"a = 1\na = 2"])
def test_both_ways_say_what_is_wrong(text: bytes) -> None:
    said = []
    for way in (parse, parse_elsewhere):
        with pytest.raises(ValueError, match=r"^run\.toml is not TOML: ") as caught:
            way("run.toml", text)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("value", ["2026-01-02", "nan", "inf", "[[1]]"])
def test_what_no_option_takes_is_refused_both_ways(tmp_path: Path, value: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"grace = {value}\n")
    for way in (parse, parse_elsewhere):
        with pytest.raises(ValueError, match=r"run\.toml: grace: "):
            read_file(str(file), Reader(way))


def test_a_file_is_parsed_again_when_it_has_changed_and_only_then(tmp_path: Path) -> None:
    parsed: list[bytes] = []

    def counted(path: str, data: bytes) -> dict[str, Any]:
        parsed.append(data)
        return parse(path, data)

    file = tmp_path / "run.toml"
    file.write_bytes(TEXT)
    reader = Reader(counted, TEXT, {"known": 1})
    assert reader(str(file)) == {"known": 1}
    file.write_text("workers = 1")
    assert [reader(str(file)), reader(str(file))] == [{"workers": 1}] * 2
    file.write_text("workers = ")
    for _ in range(2):
        with pytest.raises(ValueError, match="is not TOML"):
            reader(str(file))
    assert parsed == [b"workers = 1", b"workers = ", b"workers = "]


def test_a_reader_that_fails_is_said_to_have(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toml, "_PROGRAM", "import sys; sys.exit(3)")
    with pytest.raises(ValueError, match=r"run\.toml could not be read: who should read it exited with status 3"):
        parse_elsewhere("run.toml", TEXT)


def test_a_reader_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toml, "_PROGRAM", "import time; time.sleep(1000)")
    monkeypatch.setattr(toml, "_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"run\.toml was not read within 0\.3 s"):
        parse_elsewhere("run.toml", TEXT)
