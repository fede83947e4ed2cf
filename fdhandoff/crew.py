"""``run_crew``: a service whose connections are served by several processes, all of one generation. The first process has the
``Service`` and serves nobody; its children share the listeners and the gate."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING

from .control import Reply
from .heir import doors_of, has_others, remove_directory
from .prefork import PreforkWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .service import Service

_STARTED, _DRAIN, _GO = b"s", b"d", b"g"
# A worker that died is replaced; one that did not live as long as this is not replaced before it would have.
_LIFE_SECONDS = 1.0
# What workers may take beyond the grace period, to end their application.
_END_SECONDS = 10.0


class Member(PreforkWorker):
    """The service of one of the processes."""

    def __init__(self, service: Service, listeners: list[socket.socket], line: socket.socket) -> None:
        directory = service.crossing.directory
        super().__init__(
            listeners,
            grace=service.grace,
            number=service.generation.number,
            directory=directory,
            gate=service.gate,
            log=service.say,
        )
        self._service = service
        self._line = line

    async def ready_async(self) -> None:
        """Says so to the first process, and waits until all are, and the service is ours."""
        import asyncio

        loop = asyncio.get_running_loop()
        self._line.setblocking(False)
        self._line.send(_STARTED)
        if await loop.sock_recv(self._line, 1) != _GO:
            raise SystemExit(1)  # it has ended: there is nobody to serve for
        await super().ready_async()
        loop.add_reader(self._line, self._heard)
        loop.add_reader(self._service.fileno(), self._ended_above)

    def _heard(self) -> None:
        """The first process has died: whoever comes after it has listeners of its own, or ours."""
        import asyncio

        asyncio.get_running_loop().remove_reader(self._line)
        self.stop()

    def _ended_above(self) -> None:
        import asyncio

        asyncio.get_running_loop().remove_reader(self._service.fileno())
        # Nobody tells us why we shall end. Where another generation lives, it may be that it serves again.
        directory = self.crossing.directory
        self.goes_back = (
            self._service.path is not None and bool(directory) and has_others(directory, self.generation.number)
        )
        self.stop()

    def _verb_drain(self, _: dict[str, Any], reply: Reply) -> None:
        """It is all of us who are asked."""
        with contextlib.suppress(OSError):
            self._line.send(_DRAIN)
        reply.done({"state": "draining", "pid": os.getpid()})


class _Crewman:
    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.line = line
        self.began = time.monotonic()
        self.started = False

    def close(self) -> None:
        os.close(self.pidfd)
        self.line.close()


def run_crew(service: Service, listeners: list[socket.socket], count: int, work: Callable[[Member], object]) -> int:
    """Runs ``work(member)`` in ``count`` children that share ``listeners``; it returns when ``member`` has drained. Says
    ``service.ready()`` once all have said ``member.ready_async()``, and returns when the service has ended and so have they: 0,
    or the status of a child that did not start. A child that dies is replaced."""
    crew = _Crew(service, listeners, work)
    try:
        status = crew.start(count)
        if status:
            return status
        service.ready()
        service.crossing.by_others = True
        service.crossing.appoint(service.generation.number)
        crew.go()
        crew.watch(count)
        report = service.drain()
        crew.wait(None if service.grace is None else max(0.0, service.grace - report.seconds))
        if service.owner and service.path is not None and service.crossing.directory:
            remove_directory(service.crossing.directory)
        return 0
    finally:
        crew.kill()


class _Crew:
    def __init__(self, service: Service, listeners: list[socket.socket], work: Callable[[Member], object]) -> None:
        self._service = service
        self._listeners = listeners
        self._work = work
        self._men: list[_Crewman] = []

    def start(self, count: int) -> int:
        """Until all are started; or the status of one that could not."""
        for _ in range(count):
            self._fork()
        while not all(man.started for man in self._men):
            for man in self._ready([]):
                status = self._listen(man)
                if status is not None:
                    return status or 1
            if self._service.wait(0):
                return 1
        return 0

    def go(self) -> None:
        for man in self._men:
            self._send(man)

    def watch(self, count: int) -> None:
        """Until the service ends."""
        while not self._service.wait(0):
            for man in self._ready([self._service.fileno()]):
                status = self._listen(man)
                if status is None or self._service.wait(0):
                    continue
                self._service.say(f"worker {man.pid} ended with {status}: another takes its place")
                self._service.wait(max(0.0, man.began + _LIFE_SECONDS - time.monotonic()))
            while len(self._men) < count and not self._service.wait(0):
                self._fork()

    def wait(self, seconds: float | None) -> None:
        """Until they have ended by themselves: what their applications do behind the last answer has the rest of the grace
        period, ``seconds``, and their end some more. Not so where somebody hurries."""
        give_up = None if seconds is None else time.monotonic() + seconds + _END_SECONDS
        hurried = False
        while self._men and (give_up is None or time.monotonic() < give_up):
            if self._service.hurried and not hurried:
                hurried = True
                give_up = time.monotonic() + _END_SECONDS
            for man in self._ready([]):
                self._listen(man)
        for man in self._men:
            self._service.say(f"worker {man.pid} has not ended in its time: it is killed")

    def kill(self) -> None:
        for man in list(self._men):
            with contextlib.suppress(ProcessLookupError):
                os.kill(man.pid, signal.SIGKILL)  # ours, and not waited for yet: the number is nobody else's
            self._reap(man)

    # --- one of them ------------------------------------------------------------------------------------------

    def _ready(self, more: list[int], seconds: float = 1.0) -> list[_Crewman]:
        poller = select.poll()
        for fd in [*more, *(man.line.fileno() for man in self._men), *(man.pidfd for man in self._men)]:
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(seconds * 1000)}
        return [man for man in self._men if man.line.fileno() in ready or man.pidfd in ready]

    def _listen(self, man: _Crewman) -> int | None:
        """What it says; its exit status, when it has ended."""
        try:
            said = man.line.recv(1)
        except OSError:
            said = b""
        if said == _STARTED:
            man.started = True
            if self._service.owner:
                self._send(man)
        elif said == _DRAIN:
            self._service.stop()
        else:
            return self._reap(man)
        return None

    @staticmethod
    def _send(man: _Crewman) -> None:
        with contextlib.suppress(OSError):  # it has died, which is noticed elsewhere
            man.line.send(_GO)

    def _reap(self, man: _Crewman) -> int:
        _, status = os.waitpid(man.pid, 0)
        self._men.remove(man)
        man.close()
        self._clean_up_after(man.pid)
        return os.waitstatus_to_exitcode(status)

    def _clean_up_after(self, pid: int) -> None:
        """A killed one leaves the path at which connections were to reach it."""
        directory = self._service.crossing.directory
        with contextlib.suppress(OSError):
            for path in doors_of(directory, self._service.generation.number) if directory else ():
                if os.path.basename(path).partition("-")[2].partition(".")[0] == str(pid):
                    os.unlink(path)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # The service's threads wait in the kernel, and its part in a child is put right by it.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            theirs.close()
            self._men.append(_Crewman(pid, ours))
            return
        status = 1
        try:
            ours.close()
            for man in self._men:
                man.close()
            # The terminal's, and an operator's to the group, are the first process's to understand.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
            member = Member(self._service, self._listeners, theirs)
            signal.signal(signal.SIGTERM, lambda *_: None)  # so does TERM; alone, a worker is ended by KILL
            self._service.unblock_signals()  # the first process does so when it is ready, which comes after this
            with contextlib.closing(member):
                self._work(member)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
