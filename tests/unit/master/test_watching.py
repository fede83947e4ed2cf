"""When a watched source is looked at and moved to, and in which order its releases are remembered: by a clock of the test's
own, whose hands on the wall can be set."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.master import watching
from fdhandoff.master.loop import Timer
from fdhandoff.master.options import Options, Window
from fdhandoff.master.tasks import Future, Task
from fdhandoff.master.watching import LIVE, SERVED, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY = 86400.0


class Clock:
    """What ``watching`` knows as ``time``: ``monotonic`` goes on, and ``set`` moves the other."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.offset = 1.79e9

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.offset

    def localtime(self) -> time.struct_time:
        return time.gmtime(self.time())

    def set(self, seconds: float) -> None:
        """The hands, forwards or back."""
        self.offset += seconds


class Loop:
    """As the master's, but that time passes at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[Callable[[], object]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def call(self, what: Callable[[], object]) -> None:
        self._calls.append(what)

    def after(self, seconds: float, what: Callable[[], object]) -> Timer:
        timer = Timer(self._clock.now + max(0.0, seconds), what)
        self._timers.append((timer.moment, next(self._order), timer))
        return timer

    def pass_by(self, seconds: float) -> None:
        until = self._clock.now + seconds
        while True:
            while self._calls:
                self._calls.pop(0)()
            self._timers = sorted(one for one in self._timers if one[2].pending)
            if not self._timers or self._timers[0][0] > until:
                break
            self._clock.now = self._timers[0][0]
            self._timers.pop(0)[2].fire()
        self._clock.now = until


class Run:
    def __init__(self, options: Options) -> None:
        self.options = options


class Master:
    """What a watcher wants of one. ``upgrades``: when it was asked for each."""

    def __init__(self, clock: Clock, options: Options) -> None:
        self.options = options
        self.loop = Loop(clock)
        self.state = "serving"
        self.current: Run | None = None
        self.runs: list[Run] = []
        self.said: list[str] = []
        self.say = self.said.append
        self.busy = ""
        self.upgrades: list[float] = []
        self.tasks: list[Task[Any]] = []
        self.watcher: Watcher
        self._clock = clock

    def refusal(self) -> str:
        return self.busy

    def spawn(self, coroutine: Any) -> Task[Any]:
        self.tasks.append(Task(self.loop, coroutine))  # type: ignore[arg-type]
        return self.tasks[-1]

    def upgrade(self, *, asked: str, to: watching.Release) -> Future[None]:
        self.upgrades.append(self._clock.now)
        self.serves(to.tag)
        done: Future[None] = Future()
        done.set(None)
        return done

    def serves(self, tag: str) -> None:
        self.current = Run(self.watcher.pinned(self.options, self.watcher.named(tag)))
        self.runs = [self.current]
        self.watcher._serves(self.watcher.named(tag))


class Scene:
    """A service of release one. ``shows``: what the source has; ``looks``: when it was looked at."""

    def __init__(self, folder: Path, clock: Clock, **options: Any) -> None:
        self.folder = folder
        self.clock = clock
        self.options = Options(
            ["{release}"], watch="strange:x", releases=str(folder), name="x", **{"every": 30.0, **options}
        )
        self.master = Master(clock, self.options)
        self.shows = "one"
        self.broken = ""
        self.looks: list[float] = []
        self.begin()

    def begin(self) -> None:
        """The watcher of a master that has just started."""
        self.watcher = self.master.watcher = Watcher(self.master)  # type: ignore[arg-type]
        self.watcher._ask = self._answer  # type: ignore[method-assign]

    async def _answer(self) -> dict[str, Any]:
        self.looks.append(self.clock.now)
        if self.broken:
            return {"error": self.broken}
        place = self.folder / self.shows
        place.touch()
        return {
            "result": "found", "identity": self.shows, "tag": self.shows, "place": str(place), "state": {}, "quiet": []
        }  # fmt: skip

    def live(self) -> Scene:
        """Release one serves, and the source is looked at from now on."""
        look = self.master.spawn(self.watcher._look())
        self.master.loop.pass_by(0)
        look.result()
        self.master.serves("one")
        self.looks.clear()
        assert self.master.current is not None
        self.watcher.serve(self.master.current)  # type: ignore[arg-type]
        return self

    def times(self) -> list[float]:
        return [moment - self.looks[0] for moment in self.looks]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watching, "time", clock)
    return clock


@pytest.fixture
def scene(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(**options: Any) -> Scene:
        made.append(Scene(tmp_path, clock, **options))
        return made[-1]

    yield make
    for one in made:
        for task in one.master.tasks:
            task.cancel()
        one.master.loop.pass_by(0)


# --- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [0.0, DAY, -DAY, 400 * DAY])
def test_looks_follow_each_other_whatever_the_clock_on_the_wall_does(scene: Callable[..., Scene], jump: float) -> None:
    it = scene().live()
    it.master.loop.pass_by(45)
    it.clock.set(jump)
    it.master.loop.pass_by(60)
    assert it.times() == [0, 30, 60, 90]


@pytest.mark.parametrize("random", [0, 1, 2**31, 2**32 - 1])
def test_each_look_is_later_by_a_part_of_the_jitter_and_never_by_more(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, random: int
) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: random.to_bytes(size, "big"))
    late = 10 * random / 2**32
    it = scene(jitter=10.0)
    began = it.clock.now
    it.live().master.loop.pass_by(85)
    moments = (late + turn * (30 + late) for turn in range(9))
    assert it.looks == pytest.approx([began + moment for moment in moments if moment <= 85])


def test_a_source_that_fails_is_asked_later_and_later_and_after_a_success_as_before(
    scene: Callable[..., Scene],
) -> None:
    it = scene().live()
    it.broken = "no answer"
    it.master.loop.pass_by(3000)
    assert it.times() == [0, 60, 180, 420, 900, 1500, 2100, 2700]
    it.broken = ""
    it.master.loop.pass_by(365)
    assert it.times()[8:] == [3300, 3330, 3360]


def test_a_window_that_opens_between_two_rare_looks_is_not_missed(scene: Callable[..., Scene]) -> None:
    it = scene(every=DAY, window=Window("02:00-02:30")).live()
    it.master.loop.pass_by(0)
    it.clock.set(-(it.clock.time() % DAY) + 12 * 3600)  # noon
    it.shows = "two"
    looked = it.watcher.look_now()
    it.master.loop.pass_by(1)
    assert looked.done
    assert "the maintenance window (02:00-02:30) is closed" in it.watcher.waits
    it.master.loop.pass_by(14 * 3600 - 10)
    assert it.master.upgrades == []
    it.master.loop.pass_by(20)
    assert len(it.master.upgrades) == 1
    assert it.watcher.waits == ""
    assert len(it.looks) == 2, "the source is not asked for that"


@pytest.mark.parametrize("jump", [6 * 3600.0, -18 * 3600.0])
def test_a_clock_that_is_set_into_the_window_opens_it(scene: Callable[..., Scene], jump: float) -> None:
    it = scene(every=DAY, window=Window("02:00-04:00")).live()
    it.clock.set(-(it.clock.time() % DAY) + 21 * 3600)
    it.shows = "two"
    it.master.loop.pass_by(0)
    it.watcher.look_now()
    it.master.loop.pass_by(60)
    assert it.master.upgrades == []
    it.clock.set(jump)
    it.master.loop.pass_by(10)
    assert len(it.master.upgrades) == 1


def test_a_release_that_waited_for_another_upgrade_is_not_kept_waiting_for_the_next_look(
    scene: Callable[..., Scene],
) -> None:
    it = scene(every=3600.0).live()
    it.master.loop.pass_by(0)
    it.master.busy, it.shows = "an upgrade is under way", "two"
    it.watcher.look_now()
    it.master.loop.pass_by(30)
    assert it.watcher.waits == "an upgrade is under way"
    assert sum("and waits" in line for line in it.master.said) == 1
    it.master.busy = ""
    it.master.loop.pass_by(10)
    assert len(it.master.upgrades) == 1


# --- what is remembered -------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_does_not_change_what_served_last(scene: Callable[..., Scene]) -> None:
    it = scene().live()
    it.master.loop.pass_by(100)
    for name in ("two", "three"):
        it.clock.set(-DAY)
        it.shows = name
        it.master.loop.pass_by(100)
    assert [one.fate for one in it.watcher.releases] == [SERVED, SERVED, LIVE]
    assert it.watcher.before().tag == "two"
    it.begin()  # of another master
    assert [one.tag for one in it.watcher.releases] == ["one", "two", "three"]
    last_good = it.watcher._last_good()
    assert last_good is not None
    assert last_good.tag == "three"
    assert it.watcher.releases[1].turn > it.watcher.releases[0].turn
    assert it.watcher.releases[1].at < it.watcher.releases[0].at, "it is told when it was, by the clock there was"


def test_a_history_of_before_there_were_turns_is_read(scene: Callable[..., Scene]) -> None:
    it = scene().live()
    history = it.folder / watching.HISTORY
    text = history.read_text()
    assert '"turn"' in text
    history.write_text(text.replace('"turn"', '"unknown"'))
    it.begin()
    assert [(one.tag, one.turn) for one in it.watcher.releases] == [("one", 0)]


def test_what_runs_what_serves_and_what_served_last_is_never_forgotten(scene: Callable[..., Scene]) -> None:
    it = scene(keep_releases=1).live()
    draining = it.master.current
    assert draining is not None
    for name in ("two", "three", "four"):
        it.shows = name
        it.master.loop.pass_by(30)
        it.master.runs.append(draining)
    it.watcher._forget()
    assert {one.tag: one.fate for one in it.watcher.releases} == {"one": SERVED, "three": SERVED, "four": LIVE}
    it.master.runs.remove(draining)
    it.watcher._forget()
    assert {one.tag: one.fate for one in it.watcher.releases} == {"three": SERVED, "four": LIVE}
    assert it.watcher._question()["keep"] == ["four", "three"]
    it.master.runs.append(draining)
    assert it.watcher._question()["keep"] == ["four", "one", "three"], "whatever is remembered"
