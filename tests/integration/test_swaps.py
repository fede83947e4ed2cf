"""The command that counts what clients lose: it sees all of them, and what a server does to them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
