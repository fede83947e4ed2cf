"""Jobs, one after the other, in a thread that is there while there are any: whoever owns a state lets only them change it."""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident, start_new_thread
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Worker:
    """``post`` may be called from any thread and from a signal handler: it waits for nothing. Where no thread can be started,
    it does the job itself."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._working = allocate_lock()  # held by the thread that does them
        self._ident = 0
        self._ended = False

    def post(self, job: Callable[[], None]) -> None:
        if self._ended:
            return
        self._jobs.append(job)
        if self._working.acquire(blocking=False):
            try:
                # Not one of ``threading``'s: a signal handler may have interrupted that module while it held its own lock.
                start_new_thread(self._run, ())
            except RuntimeError:
                self._run()  # no room for another thread, and a stop must be possible all the same

    def is_me(self) -> bool:
        return get_ident() == self._ident

    def end(self) -> None:
        """Returns once the jobs that were posted are done (at once, when a job calls it). Later ones are not."""
        self._ended = True
        if not self.is_me():
            self._working.acquire()
            self._work()

    def forget_in_child(self) -> None:
        """After fork, in the child, which has no such thread and begins none."""
        self._working.acquire(blocking=False)

    def _run(self) -> None:
        while True:
            self._work()
            self._working.release()
            # Whoever posted one before the release has left it to us.
            if not self._jobs or not self._working.acquire(blocking=False):
                return

    def _work(self) -> None:
        self._ident = get_ident()
        while self._jobs:
            try:
                self._jobs.popleft()()
            except BaseException:
                # A fault in one job, or its exit, must not make the owner deaf for the next: it is shown.
                sys.excepthook(*sys.exc_info())
        self._ident = 0
