"""Signals as requests: which one means what, and when a second one is the same one again."""

from __future__ import annotations

import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
    """Installs handlers in the main thread (elsewhere none), each of which only passes ``(name, action)`` on."""

    def __init__(self, actions: Mapping[str, str], deliver: Callable[[str, str], None]) -> None:
        for name, action in actions.items():
            if not hasattr(signal, name) or action not in (UPGRADE, STOP, HOOKS):
                raise ValueError(
                    f"signals maps names such as SIGHUP to upgrade, stop or hooks, not {name!r} to {action!r}"
                )
        self._deliver = deliver
        self._actions = {int(getattr(signal, name)): (name, action) for name, action in actions.items()}
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        if _in_main_thread():
            for number in self._actions:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Gives back what was there before, unless somebody changed it since."""
        if not _in_main_thread():
            return
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def forget_in_child(self) -> None:
        """After fork, in the child: a worker's signals are its own business."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        self._before = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._deliver(*self._actions[number])


def _in_main_thread() -> bool:
    import threading  # late: a master has no other thread

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
