"""Gate: one enter and one leave.

From C beside a bare pair of atomic additions with a look at the state after each, which is what a gate cannot do without.
From Python beside a ``threading.Lock`` and a number, which is how it is usually done; at its best (inline, in one function)
and as an object with two methods."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from fdhandoff import Gate

from .measure import Row, run_c, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

_PAIRS = 100_000


class Locked:
    """A gate as one writes it with a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.closed = False

    def enter(self) -> bool:
        with self.lock:
            if self.closed:
                return False
            self.inside += 1
            return True

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        before = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - before) / _PAIRS

    return measure


def run(turns: int) -> list[Row]:
    c = run_c("gate", turns, 1_000_000)
    rows = []
    for threads, word in ((1, "one thread"), (2, "two threads")):
        bare = Row(f"C: bare pair of atomics, {word}", c[f"atomics-{threads}"], "ns")
        rows += [
            bare,
            Row(f"C: enter and leave, {word}", c[f"gate-{threads}"], "ns", against=bare, at_most=1.2),
            Row(f"C: mutex and number, {word}", c[f"mutex-{threads}"], "ns", against=bare),
        ]

    gate, locked = Gate(), Locked()
    lock, inside = threading.Lock(), 0

    def methods() -> None:
        for _ in range(_PAIRS):
            gate.enter()
            gate.leave()

    def block() -> None:
        for _ in range(_PAIRS):
            with gate:
                pass

    def lock_inline() -> None:
        nonlocal inside
        for _ in range(_PAIRS):
            with lock:
                inside += 1
            with lock:
                inside -= 1

    def lock_methods() -> None:
        for _ in range(_PAIRS):
            locked.enter()
            locked.leave()

    def lock_block() -> None:
        for _ in range(_PAIRS):
            with lock:
                pass

    ways = {"inline": lock_inline, "object": lock_methods, "with lock": lock_block, "gate": methods, "with": block}
    samples = take_turns({name: _timed(way) for name, way in ways.items()}, turns)
    gate.release()
    inline = Row("Python: Lock and int, inline", samples["inline"], "ns")
    return [
        *rows,
        inline,
        Row("Python: enter and leave", samples["gate"], "ns", against=inline, at_most=0.6),
        Row("Python: with gate", samples["with"], "ns", against=inline),
        Row("Python: Lock and int, an object's methods", samples["object"], "ns", against=inline),
        Row("Python: with lock, nothing counted", samples["with lock"], "ns", against=inline),
    ]
