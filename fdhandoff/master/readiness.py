"""Whether a new generation can serve: asked in the way that the operator chose, before any user is sent to it."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import threading
import time

from ..deadline import after, parse_duration
from ..errors import HandoffError, NotReady, SuccessorDied
from ..system.notify import NotifyListener
from ..system.process import Process, spawn
from .run import split_command
from .tasks import Future, first, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop import Loop
    from .outlets import Outlet
    from .run import Run

_LOOK_SECONDS = 0.005
_LOOK_LAST = 0.05
# An HTTP probe that is not answered in this time is tried again, until the deadline.
_ANSWER_SECONDS = 5.0


class Probe:
    """One connection to a generation through the real port: nobody but it is sent there."""

    def __init__(self, loop: Loop, outlet: Outlet, slot: int) -> None:
        self._loop = loop
        self._outlet = outlet
        self._slot = slot
        self._sock = outlet.connect_to(slot)

    def close(self) -> None:
        self._sock.close()
        self._outlet.end_probe()

    def accepted(self) -> bool:
        """Whether the connection has left the generation's queue: somebody accepted it."""
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
        try:
            self._sock.getpeername()
        except OSError:
            return False  # not connected yet
        return self._outlet.waiting(self._slot) == 0

    def get(self, path: str, seconds: float) -> Future[int]:
        """Asks ``path`` by HTTP/1.1: the status, or ``OSError`` (a timeout is one), or ``HTTPException`` for what is none. In
        a thread, since the library blocks; the probe must not be closed before the answer."""
        answer: Future[int] = Future()

        def ask() -> None:
            connection = http.client.HTTPConnection(self._outlet.host, timeout=seconds)
            self._sock.settimeout(seconds)
            connection.sock = self._sock
            try:
                connection.request("GET", path, headers={"User-Agent": "fdhandoff", "Connection": "close"})
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                failure = error
                self._loop.call(lambda: answer.fail(failure))
            else:
                self._loop.call(lambda: answer.set(status))

        threading.Thread(target=ask, name="fdhandoff-probe", daemon=True).start()
        return answer


async def await_ready(loop: Loop, run: Run, outlets: list[Outlet], listener: NotifyListener | None) -> str:
    """Returns how the generation showed that it is ready; ``NotReady``, ``SuccessorDied`` with the reason."""
    kind, argument = run.options.ready.kind, run.options.ready.argument
    began = time.monotonic()
    deadline = began + run.options.ready_timeout
    last = ""

    def check() -> None:
        if run.died.done:
            raise SuccessorDied(f"{run} is not ready: {run.died.result()} before it was", serving="old")
        if time.monotonic() > deadline:
            raise NotReady(
                f"{run} did not become ready ({run.options.ready}) within {run.options.ready_timeout:g} s"
                + (f": {last}" if last else ""),
                serving="old",
            )

    if kind == "delay":
        until = min(began + parse_duration(argument), deadline)
        while time.monotonic() < until:
            check()
            await first(sleep(loop, until - time.monotonic()), run.died)
        check()
        return "assumed after a delay"
    if kind == "notify":
        assert listener is not None
        return await _notified(loop, run, listener, check)
    if kind == "command":
        while True:
            check()
            last = await _command_says(loop, argument, run)
            if not last:
                return "the command says so"
            await sleep(loop, 0.1)
    outlet = next((outlet for outlet in outlets if outlet.probed), None)
    if outlet is None:
        raise NotReady(f"{kind} needs a TCP listener to probe; use --ready notify, command or delay", serving="old")
    while True:
        check()
        try:
            last = await (
                _accepts(loop, run, outlet, check) if kind == "accept" else _answers(loop, run, outlet, argument)
            )
        except (OSError, http.client.HTTPException) as error:
            last = str(error) or type(error).__name__
        if not last:
            return "accepts connections" if kind == "accept" else f"answers {argument}"
        await sleep(loop, 0.05)


async def _accepts(loop: Loop, run: Run, outlet: Outlet, check: Callable[[], None]) -> str:
    probe = Probe(loop, outlet, run.slot)
    pause = _LOOK_SECONDS
    try:
        while not probe.accepted():
            check()
            await first(sleep(loop, pause), run.died)
            pause = min(pause * 1.5, _LOOK_LAST)
    finally:
        probe.close()
    return ""


async def _answers(loop: Loop, run: Run, outlet: Outlet, path: str) -> str:
    probe = Probe(loop, outlet, run.slot)
    try:
        status = await probe.get(path, _ANSWER_SECONDS)
    except TimeoutError:
        return f"{path} was not answered within {_ANSWER_SECONDS:g} s"
    finally:
        probe.close()
    return "" if 200 <= status < 400 else f"{path} answered {status}"


async def _notified(loop: Loop, run: Run, listener: NotifyListener, check: Callable[[], None]) -> str:
    said: Future[str] = Future()

    def read() -> None:
        for message in listener.receive():
            if message.fields.get("READY") == "1":
                said.set("said READY=1")

    loop.on_readable(listener.fileno(), read)
    try:
        while not said.done:
            check()
            await first(said, run.died, sleep(loop, 0.5))
    finally:
        loop.forget(listener.fileno())
    return said.result()


async def run_command(loop: Loop, text: str, run: Run, seconds: float) -> str:
    """Runs a command of the operator's to its end: empty when it exits 0, else what happened."""
    try:
        process = spawn(split_command(text), env=run.environ(), cwd=run.options.directory or None, own_group=1)
    except (HandoffError, ValueError) as error:
        return str(error)
    ended: Future[None] = Future()
    loop.waited.add(process.pid)
    loop.on_readable(process.fileno(), lambda: ended.set(None))
    try:
        await first(ended, sleep(loop, seconds))
    finally:
        loop.waited.discard(process.pid)
        loop.forget(process.fileno())
        result = _finish(process, ended.done)
    return result if ended.done else f"{text!r} did not end within {seconds:g} s"


async def _command_says(loop: Loop, text: str, run: Run) -> str:
    return await run_command(loop, text, run, run.options.ready_timeout)


def _finish(process: Process, ended: bool) -> str:
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    how = process.wait(after(5.0))
    process.close()
    return "" if how is not None and how.status == 0 else f"the command {how}"
