"""How all benchmarks measure: the ways that are compared take turns, medians count, and ratios are taken turn by turn, so
that what else the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import atexit
import functools
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
C_PROGRAMS = Path(__file__).resolve().parent / "c"


class Row:
    """One way, measured: ``samples`` in ``unit``; the claim is about its ratio to ``against``, or its median."""

    def __init__(
        self,
        name: str,
        samples: Sequence[float],
        unit: str,
        *,
        against: Row | None = None,
        inverse: bool = False,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        self.name = name
        self.samples = list(samples)
        self.unit = unit
        self.against = against
        self.inverse = inverse  # "so many times as fast as" instead of "so many times as long as"
        self.at_most = at_most
        self.at_least = at_least

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self._ratios()) if self.against is not None else None

    @property
    def doubt(self) -> float:
        """The standard error of the ratio, were its turns distributed normally; 0 where one turn can't say."""
        ratios = self._ratios()
        return math.sqrt(math.pi / 2 / len(ratios)) * statistics.stdev(ratios) if len(ratios) > 1 else 0.0

    def _ratios(self) -> list[float]:
        if self.against is None:
            return []
        pairs = zip(self.samples, self.against.samples, strict=False)
        return [theirs / ours if self.inverse else ours / theirs for ours, theirs in pairs]

    @property
    def claim(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def holds(self) -> bool | None:
        """Whether what is claimed was measured; ``None`` without a claim."""
        value = self.median if self.against is None else self.ratio
        assert value is not None
        if self.at_most is not None:
            return value <= self.at_most
        return value >= self.at_least if self.at_least is not None else None

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "least": min(self.samples),
            "most": max(self.samples),
            "runs": len(self.samples),
            "ratio": self.ratio,
            "doubt": self.doubt,
            "against": self.against.name if self.against else None,
            "as_fast_as": self.inverse,
            "claim": self.claim,
            "holds": self.holds,
        }


def take_turns(ways: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """``turns`` times one measurement of each way, after one that does not count."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            sample = way()
            if turn:
                samples[name].append(sample)
    return samples


@functools.cache
def _cache() -> str:
    folder = tempfile.mkdtemp(prefix="fdhandoff-bench-")
    atexit.register(shutil.rmtree, folder)
    return folder


def as_installed() -> dict[str, str]:
    """The environment of a program that is run as if it were installed: its bytecode is there once it has run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": _cache()}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def quantile(samples: Sequence[float], share: float) -> float:
    """The least of the samples that no more than ``1 - share`` of them exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


_built: dict[str, str] = {}


def c_program(name: str) -> str:
    """The path of ``c/NAME.c``, compiled with the C core beside it."""
    if name not in _built:
        folder = tempfile.mkdtemp(prefix="fdhandoff-bench-")
        atexit.register(shutil.rmtree, folder)
        _built[name] = os.path.join(folder, name)
        command = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-pthread", "-D_GNU_SOURCE", f"-I{ROOT / 'src'}"]
        subprocess.run(
            [*command, str(C_PROGRAMS / f"{name}.c"), str(ROOT / "src" / "fdhandoff.c"), "-o", _built[name]], check=True
        )
    return _built[name]


def run_c(name: str, *arguments: object) -> dict[str, list[float]]:
    """What the C program printed: lines of a name and a number, many of each."""
    output = subprocess.run(
        [c_program(name), *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    samples: dict[str, list[float]] = {}
    for line in output.splitlines():
        key, value = line.split()
        samples.setdefault(key, []).append(float(value))
    return samples


def in_child(work: Callable[[], object]) -> int:
    """A forked child that does ``work`` and ends; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return pid


def join(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a benchmark's child ended with status {os.waitstatus_to_exitcode(status)}")
