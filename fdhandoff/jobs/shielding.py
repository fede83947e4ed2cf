"""What jobs start: subprocesses and pools of processes that no signal to our group reaches, and that never outlive us."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import weakref
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import (
    BaseContext,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from typing import TYPE_CHECKING

from ..deadline import FOREVER, after, remaining
from ..errors import HandoffError
from ..successor import BLOCKED
from ..system import shield
from ..system.process import Process, start_time
from ..system.processes import was_only_forked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_numbers = itertools.count(1)  # a process may have several
_GUARD_SECONDS = 5.0
_ATTEMPTS = 10


class Shield:
    """The processes that work for this one. ``end`` ends them all."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._session = os.getsid(0)
        self._mark = f"{self._pid}.{start_time(self._pid)}.{next(_numbers)}"
        self._guard: subprocess.Popen[bytes] | None = None
        self._used = False
        self._lock = threading.Lock()
        self._held = -1
        self.children: weakref.WeakSet[Any] = weakref.WeakSet()

    def keywords(self, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """For ``subprocess`` and ``asyncio.create_subprocess_*``."""
        self._used = True
        self._watch()
        return {"start_new_session": True, "env": {**(os.environ if env is None else env), shield.MARK: self._mark}}

    def popen(self, command: Any, options: dict[str, Any]) -> subprocess.Popen[Any]:
        """Started again where a signal to our group came before it had its own session, that is, before it was a program."""
        return _started(command, {**options, **self.keywords(options.pop("env", None))})

    def _watch(self) -> None:
        """A guard stands by, from before there is anything to guard."""
        with self._lock:
            if self._guard is not None and self._guard.poll() is None:
                return
            try:
                channel, held = os.pidfd_open(self._pid), -1
            except (AttributeError, OSError):
                channel, held = os.pipe()  # the other end closes with us, and is never written to
            # A guard that had somebody else's mark would be ended with them, before its own charges are.
            environ = {name: value for name, value in os.environ.items() if name != shield.MARK}
            words = [str(channel), self._mark, str(self._session)]
            try:
                nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
                how = {"pass_fds": (channel,), "start_new_session": True, "cwd": "/", "env": environ, **nothing}
                self._guard = _started([sys.executable, "-I", "-S", shield.__file__, *words], how)
            finally:
                os.close(channel)
            self._held = held

    def end(self, patience: float) -> int:
        """All of them: told, and killed ``patience`` seconds later. How many there were."""
        children = [child for child in list(self.children) if _is_alive(child)]
        for child in children:
            _tell(child, signal.SIGTERM if patience else signal.SIGKILL)
        deadline = after(patience)
        count = len(children) + (shield.end(self._mark, self._session, patience) if self._used else 0)
        for child in children:
            with contextlib.suppress(ValueError):  # whoever started it has closed it
                child.join(remaining(deadline))
                if child.is_alive():
                    _tell(child, signal.SIGKILL)
                    child.join(_GUARD_SECONDS)
        return count

    def close(self) -> None:
        """Ends what is left, and the guard."""
        if os.getpid() != self._pid:
            return
        try:
            self.end(0.0)
        finally:
            with self._lock:
                guard, self._guard = self._guard, None
            if guard is not None:
                guard.kill()
                guard.wait()
                if self._held >= 0:
                    os.close(self._held)

    def context(self, method: str) -> BaseContext:
        """``multiprocessing`` whose processes are shielded."""
        kinds: dict[str, type[BaseContext]] = {"spawn": _Spawn, "forkserver": _ForkServer}
        if method not in kinds:
            raise ValueError(
                f"{method!r} is no way to start shielded processes: say {' or '.join(kinds)} (a fork beside threads, of which "
                "a service has some, may wait for ever for a lock that one of them had)"
            )
        with _blocked():  # before a pool's queues ask for it
            context = kinds[method]()
        context.shield = weakref.proxy(self)  # type: ignore[attr-defined]
        return context


def _started(command: Any, options: dict[str, Any]) -> subprocess.Popen[Any]:
    """In a session of its own. Started again where a signal to our group came before it had that, and so before it was a
    program."""
    for _ in range(_ATTEMPTS):
        process = subprocess.Popen(command, **options)
        # One that is gone was waited for by somebody (or by nobody, where SIGCHLD is ignored): it has done what it had to do.
        if not was_only_forked(process.pid):
            return process
        with process:  # closes its pipes, and waits
            pass
    return process


def _is_alive(child: Any) -> bool:
    try:
        return bool(child.is_alive())
    except ValueError:
        return False  # whoever started it has closed it, which only one that has ended can be


def _tell(child: Any, number: int) -> None:
    try:
        # It leads a group of its own; in the moment before that it is in ours, and is told alone.
        if os.getpgid(child.pid) == child.pid:
            os.killpg(child.pid, number)
        else:
            os.kill(child.pid, number)
    except ProcessLookupError:
        return


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """What is started in here has the signals blocked that would end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        # multiprocessing's own helper lives in our group, and breaks every pool when it is ended; it heeds no signal that is
        # blocked when it is started. Its start unblocks some here.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Shielded:
    """What makes a ``multiprocessing`` process one that group signals do not reach and that ends with its parent."""

    def start(self: Any) -> None:
        # Until it has a session of its own nothing of what is sent to our group may end it; it inherits the mask.
        with _blocked():
            super().start()  # type: ignore[misc]

    def run(self: Any) -> None:
        os.setsid()
        for number in BLOCKED:  # what came until now was for the group in which we were: ignoring it discards it
            handler = signal.signal(number, signal.SIG_IGN)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        threading.Thread(target=_end_with_parent, name="fdhandoff-guard", daemon=True).start()
        super().run()  # type: ignore[misc]


def _end_with_parent() -> None:
    """Whatever this process does, and what it has started in its group, ends when the parent has."""
    parent = parent_process()
    if parent is None or parent.pid is None:
        return
    try:
        with Process.from_pid(parent.pid) as process:
            # A number that was given to somebody else between the fork and now is not our parent's.
            if os.getppid() == parent.pid or process.started <= start_time(os.getpid()):
                process.wait(FOREVER)
    except HandoffError:
        pass  # it has ended already
    os.killpg(0, signal.SIGKILL)


class _SpawnProcess(_Shielded, SpawnProcess):
    pass


class _ForkServerProcess(_Shielded, ForkServerProcess):
    pass


def _made(context: Any, kind: Any, words: tuple[Any, ...], options: dict[str, Any]) -> Any:
    process = kind(*words, **options)
    context.shield.children.add(process)
    return process


class _Spawn(SpawnContext):
    def Process(self, *words: Any, **options: Any) -> Any:  # type: ignore[override]
        return _made(self, _SpawnProcess, words, options)


class _ForkServer(ForkServerContext):
    def Process(self, *words: Any, **options: Any) -> Any:  # type: ignore[override]
        return _made(self, _ForkServerProcess, words, options)
