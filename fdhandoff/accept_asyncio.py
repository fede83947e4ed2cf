"""The counted accept loop in an asyncio event loop. Imported when it is first used."""

from __future__ import annotations

import asyncio
import os

from .accept import LOOK, Pause
from .system.native import FDH_CLOSED, FDH_FULL, FDH_PAUSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .accept import AcceptLoop, Acceptor

_tasks: set[asyncio.Task[None]] = set()  # the event loop itself refers to them weakly


class Run:
    """One ``run_async``: accepts from its making on, until ``ended`` is done. Everything happens in the loop's callbacks."""

    def __init__(self, accept_loop: AcceptLoop) -> None:
        self._accept_loop = accept_loop
        self._loop = asyncio.get_running_loop()
        self._pause = Pause(accept_loop)
        self._acceptors = accept_loop.acceptors(0.0)
        self._timer: asyncio.TimerHandle | None = None
        # Duplicates: an event loop has one callback for one descriptor, and several of us may watch the gate's.
        gate = accept_loop.gate
        self._closed, self._room = os.dup(gate.closed_fileno()), os.dup(gate.room_fileno())
        self._stop = os.dup(accept_loop.stop_fileno())
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.ended.add_done_callback(self._clean_up)
        self._loop.add_reader(self._closed, self._end)
        self._loop.add_reader(self._stop, self._end)
        self._listen()

    def _listen(self) -> None:
        for acceptor in self._acceptors:
            self._loop.add_reader(acceptor.fd, self._accept, acceptor)

    def _rest(self) -> None:
        for acceptor in self._acceptors:
            self._loop.remove_reader(acceptor.fd)

    def _accept(self, acceptor: Acceptor) -> None:
        if self.ended.done():
            return
        try:
            results = self._accept_loop.accept(acceptor)
        except Exception as error:
            self._end(error)
            return
        for result in results:
            if asyncio.iscoroutine(result):
                self._start(result)
        if acceptor.condition == FDH_CLOSED:
            self._end()
        elif acceptor.condition == FDH_PAUSE:
            self._rest()
            self._later(self._pause.longer(), self._listen)
        else:
            self._pause.over()
            if acceptor.condition == FDH_FULL:
                self._rest()
                self._await_room()

    def _await_room(self) -> None:
        """Listens again once there is room; also looks now and then for processes that died inside."""
        self._loop.remove_reader(self._room)
        if self._accept_loop.gate.want_room():
            self._later(0, self._listen)
        else:
            self._loop.add_reader(self._room, self._await_room)
            self._later(LOOK, self._look)

    def _look(self) -> None:
        self._accept_loop.gate.settle()
        self._await_room()

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        _tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "the handler of a connection failed", "exception": error, "task": task}
            )

    def _end(self, error: Exception | None = None) -> None:
        if self.ended.done():
            return
        if error is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)
        self._rest()

    def _clean_up(self, _: object) -> None:
        """Also when whoever awaited us was cancelled."""
        self._rest()
        if self._timer is not None:
            self._timer.cancel()
        for fd in (self._closed, self._room, self._stop):
            self._loop.remove_reader(fd)
            os.close(fd)
