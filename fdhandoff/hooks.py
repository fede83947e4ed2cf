"""Hooks: what the application wants to do before and after each step and each signal."""

from __future__ import annotations

import signal
import sys

from .errors import OLD, HandoffError, Vetoed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    Hook = Callable[[], Any]

STEPS = ("ready", "upgrade", "offer", "commit", "rollback", "drain", "stop")

# How often a hook that runs in an event loop is looked at: the loop may have ended meanwhile.
_LOOK_SECONDS = 0.1


class Hooks:
    """Functions without arguments, by step or signal name (``"commit"``, ``"SIGHUP"``), run in the order in which they came.

    Once an event loop is attached they run in it, and may be coroutine functions; without one they run in the service's own
    thread. A hook *before* a step vetoes it by raising; the fault of a hook *after* one is shown and changes nothing.
    """

    def __init__(self) -> None:
        self._hooks: dict[tuple[str, str], list[Hook]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def end(self) -> None:
        """Nobody waits for the event loop any more: whoever ends the service may be in it."""
        self._ended = True

    def is_loop_thread(self) -> bool:
        """Whether the caller is inside the attached event loop, and would wait for itself."""
        if self.loop is None:
            return False
        import asyncio

        return asyncio._get_running_loop() is self.loop

    def add(self, when: str, step: str, hook: Hook) -> Hook:
        if (when, step) == ("before", "rollback"):
            raise ValueError("a rollback can't be announced: the new generation died; there is only after")
        if step not in STEPS and not (
            step.startswith("SIG") and isinstance(getattr(signal, step, None), signal.Signals)
        ):
            raise ValueError(
                f"{step!r} is no step; the steps are {', '.join(STEPS)}, and signals by their names (SIGHUP)"
            )
        self._hooks.setdefault((when, step), []).append(hook)
        return hook

    def before(self, step: str) -> None:
        """``Vetoed`` when one of them raises."""
        for hook in self._hooks.get(("before", step), ()):
            try:
                self.call(hook)
            except HandoffError:
                raise
            except Exception as error:
                raise Vetoed(f"a hook before {step} said no: {error or type(error).__name__}", serving=OLD) from error

    def after(self, step: str) -> None:
        for hook in self._hooks.get(("after", step), ()):
            try:
                self.call(hook)
            except Exception:
                # The step is done; nobody is there to raise to, and the next hook has a right to run.
                sys.excepthook(*sys.exc_info())

    def call(self, hook: Hook) -> Any:
        """Runs it where hooks run, and returns what it returns."""
        loop = self.loop
        if loop is None or not loop.is_running() or self.is_loop_thread():
            result = hook()
            if hasattr(result, "__await__"):
                if hasattr(result, "close"):
                    result.close()  # never begun: or Python complains that nobody awaited it
                raise TypeError(f"{hook!r} is a coroutine function, but no event loop can run it here")
            return result
        import asyncio
        from concurrent.futures import wait

        async def run() -> Any:
            result = hook()
            return await result if hasattr(result, "__await__") else result

        future = asyncio.run_coroutine_threadsafe(run(), loop)
        while not wait((future,), _LOOK_SECONDS).done:
            if self._ended or not loop.is_running():
                future.cancel()
                raise RuntimeError(f"the event loop ended before {hook!r} had")
        return future.result()
