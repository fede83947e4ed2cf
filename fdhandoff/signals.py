"""Signals as requests: which one means what, and when a second one is the same one again."""

from __future__ import annotations

import signal
import time

from .deadline import FOREVER
from .system.channel import wait
from .system.signalpipe import SignalPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Thread
    from types import FrameType
    from typing import Any

UPGRADE = "upgrade"
STOP = "stop"
HOOKS = "hooks"

DEFAULT: Mapping[str, str] = {
    "SIGHUP": UPGRADE,
    "SIGUSR2": UPGRADE,
    "SIGTERM": STOP,
    "SIGINT": STOP,
    "SIGQUIT": STOP,
    "SIGUSR1": HOOKS,
}

# A second stop signal sooner than this is the same request, delivered to the process and to its group.
SAME_SECONDS = 1.0


class Signals:
    """Installs handlers in the main thread (elsewhere none), and passes ``(name, action)`` on for each signal, in a thread of
    its own: the main thread may be about to wait for something else, and would not come to it before that has happened.

    While they are installed the process's wakeup descriptor (``signal.set_wakeup_fd``) is theirs. An event loop that takes it
    away is woken by it; then the handler passes the signal on.
    """

    def __init__(self, actions: Mapping[str, str], deliver: Callable[[str, str], None]) -> None:
        for name, action in actions.items():
            if not hasattr(signal, name) or action not in (UPGRADE, STOP, HOOKS):
                raise ValueError(
                    f"signals maps names such as SIGHUP to upgrade, stop or hooks, not {name!r} to {action!r}"
                )
        self._deliver = deliver
        self._actions = {int(getattr(signal, name)): (name, action) for name, action in actions.items()}
        self._before: dict[int, Any] = {}
        self._pipe: SignalPipe | None = None
        self._thread: Thread | None = None

    def install(self) -> None:
        if not self._actions or not _in_main_thread():
            return
        self._pipe = SignalPipe()
        self._pipe.install()
        self._start(self._pipe)
        for number in self._actions:
            self._before[number] = signal.signal(number, self._handle)

    def hold(self) -> int:
        """After the main thread has blocked them: what comes to any other one waits, for ``heed`` or for the program that this
        process becomes. Returns what that must be given, as ``SignalPipe.raise_again`` has it; -1 for nothing."""
        if self._pipe is None or self._thread is None or not _in_main_thread():
            return -1
        self._pipe.in_place()  # an event loop that had the place has ended
        self._pipe.set()
        self._thread.join()
        self._thread = None
        return self._pipe.bequeath()

    def heed(self) -> None:
        """After ``hold``."""
        if self._pipe is not None and self._thread is None:
            self._pipe.bequeath(False)
            self._start(self._pipe)

    def restore(self) -> None:
        """Gives back what was there before, unless somebody changed it since. What came until then has been passed on."""
        if self._pipe is None or not _in_main_thread():
            return
        pipe, self._pipe = self._pipe, None
        pipe.restore()
        pipe.set()
        if self._thread is not None:
            self._thread.join()
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
        pipe.close()

    def forget_in_child(self) -> None:
        """After fork, in the child: a worker's signals are its own business."""
        if self._pipe is not None:
            self._pipe.restore()
            self._pipe.close()
            self._pipe = None
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        self._before = {}

    def _start(self, pipe: SignalPipe) -> None:
        import threading  # late: a master has no other thread

        self._thread = threading.Thread(target=self._listen, args=(pipe,), name="fdhandoff-signals", daemon=True)
        self._thread.start()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._pipe is None or not self._pipe.in_place():
            self._deliver(*self._actions[number])

    def _listen(self, pipe: SignalPipe) -> None:
        while True:
            wait((pipe.fileno(),), (), FOREVER)
            for number in pipe.take():
                if not number:
                    return
                # Somebody else's handler may be there by now, and the signal is for that.
                if number in self._actions and signal.getsignal(number) == self._handle:
                    self._deliver(*self._actions[number])


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


class StopRequests:
    """Tells the first request to stop from one that repeats it and from one that wants it over."""

    FIRST, SAME, HURRY = "first", "same", "hurry"

    def __init__(self) -> None:
        self._asked = 0.0

    def judge(self, *, by_signal: bool) -> str:
        now = time.monotonic()
        if not self._asked:
            self._asked = now
            return self.FIRST
        return self.SAME if by_signal and now - self._asked < SAME_SECONDS else self.HURRY

    @property
    def pending(self) -> bool:
        return bool(self._asked)

    def forget(self) -> None:
        """The first one was vetoed: the next is a first one again."""
        self._asked = 0.0
