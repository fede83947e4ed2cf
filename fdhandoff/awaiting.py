"""Awaiting a call that blocks, without holding the event loop up and without losing it when the task is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(work: Callable[[], T], cancel: Callable[[], object]) -> T:
    """Runs ``work()`` in a thread of its own and awaits its result. When the awaiting task is cancelled, ``cancel()`` is
    called, which must make ``work`` end soon; its end is awaited before the cancellation goes on."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as caught:
            result, error = None, caught
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody awaits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="fdhandoff-await", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel()
        with contextlib.suppress(BaseException):  # its failure is what the cancellation asked for
            await asyncio.shield(future)
        raise
