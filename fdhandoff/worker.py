"""One thread that does jobs, one after the other: whoever owns a state lets only it change that state."""

from __future__ import annotations

import sys
import threading
from collections import deque

from .deadline import FOREVER
from .system.channel import wait
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Worker:
    """``post`` may be called from any thread and from a signal handler."""

    def __init__(self, name: str) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._mail = Wake()
        self._ending = False
        self._ended_itself = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._wake()

    def _wake(self) -> None:
        try:
            self._mail.set()
        except OSError:
            pass  # it has ended

    def is_me(self) -> bool:
        return threading.current_thread() is self._thread

    def end(self) -> None:
        """Returns once the jobs that were posted are done (at once, when a job calls it)."""
        if self.is_me():
            self._ending = self._ended_itself = True
            return
        if not self._ended_itself:
            self._ending = True
            self._wake()
        self._thread.join()
        self._mail.close()

    def forget_in_child(self) -> None:
        """After fork, in the child, which has no such thread."""
        self._mail.close()

    def _run(self) -> None:
        while not self._ending or self._jobs:
            wait((self._mail.fileno(),), (), FOREVER)
            self._mail.clear()
            self._work()
        if self._ended_itself:  # else who waits for us does it: its word may still be on its way
            self._mail.close()

    def _work(self) -> None:
        while self._jobs:
            try:
                self._jobs.popleft()()
            except Exception:
                # A fault in one job must not make the owner deaf for the next: it is shown.
                sys.excepthook(*sys.exc_info())
