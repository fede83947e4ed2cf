"""Offering again and again, in a thread of its own, while the main thread looks after signals and the command."""

from __future__ import annotations

import threading
from collections import deque

from .. import registry
from ..deadline import after
from ..errors import (
    Aborted,
    DeadlineExceeded,
    HandoffError,
    InProgress,
    ListenerError,
    NotReady,
    PathError,
    PathInUse,
    SystemCallError,
    Unconfirmed,
)
from ..offer import send
from ..system.channel import wait
from ..system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..handoff import Handed
    from ..listener import Listener

# Nothing was begun, and the next attempt would end the same.
_FINAL = (PathError, ListenerError, InProgress, DeadlineExceeded)
# While a taker that got the service and hangs answers at the path, or descriptors are short: not at once again.
_LATER = (Unconfirmed, PathInUse, SystemCallError)
_PAUSE_SECONDS = 0.5


class Offers(threading.Thread):
    """Offers ``items`` at ``path`` with ``send``'s own options, until one taker has them (``keep_path``: for ever), or
    ``withdraw``. ``results`` holds what came of each: a ``Handed``, or the error; ``tell`` is called for each.
    """

    def __init__(self, path: str, items: Sequence[Listener], tell: Callable[[], object], **options: Any) -> None:
        super().__init__(name="fdhandoff-offers", daemon=True)
        self.path = path
        self.items = items
        self.results: deque[Handed | BaseException] = deque()
        self._tell = tell
        self._options = options
        self._wake = Wake()
        self._ended = False

    def run(self) -> None:
        last: object = None
        while True:
            result: Handed | BaseException
            try:
                result = send(self.path, self.items, wake_fd=self._wake.fileno(), **self._options)
            except BaseException as error:
                result = error
            if self._ended and isinstance(result, Aborted):
                return
            if not isinstance(result, _LATER) or type(result) is not type(last):
                self.results.append(result)
                self._tell()
            if self.is_last(result) or (isinstance(result, _LATER) and self._pause()):
                return
            last = result

    def is_last(self, result: Handed | BaseException) -> bool:
        """Whether nothing is offered any more after it. An error that is not the last is for the operator to read."""
        if isinstance(result, BaseException):
            return not isinstance(result, HandoffError) or (
                isinstance(result, _FINAL) and not isinstance(result, (*_LATER, NotReady))
            )
        return not self._options.get("keep_path")

    def _pause(self) -> bool:
        """Whether it is over."""
        try:
            wait((self._wake.fileno(),), (), after(_PAUSE_SECONDS))
        except DeadlineExceeded:
            return False
        return True

    def taking(self) -> bool:
        """Whether somebody is in the middle of taking, or has taken and is still on probation."""
        endpoint = registry.find(self.path)
        return self.is_alive() and (endpoint is None or endpoint.taker is not None)

    def withdraw(self) -> None:
        """Ends it: nobody is let in any more, and a handoff before its commit is aborted. Returns when it has ended."""
        self._ended = True
        self._wake.set()
        self.join()
        self._wake.close()
