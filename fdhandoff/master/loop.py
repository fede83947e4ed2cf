"""The master's one event loop: descriptors, timers, and what other threads and signal handlers want done. Idle means asleep."""

from __future__ import annotations

import itertools
import selectors
import time
from collections import deque

from ..system.signalpipe import SignalPipe
from ..system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: epoll counts milliseconds, and refuses those of a month.
_DAY = 86400.0


class Timer:
    """Something to happen at a moment (monotonic seconds); ``cancel`` it as often as you like."""

    __slots__ = ("_what", "moment")

    def __init__(self, moment: float, what: Callable[[], object]) -> None:
        self.moment = moment
        self._what: Callable[[], object] | None = what

    def cancel(self) -> None:
        self._what = None

    @property
    def pending(self) -> bool:
        return self._what is not None

    def fire(self) -> None:
        what, self._what = self._what, None
        if what is not None:
            what()


class Loop:
    """Everything is called in the thread that runs it; only ``call`` may come from elsewhere."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = Wake()
        self._calls: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False
        self._signals: SignalPipe | None = None
        # Processes that somebody waits for, and that are not to be reaped as orphans.
        self.waited: set[int] = set()
        self._selector.register(self._wake.fileno(), selectors.EVENT_READ, self._wake.clear)

    def call(self, what: Callable[[], object]) -> None:
        """Has ``what`` called soon, from any thread or signal handler."""
        self._calls.append(what)
        self._wake.set()

    def heed_signals(self) -> None:
        """In the main thread: a signal whose handler says ``call`` ends the wait, also where it came just before that began."""
        self._signals = SignalPipe()
        self._signals.install()
        self._selector.register(self._signals.fileno(), selectors.EVENT_READ, self._signals.take)

    def on_readable(self, fd: int, what: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, what)

    def forget(self, fd: int) -> None:
        if fd in (self._selector.get_map() or ()):  # nothing, once it was closed under a coroutine that ends later
            self._selector.unregister(fd)

    def after(self, seconds: float, what: Callable[[], object]) -> Timer:
        timer = Timer(time.monotonic() + max(0.0, seconds), what)
        # A handful, nearly in order already: to sort them costs less than the module that would keep a heap.
        self._timers.append((timer.moment, next(self._order), timer))
        self._timers.sort()
        return timer

    def run(self) -> None:
        """Until ``stop``."""
        self._running = True
        while self._running:
            self.turn()

    def turn(self) -> None:
        """One round: waits for the next thing to happen, and does it."""
        for key, _ in self._selector.select(self._patience()):
            # Something earlier in this round may have forgotten it.
            if key.fd in self._selector.get_map():
                key.data()
        self.catch_up()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self._timers.pop(0)[2].fire()

    def catch_up(self) -> None:
        """Does what ``call`` was told."""
        while self._calls:
            self._calls.popleft()()

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._selector.close()
        self._wake.close()
        if self._signals is not None:
            self._signals.restore()
            self._signals.close()

    def _patience(self) -> float | None:
        while self._timers and not self._timers[0][2].pending:
            self._timers.pop(0)
        if self._calls:
            return 0.0
        return min(_DAY, max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else None
