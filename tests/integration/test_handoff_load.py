"""A hundred handoffs between unrelated processes under load: no request fails, and each is answered by who was allowed to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.cast import ROOT, Actor
from tests.support.load import Load

HANDOFFS = 100


class Generations:
    """The servers, one after the other, and when each of them owned the listener."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.running: list[Actor] = []
        self.windows: dict[int, tuple[float, float]] = {}
        self.served: dict[int, int] = {}

    def start(self, *arguments: str) -> Actor:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.fixtures.httpd", self.path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        actor = Actor(process)
        self.running.append(actor)
        return actor

    def has_handed_over(self, actor: Actor, began: float) -> None:
        told = actor.hears("handed")
        self.windows[told["generation"]] = (began, told["ended"])

    def has_drained(self, actor: Actor) -> None:
        told = actor.hears("drained")
        self.served[told["generation"]] = told["requests"]
        assert actor.ended() == 0
        assert actor.process.stderr is not None
        assert actor.process.stderr.read() == b""
        actor.close()
        self.running.remove(actor)


@pytest.fixture
def generations(tmp_path: Path) -> Iterator[Generations]:
    found = Generations(str(tmp_path / "h.sock"))
    yield found
    for actor in found.running:
        actor.kill()
        actor.close()


def test_a_hundred_handoffs_under_load_fail_no_request(generations: Generations) -> None:
    current = generations.start("0")
    serving = current.hears("serving")
    load = Load(serving["port"]).start()
    try:
        for _ in range(HANDOFFS):
            successor = generations.start()
            successor_serves = successor.hears("serving")
            generations.has_handed_over(current, serving["began"])
            while len(generations.running) > 3:  # the older ones drain meanwhile
                generations.has_drained(generations.running[0])
            current, serving = successor, successor_serves
    finally:
        load.stop()
    for actor in generations.running[:-1]:
        generations.has_drained(actor)
    generations.windows[serving["generation"]] = (serving["began"], float("inf"))

    assert load.failures == []
    windows = [generations.windows[number] for number in range(1, HANDOFFS + 2)]
    for (_, ended), (began, _) in pairwise(windows):
        assert ended <= began  # never two owners
    for answer in load.answers:
        began, ended = generations.windows[answer.generation]
        assert began <= answer.accepted <= ended, f"{answer} was accepted outside of {began} to {ended}"
        assert answer.begun <= answer.accepted <= answer.ended
    kinds = Counter(answer.kind for answer in load.answers)
    assert set(kinds) == set(load.kinds)
    assert len({answer.generation for answer in load.answers}) > HANDOFFS * 0.9
    # Some straddled: begun with one owner, answered when another one had begun.
    straddling = Counter(
        answer.kind for answer in load.answers if answer.ended > generations.windows[answer.generation][1]
    )
    assert {"slow", "silent", "kept"} <= set(straddling), straddling
    # As many answers as the servers gave: none was made up, none was lost on the way.
    by_generation = Counter(answer.generation for answer in load.answers)
    assert all(by_generation[number] == count for number, count in generations.served.items())
    assert os.path.exists(generations.path)
