"""``async def`` on the master's own loop: a story with waits in it stays one function (asyncio would double our size)."""

from __future__ import annotations

from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any, Generic, TypeVar

    from .loop import Loop

    T = TypeVar("T")
else:
    T = None

    class Generic:
        """What is left of it when nobody checks types: ``typing`` alone would cost half a megabyte."""

        __slots__ = ()

        def __class_getitem__(cls, _):
            return cls


class Cancelled(BaseException):
    """Thrown into a task that is no longer wanted."""


class Future(Generic[T]):
    """Something that will be known. The first of ``set`` and ``fail`` counts, later ones are ignored."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []

    def set(self, value: T) -> None:
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        self._finish(None, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self.done:
            return
        self.done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], object]) -> None:
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def no_more(self, callback: Callable[[], object]) -> None:
        """Takes a ``when_done`` back, if that has not happened."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    @property
    def error(self) -> BaseException | None:
        return self._error

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine under way. As a future it is what the coroutine returns or raises."""

    __slots__ = ("_coroutine", "_loop", "_waiting")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, None, T]) -> None:
        super().__init__()
        self._loop = loop
        self._coroutine = coroutine
        self._waiting: Future[Any] | None = None
        loop.call(self._step)

    def cancel(self) -> None:
        """Ends it where it waits; what it does about that is its own business (``finally``)."""
        if not self.done:
            self._waiting = None
            self._loop.call(lambda: self._step(Cancelled()))

    def _step(self, error: BaseException | None = None) -> None:
        if self.done:
            return
        try:
            waiting = self._coroutine.throw(error) if error is not None else self._coroutine.send(None)
        except StopIteration as stop:
            self.set(stop.value)
        except BaseException as failure:
            self.fail(failure)
        else:
            self._waiting = waiting
            waiting.when_done(lambda: self._go_on(waiting))

    def _go_on(self, waited: Future[Any]) -> None:
        if self._waiting is waited:  # else it was cancelled meanwhile
            self._waiting = None
            self._loop.call(self._step)


def sleep(loop: Loop, seconds: float) -> Future[None]:
    """Known after ``seconds``."""
    future: Future[None] = Future()
    loop.after(seconds, lambda: future.set(None))
    return future


def first(*futures: Future[Any]) -> Future[Future[Any]]:
    """Known when one of them is: that one. The others are not kept waiting for: one that is watched for hours, again and
    again, remembers none of it."""
    winner: Future[Future[Any]] = Future()
    calls: list[tuple[Future[Any], Callable[[], object]]] = []

    def won(future: Future[Any]) -> None:
        winner.set(future)
        for other, call in calls:
            other.no_more(call)

    for future in futures:
        call = partial(won, future)
        calls.append((future, call))
        future.when_done(call)
        if winner.done:
            break
    return winner


async def pause(loop: Loop, seconds: float, *others: Future[Any]) -> None:
    """Waits so long, or until one of the others is known."""
    over: Future[None] = Future()
    timer = loop.after(seconds, lambda: over.set(None))
    try:
        await first(over, *others)
    finally:
        timer.cancel()  # and with it goes all that it would keep alive


async def within(loop: Loop, seconds: float | None, future: Future[T]) -> T:
    """What ``future`` brings; ``TimeoutError`` when it is not known after ``seconds``."""
    if seconds is None:
        return await future
    late = sleep(loop, seconds)
    if await first(future, late) is late and not future.done:
        raise TimeoutError
    return future.result()
