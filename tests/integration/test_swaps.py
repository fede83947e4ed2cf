"""The command that counts what clients lose: it sees all of them, and what a server does to them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import needs, needs_that

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not part of this copy")

KINDS = {"one-shot", "busy", "idle", "slow", "big", "post", "silent", "half"}


def swapped(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "swaps", *words, "--json", "--wrk-swaps", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    assert len(found["swaps"]) == 1, done.stderr
    return dict(found["swaps"][0])


def test_a_server_that_dies_at_once_is_seen_to_lose_requests() -> None:
    """Python's own, which has threads that end with it, by a plain descriptor."""
    found = swapped("http.server", "--way", "plain", "--swaps", "4")
    assert found["swaps"] == 4
    assert set(found["answers"]) == KINDS
    lost = sum(count for how in found["failures"].values() for count in how.values())
    assert lost >= 1, "whoever had sent half a request to it, or waited for a slow answer"
    assert found["reconnects"] >= 8, "nobody's connection outlives it"


def test_with_the_adapter_it_loses_none_and_nobody_connects_again() -> None:
    found = swapped("http.server", "--way", "adapter", "--swaps", "2")
    assert set(found["answers"]) == KINDS
    assert (found["failures"], found["reconnects"]) == ({}, 0)


def test_each_kind_of_trouble_is_told_as_it_was_on_the_wire(tmp_path: Path) -> None:
    needs("strace")
    needs_that(os.geteuid() == 0, "root")
    found = swapped("http.server", "--way", "plain", "--swaps", "2", "--traces", str(tmp_path))
    told = {path.stem for path in tmp_path.iterdir()}
    lost = {f"{kind}: {how}" for kind, failures in found["failures"].items() for how in failures}
    assert {re.sub(r"[^a-z0-9]+", "-", f"http.server plain {one}".lower()) for one in lost} <= told
    story = (tmp_path / "http-server-plain-silent-closed-while-it-was-silent.txt").read_text()
    assert re.search(r"→ SYN(?s:.*)SIGTERM for generation \d(?s:.*)← FIN", story), story


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    row = {"server": "http.server", "way": "adapter", "swaps": 3, "answers": {"busy": 7}, "failures": {}, "killed": 0}
    rows.write_text(json.dumps(row) + "\n")
    assert swapped("http.server", "--way", "adapter", "--swaps", "3", "--rows", str(rows)) == row
    assert rows.read_text() == json.dumps(row) + "\n"
