"""Cost: what the import takes, in milliseconds beyond Python's own start, and what a ``Service`` adds, in KiB of memory.

Fresh processes, in turns with a bare interpreter. Memory is the proportional set size (PSS), as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys
import time

from .measure import Row, as_installed, take_turns

_PSS = """
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("Pss:"):
        print(line.split()[1])
"""
_EVERYTHING = "import fdhandoff; fdhandoff.Service; fdhandoff.Gate; fdhandoff.send; fdhandoff.receive"
_SERVICE = """
import fdhandoff
service = fdhandoff.Service("benchmark", path=None, signals={})
"""


def _run(code: str) -> str:
    # The first turn, which does not count, makes the bytecode.
    return subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=as_installed()
    ).stdout


def _milliseconds(code: str) -> float:
    before = time.perf_counter_ns()
    _run(code)
    return (time.perf_counter_ns() - before) / 1e6


def _kib(code: str) -> float:
    return float(_run(code + _PSS))


def run(turns: int) -> list[Row]:
    codes = {"bare": "pass", "import": "import fdhandoff", "all": _EVERYTHING, "asyncio": "import asyncio"}
    took = take_turns({name: lambda code=code: _milliseconds(code) for name, code in codes.items()}, turns * 2)  # type: ignore[misc]
    codes = {"bare": "pass", "needed": "import socket, threading", "service": _SERVICE}
    used = take_turns({name: lambda code=code: _kib(code) for name, code in codes.items()}, turns)  # type: ignore[misc]

    def beyond(samples: dict[str, list[float]], name: str, base: str = "bare") -> list[float]:
        return [ours - theirs for ours, theirs in zip(samples[name], samples[base], strict=True)]

    return [
        Row("Python's own start", took["bare"], "ms"),
        Row("import fdhandoff, beyond it", beyond(took, "import"), "ms", at_most=30),
        Row("all public names, beyond it", beyond(took, "all"), "ms", at_most=30),
        Row("import asyncio, beyond it", beyond(took, "asyncio"), "ms"),
        Row("Python's own memory", used["bare"], "KiB"),
        Row("a Service, beyond it", beyond(used, "service"), "KiB"),
        Row("a Service, beyond socket and threading", beyond(used, "service", "needed"), "KiB", at_most=2048),
    ]
