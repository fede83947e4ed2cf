"""Whether a new generation can serve: asked in the way that the operator chose, before any user is sent to it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time

from ..deadline import after, parse_duration
from ..errors import OLD, HandoffError, NotReady, SuccessorDied
from ..system import environment
from ..system.access import find_account
from ..system.attention import who_waits_on
from ..system.notify import NotifyListener
from ..system.process import Process, spawn
from ..system.processes import members
from . import conventions
from .run import split_command
from .tasks import Future, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from .loop import Loop
    from .outlet import Outlet
    from .run import Run

# In each of our requests: one that was not answered is nobody's.
AGENT = b"\r\nUser-Agent: fdhandoff\r\n"
# What the kernel tells only who asks is asked for again after a twentieth of the time that has passed: who starts in 20 ms is
# not kept waiting for 10, and who takes seconds is not looked at a thousand times.
_LOOK_SHARE = 20
_LOOK_FIRST, _LOOK_LAST = 0.001, 0.05
# To look through a generation's descriptors is more work.
_LOOK_THROUGH = 0.005
# An HTTP probe that is not answered in this time is tried again, until the deadline.
_ANSWER_SECONDS = 5.0
_AGAIN_SECONDS = 0.05
# What the kernel does not let us see is assumed after this time.
_ASSUMED_SECONDS = 1.0
_HEAD_MAX = 1 << 16


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

    def _connected(self) -> bool:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        try:
            self._sock.getpeername()
        except OSError:
            return False
        return True

    def accepted(self) -> bool:
        """Whether the connection has left the generation's queue: somebody accepted it."""
        return self._connected() and self._outlet.accepted(self._slot, self._sock)

    async def get(self, path: str, seconds: float, *unless: Future[Any]) -> int:
        """Asks ``path`` by HTTP/1.1: the status. ``OSError`` otherwise; a ``TimeoutError`` after ``seconds``, or when one of
        ``unless`` is known."""
        until = time.monotonic() + seconds
        while not self._connected():
            if time.monotonic() >= until:
                raise TimeoutError
            await pause(self._loop, _LOOK_FIRST)
        self._sock.send(
            f"GET {path} HTTP/1.1\r\nHost: {self._outlet.host}".encode()
            + AGENT
            + b"Accept: */*\r\nConnection: close\r\n\r\n"
        )
        head = b""
        while True:
            line, newline, _ = head.partition(b"\n")
            status = _status_in(line)
            if newline and not status:
                raise OSError(errno.EPROTO, f"{path} was answered by {line[:40]!r}, which is not HTTP")
            if newline and status >= 200:
                return status
            if newline and b"\r\n\r\n" in head:
                head = head.partition(b"\r\n\r\n")[2]  # 100 and its like: the answer is yet to come
                continue
            more = await self._receive(until, *unless)
            if not more or len(head) > _HEAD_MAX:
                raise ConnectionError(f"{path} was not answered: the connection was closed")
            head += more

    async def _receive(self, until: float, *unless: Future[Any]) -> bytes:
        readable: Future[None] = Future()
        self._loop.on_readable(self._sock.fileno(), lambda: readable.set(None))
        try:
            await pause(self._loop, until - time.monotonic(), readable, *unless)
        finally:
            self._loop.forget(self._sock.fileno())
        if not readable.done:
            raise TimeoutError
        return self._sock.recv(4096)


async def answers(loop: Loop, run: Run, outlets: Iterable[Outlet], path: str, *unless: Future[Any]) -> bool:
    """Whether the generation answers ``path`` well, asked once; true where there is no listener to ask at. Not waited for once
    one of ``unless`` is known."""
    outlet = next((outlet for outlet in outlets if outlet.probed), None)
    if outlet is None:
        return True
    probe = Probe(loop, outlet, run.slot)
    try:
        return 200 <= await probe.get(path, _ANSWER_SECONDS, *unless) < 400
    except OSError:
        return False
    finally:
        probe.close()


def _status_in(line: bytes) -> int:
    """Of the first line of an answer; 0 where that is none of HTTP/1."""
    version, _, rest = line.partition(b" ")
    status = rest.split(b" ", 1)[0].rstrip(b"\r")
    if version not in (b"HTTP/1.0", b"HTTP/1.1") or not (
        len(status) == 3 and status.isdigit() and b"1" <= status < b"6"
    ):
        return 0
    return int(status)


class Newcomer:
    """One process that joins a generation: what readiness wants to know of a whole one."""

    def __init__(self, run: Run, process: Process) -> None:
        self.options = run.options
        self.slot = run.slot
        self.pids = [process.pid]
        self.died = run.end_of(process)
        self._name = f"worker {process.pid} of {run}"

    def __str__(self) -> str:
        return self._name


async def await_joined(loop: Loop, worker: Newcomer, outlets: list[Outlet], listener: NotifyListener | None) -> None:
    """Until the worker serves beside the others, as far as it can be known: which of them answers a probe of their common
    queue is chance, so that is of no use here. ``NotReady``, ``SuccessorDied`` with the reason."""
    verdict = Verdict(worker)
    if worker.options.ready.kind == "notify":
        assert listener is not None
        await _notified(loop, worker, listener, verdict)
    elif worker.options.ready.kind == "delay":
        await _delay(loop, worker, verdict, parse_duration(worker.options.ready.argument))
    else:
        await _attends(loop, worker, outlets, verdict)


class Verdict:
    """Asks again and again whether it is over: the generation died, or its time is."""

    def __init__(self, run: Run | Newcomer) -> None:
        self._run = run
        self._began = time.monotonic()
        self.deadline = self._began + run.options.ready_timeout
        self.last = ""
        self.hint = ""  # for who wonders why it died

    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def pause(self, least: float) -> float:
        """Seconds until the next look."""
        return max(least, min((time.monotonic() - self._began) / _LOOK_SHARE, _LOOK_LAST))

    def check(self) -> None:
        run = self._run
        if run.died.done:
            raise SuccessorDied(f"{run} is not ready: {run.died.result()} before it was{self.hint}", serving=OLD)
        if time.monotonic() > self.deadline:
            why = f": {self.last}" if self.last else ""
            raise NotReady(
                f"{run} did not become ready ({run.options.ready}) within {run.options.ready_timeout:g} s{why}",
                serving=OLD,
            )


async def await_ready(loop: Loop, run: Run, outlets: list[Outlet], listener: NotifyListener | None) -> str:
    """Returns how the generation showed that it is ready; ``NotReady``, ``SuccessorDied`` with the reason."""
    verdict = Verdict(run)
    if run.binds_itself and outlets:
        from . import binding  # late: most are passed their listeners

        await binding.await_bound(loop, run, outlets, verdict)
        how = await _shown(loop, run, outlets, listener, verdict)
        binding.forbid_others(run, outlets)
        return how
    return await _shown(loop, run, outlets, listener, verdict)


async def _shown(loop: Loop, run: Run, outlets: list[Outlet], listener: NotifyListener | None, verdict: Verdict) -> str:
    kind, argument = run.options.ready.kind, run.options.ready.argument
    if kind == "delay":
        await _delay(loop, run, verdict, parse_duration(argument))
        return "is assumed to be, after a delay"
    if kind == "notify":
        assert listener is not None
        return await _notified(loop, run, listener, verdict)
    if kind == "command":
        while True:
            before, verdict.last = verdict.last, await run_command(loop, argument, run, verdict.left(), run.died)
            if before and not verdict.left():
                verdict.last = before  # the deadline cut this one short, and the one before says more
            verdict.check()
            if not verdict.last:
                return "the command says so"
            await pause(loop, _AGAIN_SECONDS, run.died)
    if kind == "http":
        return await _http(loop, run, outlets, verdict, argument)
    for outlet in outlets:
        if outlet.probed:
            await _accepts(loop, run, outlet, verdict)
    silent = [outlet for outlet in outlets if not outlet.probed]
    return await _attends(loop, run, silent, verdict) if silent or not outlets else "accepts connections"


async def _delay(loop: Loop, run: Run | Newcomer, verdict: Verdict, seconds: float) -> None:
    until = min(time.monotonic() + seconds, verdict.deadline)
    while time.monotonic() < until:
        verdict.check()
        await pause(loop, until - time.monotonic(), run.died)
    verdict.check()


async def _http(loop: Loop, run: Run, outlets: list[Outlet], verdict: Verdict, path: str) -> str:
    outlet = next((outlet for outlet in outlets if outlet.probed), None)
    if outlet is None:
        raise NotReady("http needs a TCP or Unix listener to probe: use --ready notify, command or delay", serving=OLD)
    while True:
        seconds = min(_ANSWER_SECONDS, verdict.left())
        try:
            probe = Probe(loop, outlet, run.slot)
            try:
                status = await probe.get(path, seconds, run.died)
            finally:
                probe.close()
            verdict.last = "" if 200 <= status < 400 else f"{path} answered {status}"
        except TimeoutError:
            if (
                seconds == _ANSWER_SECONDS or not verdict.last
            ):  # else the deadline cut it short, and the one before says more
                verdict.last = f"{path} was not answered within {seconds:.3g} s"
        except OSError as error:
            verdict.last = error.strerror or str(error)
        verdict.check()
        if not verdict.last:
            return f"answers {path}"
        await pause(loop, _AGAIN_SECONDS, run.died)


async def _accepts(loop: Loop, run: Run, outlet: Outlet, verdict: Verdict) -> None:
    verdict.last = f"nothing accepts on {outlet.name} ({outlet.address})"
    probe = Probe(loop, outlet, run.slot)
    try:
        while not probe.accepted():
            verdict.check()
            await pause(loop, verdict.pause(_LOOK_FIRST), run.died)
    finally:
        probe.close()
    verdict.check()  # a socket that is accepted because its queue is closed is no good sign


async def _attends(loop: Loop, run: Run | Newcomer, outlets: list[Outlet], verdict: Verdict) -> str:
    """Where no queue of its own tells: somebody of the generation waits for the listeners, as /proc shows it."""
    if not outlets:
        await _delay(loop, run, verdict, _ASSUMED_SECONDS)
        return f"is assumed to be, after {_ASSUMED_SECONDS:g} s: it has no listener to be seen at"
    inodes = {os.fstat(outlet.give(run.slot).fileno()).st_ino: outlet for outlet in outlets}
    while True:
        verdict.check()
        found = who_waits_on(inodes.keys(), members(*run.pids))
        if found.inodes.issuperset(inodes):
            return "waits for connections"
        if found.blind:
            await _delay(loop, run, verdict, _ASSUMED_SECONDS)
            return f"is assumed to be, after {_ASSUMED_SECONDS:g} s: {found.blind}"
        missed = next(outlet for inode, outlet in inodes.items() if inode not in found.inodes)
        verdict.last = f"nobody waits for {missed.name} ({missed.address})"
        await pause(loop, verdict.pause(_LOOK_THROUGH), run.died)


async def _notified(loop: Loop, run: Run | Newcomer, listener: NotifyListener, verdict: Verdict) -> str:
    """Every worker says it, or a child in its place."""
    said: Future[str] = Future()
    ready: set[int] = set()
    account = find_account(run.options.user, run.options.group)
    believed = {0, os.geteuid(), *([account.uid] if account is not None else [])}

    def read() -> None:
        for message in listener.receive():
            if message.fields.get("READY") != "1":
                continue
            leaders = (leader for leader in run.pids if message.pid == leader or message.pid in members(leader))
            leader = next(leaders, 0)
            if not leader and message.uid not in believed:  # anybody on this machine can write to an abstract name
                verdict.last = (
                    f"READY=1 of process {message.pid} (uid {message.uid}), which is none of its, is not believed"
                )
                continue
            ready.add(leader or message.pid)  # one that was there to say it, and no more, counts as well
            if len(ready) >= len(run.pids):
                said.set("said READY=1")

    loop.on_readable(listener.fileno(), read)
    try:
        while not said.done:
            verdict.check()
            await pause(loop, min(0.5, verdict.left() + 0.01), said, run.died)
    finally:
        loop.forget(listener.fileno())
    return said.result()


async def run_command(
    loop: Loop,
    text: str,
    run: Run,
    seconds: float,
    *unless: Future[Any],
    told: bool = False,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Runs a command of the operator's to its end: empty when it exits 0, else what happened. It is given up after so many
    seconds, or when one of ``unless`` is known. It has the environment of the generation, and no listener.
    ``told``: what it writes is kept with what the generation writes. ``facts``: variables for it alone."""
    try:
        environ = run.environ()
        environment.strip(environ)
        conventions.strip(environ)
        environ[environment.GENERATION] = str(run.number)
        if run.release:
            environ[environment.RELEASE] = run.release
        environ.update(facts or {})
        streams = run.output.for_commands() if told and run.output is not None else {1: 1, 2: 2}
        process = spawn(split_command(text), fds={0: 0, **streams}, env=environ, **run.surroundings(), own_group=1)
    except (HandoffError, OSError, ValueError) as error:
        return str(error)
    ended: Future[None] = Future()
    loop.waited.add(process.pid)
    loop.on_readable(process.fileno(), lambda: ended.set(None))
    try:
        await pause(loop, seconds, ended, *unless)
    finally:
        loop.waited.discard(process.pid)
        loop.forget(process.fileno())
        result = _finish(process, ended.done)
    return result if ended.done else f"{text!r} did not end within {seconds:.3g} s"


def _finish(process: Process, ended: bool) -> str:
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    how = process.wait(after(5.0))
    process.close()
    return "" if how is not None and how.status == 0 else f"the command {how}"
