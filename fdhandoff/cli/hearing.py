"""Signals for a verb that stays: they are written down and wake the loop, which acts on them in its own time."""

from __future__ import annotations

import signal

from ..system.signalpipe import SignalPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

#: What an operator, a terminal or a supervisor says to end a program.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

_NEVER = (
    "SIGKILL SIGSTOP SIGTSTP SIGCONT SIGCHLD SIGSEGV SIGBUS SIGFPE SIGILL SIGTRAP SIGABRT SIGSYS SIGPIPE SIGURG SIGXCPU "
    "SIGXFSZ SIGPROF SIGVTALRM SIGSTKFLT SIGEMT SIGINFO"
).split()


class Interrupted(BaseException):
    """A signal came while the program was in the middle of something that gives way to it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def forwardable() -> list[int]:
    """The signals that mean something to a program when a person or a supervisor sends them."""
    numbers = {int(number) for number in signal.valid_signals()}
    return sorted(numbers - {int(getattr(signal, name)) for name in _NEVER if hasattr(signal, name)})


class Hearing:
    """Installs handlers for ``numbers`` as a context manager; one that is ignored stays so. ``fileno()`` is readable while
    ``take`` has something to return. With ``interrupt`` set, a stop signal raises ``Interrupted`` instead, wherever the main
    thread is.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before: dict[int, object] = {}
        self._heard: list[int] = []
        self._pipe = SignalPipe()
        self.interrupt = False

    def __enter__(self) -> Hearing:
        self._pipe.install()
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._pipe.restore()
        self._pipe.close()

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.interrupt and number in STOPS:
            self.interrupt = False
            raise Interrupted(number)
        self._heard.append(number)

    def fileno(self) -> int:
        return self._pipe.fileno()

    def wake(self) -> None:
        """Makes ``fileno()`` readable, from any thread, for a reason of the caller's own."""
        self._pipe.set()

    def take(self) -> list[int]:
        """What came since the last call, in order."""
        self._pipe.take()
        heard, self._heard = self._heard, []
        return heard
