"""Jobs instead of connections: a worker is replaced, and every job that was accepted is finished where it was.

A job enters the service's gate before anything is taken from a queue, so that after a handover nothing is taken any more by
who shall end; the process waits until the last one has left, or the deadline has passed. Works with a ``Service`` in each of
its ways of life: by itself (``path=None``), replaced by a stranger or by its own child, or under ``fdhandoff-cli run``.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import threading
import time
import weakref
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING

from ..deadline import FOREVER, after, format_duration, passed, remaining
from ..errors import OLD, DeadlineExceeded, GateClosed, UpgradeError
from ..heir import slots_of
from ..service import REOPEN_SECONDS
from ..system.slots import Slots
from .shielding import Shield

if TYPE_CHECKING:
    import asyncio
    import subprocess
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from concurrent.futures import Executor
    from multiprocessing.context import BaseContext
    from typing import Any, TypeVar

    from ..service import Service

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["Job", "Jobs", "JobsReport", "current"]

# How often who waits for room looks whether another process has given a slot back.
_LOOK_SECONDS = 0.02
# After close: what the end of the program may take before jobs that were given up are not waited for.
_END_SECONDS = 5.0

_current: contextvars.ContextVar[Job | None] = contextvars.ContextVar("fdhandoff_job", default=None)


def current() -> Job | None:
    """The job that the calling thread or task does; ``None`` outside of any."""
    return _current.get()


class JobsReport:
    """How a drain ended. ``finished``: how many jobs left by themselves since it began; ``cancelled``: the names of those among
    them that were asked to end early; ``cut``: the names of those that were still inside at the deadline; ``seconds``."""

    __slots__ = ("cancelled", "cut", "finished", "seconds")

    def __init__(self, finished: int, cancelled: list[str], cut: list[str], seconds: float) -> None:
        self.finished = finished
        self.cancelled = cancelled
        self.cut = cut
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"JobsReport(finished={self.finished}, cancelled={self.cancelled}, cut={self.cut}, seconds={self.seconds:.3f})"


class Job:
    """A place inside, and what is done in it. Left exactly once: by the end of the ``with`` or of the loop's turn, or, once it
    was started, by the end of what was started.

    ``name``: for the report; may be changed at any time. ``cancellable``: whether it is asked to end as soon as the process
    drains, and not only at the deadline.
    """

    def __init__(self, jobs: Jobs, slot: int, name: str, cancellable: bool) -> None:
        self.name = name
        self.cancellable = cancellable
        self._jobs = jobs
        self._slot = slot
        self._asked = threading.Event()
        self._task: asyncio.Task[Any] | None = None
        self._future: Future[Any] | None = None
        self.begun = False

    def __repr__(self) -> str:
        return f"<Job {self.name!r}{' cancelled' if self.cancelled else ''}>"

    @property
    def cancelled(self) -> bool:
        """Whether it is asked to end: look between two steps, put back what is left to do, and return."""
        return self._asked.is_set()

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Waits until it is asked to end, in place of ``time.sleep``; false after ``timeout`` seconds."""
        return self._asked.wait(timeout)

    def cancel(self) -> None:
        """Asks it to end: ``cancelled`` is true from now on; an asyncio task is cancelled, and what waits for its turn in an
        executor is never begun. From any thread."""
        if self._asked.is_set():
            return
        self._asked.set()
        task, future = self._task, self._future
        if task is not None:
            try:
                task.get_loop().call_soon_threadsafe(self._cancel_task)
            except RuntimeError:
                pass  # the loop has ended, and the task with it
        if future is not None:
            future.cancel()

    def _cancel_task(self) -> None:
        if self._task is not None:  # else the block has ended meanwhile, and what the task does now is no job
            self._task.cancel()

    # --- beginning --------------------------------------------------------------------------------------------

    def start(self, function: Callable[..., Any], *arguments: Any, name: str = "", **options: Any) -> Any:
        """Calls ``function`` in a thread of its own, or, if it is a coroutine function, in a task of the running loop, and goes
        on; the place is given back when it has ended. Returns the ``Future`` or ``Task``; its error is also logged."""
        name = name or self.name or _name_of(function)
        _check_callable(function)
        if _is_async(function):
            import asyncio

            loop, work = asyncio.get_running_loop(), function(*arguments, **options)
            try:
                self._begin(name)
            except BaseException:
                work.close()
                raise
            task = loop.create_task(self._await(work))
            self._task = task
            task.add_done_callback(self._task_done)
            if self.cancelled:
                task.cancel()
            return task
        self._begin(name)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(self._run, future, function, arguments, options), name=self.name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no room for a thread
            self.begun = False
            raise
        return future

    def submit(self, executor: Executor, function: Callable[..., Any], *arguments: Any, name: str = "") -> Future[Any]:
        """The same in an executor: a ``ThreadPoolExecutor``, or one from ``Jobs.process_pool``."""
        _check_callable(function)
        if _is_async(function):
            raise TypeError(
                f"{_name_of(function)} is a coroutine function, which an executor does not run: use start()"
            )
        self._begin(name or self.name or _name_of(function))
        try:
            if isinstance(executor, ProcessPoolExecutor):
                future = executor.submit(function, *arguments)
            else:
                future = executor.submit(contextvars.copy_context().run, self._call, function, arguments)
        except BaseException:
            self.begun = False
            raise
        self._future = future
        theirs = _Executed(future, self)
        if self.cancelled:
            future.cancel()
        return theirs

    def _begin(self, name: str) -> None:
        self._jobs._begin(self)
        self.name = name

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        _current.set(self)
        return function(*arguments)

    def _run(
        self, future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        _current.set(self)
        try:
            result = function(*arguments, **options)
        except BaseException as error:
            self._failed(error)
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            self._leave()  # after what waits for the future's end was called: an acknowledgement is part of the job

    async def _await(self, work: Any) -> Any:
        _current.set(self)
        return await work

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failed(task.exception())
        self._leave()

    def _failed(self, error: BaseException | None) -> None:
        self._jobs.service.say(f"job {self.name!r} failed: {type(error).__name__}: {error}")

    def _leave(self) -> None:
        self._jobs._left(self)


class _Executed(Future):  # type: ignore[type-arg]
    """An executor's future, whose job ends when those have been called who wait for it."""

    def __init__(self, inner: Future[Any], job: Job) -> None:
        super().__init__()
        self._inner = inner
        self._job = job
        inner.add_done_callback(self._done)

    def cancel(self) -> bool:
        return self._inner.cancel()

    def running(self) -> bool:
        return self._inner.running()

    def _done(self, inner: Future[Any]) -> None:
        try:
            if inner.cancelled():
                super().cancel()
                self.set_running_or_notify_cancel()
                return
            error = inner.exception()
            self.set_running_or_notify_cancel()
            if error is not None:
                self._job._failed(error)
                self.set_exception(error)
            else:
                self.set_result(inner.result())
        finally:
            self._job._leave()


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _check_callable(function: Callable[..., Any]) -> None:
    """``TypeError`` for what does nothing when it is called."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{_name_of(function)} is a generator function: calling it runs nothing of it, so the job would be over before it "
            "has begun; use accept() around the loop over it"
        )


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


class _Acceptance:
    """``with`` and ``async with``: a job in the block itself."""

    def __init__(self, jobs: Jobs, name: str, cancellable: bool, timeout: float | None) -> None:
        self._jobs = jobs
        self._words = (name, cancellable)
        self._timeout = timeout
        self._job: Job | None = None
        self._token: contextvars.Token[Job | None] | None = None

    def __enter__(self) -> Job:
        return self._entered(self._jobs._enter(*self._words, after(self._timeout)))

    async def __aenter__(self) -> Job:
        import asyncio

        job = await self._jobs._enter_async(*self._words, after(self._timeout))
        if job is not None:
            job._task = asyncio.current_task()
        return self._entered(job)

    def _entered(self, job: Job | None) -> Job:
        if job is None:
            raise GateClosed("no job is accepted any more: this process is about to end")
        try:
            job._begin(job.name)
        except BaseException:
            job._leave()
            raise
        self._job = job
        self._token = _current.set(job)
        return job

    def __exit__(self, *_: object) -> None:
        assert self._job is not None
        assert self._token is not None
        try:
            _current.reset(self._token)
        except ValueError:
            pass  # an abandoned generator is ended in another context, which has no such job
        finally:
            self._job._task = None  # whatever the task does next is nothing to cancel
            self._job._leave()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class _Places:
    """An iterator of places, each of which is given back when the next is asked for, unless something was started in it."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._last: Job | None = None

    def __iter__(self) -> Iterator[Job]:
        return self

    def __aiter__(self) -> AsyncIterator[Job]:
        return self

    def __next__(self) -> Job:
        self._give_back()
        self._last = self._jobs._enter("", False, FOREVER)
        if self._last is None:
            raise StopIteration
        return self._last

    async def __anext__(self) -> Job:
        self._give_back()
        self._last = await self._jobs._enter_async("", False, FOREVER)
        if self._last is None:
            raise StopAsyncIteration
        return self._last

    def _give_back(self) -> None:
        last, self._last = self._last, None
        if last is not None and not last.begun:
            last._leave()

    def __del__(self) -> None:
        self._give_back()


class Jobs:
    """The jobs of ``service``, which is to be ready before any is accepted.

    ``at_most``: so many at once, over all generations of the service that are alive: one that drains and the next one share the
    number (0: no limit). Where two releases say different numbers, the higher one holds until the old one has ended. The kernel
    gives the places of a killed process back. Counted in the file ``PATH.jobs`` beside the service's handoff path, or
    under a master's; ``slots`` names another; a service without a path shares with nobody. ``patience``: seconds that jobs and
    their processes have to end after they were cut at the deadline.

    Close it before the service; as a context manager it does so. In a forked child make a new one.
    """

    def __init__(
        self, service: Service, *, at_most: int = 0, slots: str | os.PathLike[str] | None = None, patience: float = 5.0
    ) -> None:
        if not isinstance(at_most, int) or at_most < 0:
            raise ValueError(f"at_most is 0 (no limit) or more jobs, not {at_most!r}")
        if not isinstance(patience, (int, float)) or not 0 <= patience < float("inf"):
            raise ValueError(f"patience is a number of seconds, not {patience!r}")
        self.service = service
        self.patience = patience
        self._shield = Shield()
        self._slots: Slots | None = None
        if at_most:
            self._slots = Slots(slots or slots_of(service.crossing.directory) or None, at_most)
            _with_slots.add(self)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._inside: dict[Job, None] = {}  # in the order in which they came
        self._finished = 0
        self._finished_before: int | None = None  # the drain
        self._cancelled: list[str] = []
        self._cutting = False
        self._closed = False
        self._ended = threading.Event()
        # Weakly: the service does not forget whom it tells.
        told = weakref.WeakMethod(self._ask_who_wants_it)
        service.when_draining(lambda: (ask := told()) is not None and ask())

    # --- accepting --------------------------------------------------------------------------------------------

    def accept(self, name: str = "", *, cancellable: bool = False, timeout: float | None = None) -> _Acceptance:
        """``with jobs.accept("mail 7") as job:`` or ``async with``: the block is a job. Waits until there is room; while a
        handover is under way, until it is decided. ``GateClosed`` when this process takes no jobs any more;
        ``DeadlineExceeded`` after ``timeout`` seconds without room."""
        return _Acceptance(self, name, cancellable, timeout)

    def __iter__(self) -> Iterator[Job]:
        """``for job in jobs:``: a place at a time, until this process takes no jobs any more. Take a job from the queue then,
        and ``job.start`` it, or do it in the loop's body. A place in which nothing was started is given back."""
        return _Places(self)

    def __aiter__(self) -> AsyncIterator[Job]:
        """``async for job in jobs:``, the same."""
        return _Places(self)

    def submit(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        name: str = "",
        cancellable: bool = False,
        executor: Executor | None = None,
        timeout: float | None = None,
    ) -> Future[Any]:
        """A job in a thread of its own, or in ``executor``, once there is room. Raises as ``accept`` does."""
        job = self._enter(name, cancellable, after(timeout))
        if job is None:
            raise GateClosed("no job is accepted any more: this process is about to end")
        try:
            if executor is not None:
                return job.submit(executor, function, *arguments)
            future: Future[Any] = job.start(function, *arguments)
            return future
        finally:
            if not job.begun:
                job._leave()

    def job(self, function: F | None = None, *, name: str = "", cancellable: bool = False) -> Any:
        """Decorator, with or without arguments: each call of the function, or coroutine function, is a job."""
        if function is None:
            return functools.partial(self.job, name=name, cancellable=cancellable)
        called = name or _name_of(function)
        _check_callable(function)
        if _is_async(function):

            @functools.wraps(function)
            async def do_async(*arguments: Any, **options: Any) -> Any:
                async with self.accept(called, cancellable=cancellable):
                    return await function(*arguments, **options)

            return do_async

        @functools.wraps(function)
        def do(*arguments: Any, **options: Any) -> Any:
            with self.accept(called, cancellable=cancellable):
                return function(*arguments, **options)

        return do

    @property
    def running(self) -> list[Job]:
        """Those that were begun and have not ended, oldest first."""
        with self._lock:
            return [job for job in self._inside if job.begun]

    def _enter(self, name: str, cancellable: bool, deadline: int) -> Job | None:
        """``None`` when this process takes no jobs any more."""
        while True:
            job = self._try(name, cancellable)
            if job is not None or self._over():
                return job
            left = self._left_until(deadline)
            if self.service.gate.closed:
                self.service.wait(left)
            else:
                with self._room:
                    self._room.wait(left)

    async def _enter_async(self, name: str, cancellable: bool, deadline: int) -> Job | None:
        import asyncio

        while True:
            job = self._try(name, cancellable)
            if job is not None or self._over():
                return job
            await asyncio.sleep(self._left_until(deadline))

    def _left_until(self, deadline: int) -> float:
        """Seconds until the next attempt."""
        if passed(deadline):
            raise DeadlineExceeded("there was no room for another job within the time", serving=self._serving())
        left = remaining(deadline)
        look = REOPEN_SECONDS if self.service.gate.closed else _LOOK_SECONDS
        return look if left is None else min(left, look)

    def _serving(self) -> str:
        return OLD

    def _over(self) -> bool:
        return self._closed or self.service.draining

    def _try(self, name: str, cancellable: bool) -> Job | None:
        if not (self.service.may_accept or self._over() or self.service.gate.closed):
            raise UpgradeError("accept jobs only after ready(): until then another generation may", serving=OLD)
        if self._over() or self.service.gate.closed:
            return None
        slot = self._slots.acquire() if self._slots is not None else -1
        if self._slots is not None and slot < 0:
            return None
        gate = self.service.gate
        if (gate.limit and gate.active >= gate.limit) or not gate.enter():
            if self._slots is not None:
                self._slots.release(slot)
            return None
        job = Job(self, slot, name, cancellable)
        with self._lock:
            self._inside[job] = None
        return job

    def _begin(self, job: Job) -> None:
        """``RuntimeError`` when it has begun already; ``GateClosed`` after the deadline, when those inside have been cut."""
        with self._lock:
            if job.begun:
                raise RuntimeError(f"job {job.name!r} was begun already: one place is for one job")
            if self._cutting or self._closed:
                raise GateClosed("no job is begun any more, also by who had a place for one: this process ends")
            job.begun = True
        if job.cancellable and self.service.draining:
            job.cancel()

    def _left(self, job: Job) -> None:
        with self._lock:
            if job not in self._inside:
                return
            del self._inside[job]
            self._finished += job.begun
            if job.begun and job.cancelled and not self._cutting:
                self._cancelled.append(job.name)
            if self._slots is not None:
                self._slots.release(job._slot)
                if self._closed and not any(one.begun for one in self._inside):
                    self._slots.close()
            (self.service.gate.leave_forced if self._cutting else self.service.gate.leave)()
            self._room.notify()

    # --- processes --------------------------------------------------------------------------------------------

    def shielded(self, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Keywords for ``subprocess.run``, ``Popen`` and ``asyncio.create_subprocess_exec``: ``subprocess.run(command,
        **jobs.shielded())``. The process gets a session of its own, so that Ctrl-C and signals to our group do not reach it,
        and a mark in its environment (``env``, default: ours), by which it and all that it starts is ended: at the deadline by
        TERM and then KILL, at ``close`` and when this process dies, of whatever, by KILL."""
        return self._shield.keywords(env)

    def popen(self, command: Any, **options: Any) -> subprocess.Popen[Any]:
        """``subprocess.Popen`` with that. What a signal to our group ends in the moment in which it is forked and has no
        session of its own yet is started again."""
        return self._shield.popen(command, options)

    def context(self, method: str = "spawn") -> BaseContext:
        """``multiprocessing`` whose processes are shielded in the same way; each also ends its own group when this one dies.
        ``method``: ``spawn`` or ``forkserver``; a ``fork`` beside threads is dangerous, and a service has some."""
        return self._shield.context(method)

    def process_pool(
        self, max_workers: int | None = None, *, method: str = "spawn", **options: Any
    ) -> ProcessPoolExecutor:
        """A ``ProcessPoolExecutor`` of such processes, for ``submit``."""
        return ProcessPoolExecutor(max_workers, mp_context=self.context(method), **options)

    # --- draining ---------------------------------------------------------------------------------------------

    def drain(self, grace: float | None = -1.0) -> JobsReport:
        """To be called when this process shall end (``service.wait()``, or the loop over the places has ended): nothing enters
        any more, jobs that are cancellable are asked to end, all others are waited for, ``grace`` seconds at most (default: the
        service's; ``None``: for ever), or until somebody hurries. Who is left then is cut: asked to end, its processes ended,
        and given up after ``patience`` seconds."""
        began, before = time.monotonic(), self._close_gate()
        if self.service.drain(grace).forced:
            cut = self._cut()
            self._shield.end(self.patience)
            self.service.gate.wait(self.patience)
        else:
            cut = []
        return self._report(began, before, cut)

    async def drain_async(self, grace: float | None = -1.0) -> JobsReport:
        """``drain()`` for asyncio."""
        from ..awaiting import in_thread

        began, before = time.monotonic(), self._close_gate()
        if (await self.service.drain_async(grace)).forced:
            cut = self._cut()
            # Not in the loop's executor: its threads may all be waiting for what is ended here.
            await in_thread(lambda: self._shield.end(self.patience), lambda: None)
            await self.service.gate.wait_async(self.patience)
        else:
            cut = []
        return self._report(began, before, cut)

    def _close_gate(self) -> int:
        """How many had finished when the drain began."""
        self.service.gate.close()
        return self._ask_who_wants_it()

    def _ask_who_wants_it(self) -> int:
        with self._lock:
            if self._finished_before is None:
                self._finished_before = self._finished
        for job in self.running:
            if job.cancellable:
                job.cancel()
        return self._finished_before

    def _cut(self) -> list[str]:
        with self._lock:
            self._cutting = True
            cut = [job for job in self._inside if job.begun]
        for job in cut:
            job.cancel()
        if cut:
            self.service.say(f"cut at the deadline: {', '.join(repr(job.name) for job in cut)}")
        return [job.name for job in cut]

    def _report(self, began: float, before: int, cut: list[str]) -> JobsReport:
        with self._lock:
            finished = self._finished - before
            cancelled = list(self._cancelled)
            left = [job for job in self._inside if job.begun]
        if cut and left:
            names = ", ".join(repr(job.name) for job in left)
            self.service.say(f"given up {format_duration(self.patience)} after that: {names}")
        if left:
            # A thread can't be ended from outside, and Python would wait for those of an executor for ever.
            threading.Thread(target=self._end_all, name="fdhandoff-end", daemon=True).start()
        return JobsReport(finished - (len(cut) - len(left)), cancelled, cut, time.monotonic() - began)

    def close(self) -> None:
        """Ends every process that is left. Idempotent. Where a job was given up that goes on in a thread all the same, this
        process ends 5 seconds later with status 1."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._room.notify_all()
        try:
            self._shield.close()
            # Jobs that were given up and go on keep their places until they end, or this process does.
            if self._slots is not None and not self.running:
                self._slots.close()
        finally:
            self._ended.set()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_all(self) -> None:
        """Ends the process with status 1, when what comes after ``close`` has had its time."""
        self._ended.wait()
        time.sleep(_END_SECONDS)
        if self.running:
            os._exit(1)

    def _forget_in_child(self) -> None:
        if self._slots is not None:
            self._slots.close_in_child()


_with_slots: weakref.WeakSet[Jobs] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for jobs in list(_with_slots):
        jobs._forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
