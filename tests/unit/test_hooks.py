"""Hooks: their order, their veto, and where they run."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from fdhandoff.errors import InProgress, Vetoed
from fdhandoff.hooks import STEPS, Hooks


def test_hooks_run_in_the_order_in_which_they_came() -> None:
    hooks, seen = Hooks(), []
    for word in ("one", "two"):
        hooks.add("before", "ready", lambda word=word: seen.append(word))
    hooks.add("after", "ready", lambda: seen.append("after"))
    hooks.before("ready")
    assert seen == ["one", "two"]
    hooks.after("ready")
    hooks.before("drain")
    assert seen == ["one", "two", "after"]


def test_a_hook_before_vetoes_with_its_own_words() -> None:
    hooks = Hooks()

    def no() -> None:
        raise ValueError("the moon is full")

    hooks.add("before", "upgrade", no)
    with pytest.raises(Vetoed, match="a hook before upgrade said no: the moon is full") as caught:
        hooks.before("upgrade")
    assert caught.value.serving == "old"


def test_a_hook_may_raise_an_error_of_the_package_as_it_is() -> None:
    hooks = Hooks()

    def no() -> None:
        raise InProgress("somebody else is at it")

    hooks.add("before", "upgrade", no)
    with pytest.raises(InProgress):
        hooks.before("upgrade")


def test_the_fault_of_a_hook_after_is_shown_and_the_next_one_runs(capsys: pytest.CaptureFixture[str]) -> None:
    hooks, seen = Hooks(), []
    hooks.add("after", "commit", lambda: 1 / 0)
    hooks.add("after", "commit", lambda: seen.append(1))
    hooks.after("commit")
    assert seen == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["", "upgraded", "HUP", "SIGTREM", "SIG_IGN"])
def test_an_unknown_step_is_refused(step: str) -> None:
    with pytest.raises(ValueError, match="is no step; the steps are ready, upgrade"):
        Hooks().add("before", step, lambda: None)


def test_nothing_comes_before_a_rollback() -> None:
    with pytest.raises(ValueError, match="only after"):
        Hooks().add("before", "rollback", lambda: None)


@pytest.mark.parametrize("step", [*STEPS, "SIGHUP"])
def test_every_step_and_signal_has_an_after(step: str) -> None:
    Hooks().add("after", step, lambda: None)


def test_a_coroutine_function_without_a_loop_is_a_mistake_that_is_told() -> None:
    hooks = Hooks()

    async def hook() -> None: ...

    with pytest.raises(TypeError, match="is a coroutine function"):
        hooks.call(hook)


def test_with_a_loop_hooks_run_in_it_whichever_thread_asks() -> None:
    hooks = Hooks()

    async def main() -> None:
        hooks.loop = asyncio.get_running_loop()
        where: list[Any] = []

        async def slow() -> str:
            await asyncio.sleep(0.01)
            where.append(threading.current_thread())
            return "done"

        assert await asyncio.to_thread(hooks.call, slow) == "done"
        assert await asyncio.to_thread(hooks.call, lambda: where.append(threading.current_thread())) is None
        assert where == [threading.main_thread()] * 2

    asyncio.run(main())


def test_in_the_loops_own_thread_a_hook_runs_at_once_and_does_not_wait_for_itself() -> None:
    hooks = Hooks()

    async def main() -> None:
        hooks.loop = asyncio.get_running_loop()
        assert hooks.is_loop_thread()
        assert hooks.call(lambda: 5) == 5

        async def hook() -> None: ...

        with pytest.raises(TypeError):
            hooks.call(hook)

    asyncio.run(main())
    assert not hooks.is_loop_thread()


def test_nobody_waits_for_a_hook_whose_loop_has_ended() -> None:
    hooks = Hooks()
    outcome: list[BaseException] = []

    async def main() -> None:
        hooks.loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        async def forever() -> None:
            begun.set()
            await asyncio.sleep(600)

        def ask() -> None:
            try:
                hooks.call(forever)
            except BaseException as error:
                outcome.append(error)

        thread.append(threading.Thread(target=ask))
        thread[0].start()
        await begun.wait()
        hooks.end()

    thread: list[threading.Thread] = []
    asyncio.run(main())
    thread[0].join(10)
    assert not thread[0].is_alive()
    assert len(outcome) == 1
