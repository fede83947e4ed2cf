"""Signals as requests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fdhandoff import signals
from fdhandoff.signals import DEFAULT, HOOKS, STOP, UPGRADE, Signals, StopRequests
from fdhandoff.system.signalpipe import SignalPipe
from tests.support.forked import Forked
from tests.support.signalled import by_another_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def test_each_signal_is_passed_on_with_its_action() -> None:
    heard: list[tuple[str, str]] = []
    installed = Signals({"SIGUSR1": HOOKS, "SIGUSR2": UPGRADE, "SIGTERM": STOP}, lambda *what: heard.append(what))
    installed.install()
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.raise_signal(number)
    finally:
        installed.restore()
    assert heard == [("SIGUSR1", HOOKS), ("SIGUSR2", UPGRADE), ("SIGTERM", STOP)]


@pytest.fixture
def installed() -> Iterator[tuple[Signals, list[str], threading.Event]]:
    heard: list[str] = []
    something = threading.Event()

    def deliver(name: str, _: str) -> None:
        heard.append(name)
        something.set()

    signals = Signals({"SIGUSR1": HOOKS}, deliver)
    signals.install()
    yield signals, heard, something
    signals.restore()


def test_a_signal_that_another_thread_got_is_passed_on_while_the_main_thread_waits(
    installed: tuple[Signals, list[str], threading.Event],
) -> None:
    by_another_thread(signal.SIGUSR1)
    assert installed[2].wait(20)  # nothing but the signal ends it
    installed[0].restore()
    assert installed[1] == ["SIGUSR1"]


def test_while_an_event_loop_has_our_place_the_handler_passes_signals_on_and_afterwards_it_is_ours_again(
    installed: tuple[Signals, list[str], threading.Event],
) -> None:
    async def loop_with_a_signal_of_its_own() -> None:
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, called.set)
        by_another_thread(signal.SIGUSR1)
        while not installed[2].is_set():
            await asyncio.sleep(0.01)
        by_another_thread(signal.SIGUSR2)
        await asyncio.wait_for(called.wait(), 20)
        assert installed[1] == ["SIGUSR1"]
        loop.remove_signal_handler(signal.SIGUSR2)

    asyncio.run(loop_with_a_signal_of_its_own())
    for _ in range(2):  # at the first the handler finds the place empty
        installed[2].clear()
        by_another_thread(signal.SIGUSR1)
        assert _comes(installed[2].is_set)
    installed[0].restore()
    assert installed[1] == ["SIGUSR1"] * 3


def _comes(what: Callable[[], object]) -> bool:
    """In steps, between which Python heeds signals."""
    give_up = time.monotonic() + 20
    while not what() and time.monotonic() < give_up:
        time.sleep(0.01)
    return bool(what())


def test_a_signal_for_somebody_elses_handler_is_not_ours(installed: tuple[Signals, list[str], threading.Event]) -> None:
    theirs: list[int] = []
    ours = signal.signal(signal.SIGUSR1, lambda number, _: theirs.append(number))
    signal.raise_signal(signal.SIGUSR1)
    assert _comes(lambda: theirs)
    installed[0].restore()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert ours == installed[0]._handle
    assert (theirs, installed[1]) == ([signal.SIGUSR1], [])


def test_a_forked_child_tells_its_parent_nothing(installed: tuple[Signals, list[str], threading.Event]) -> None:
    def child() -> None:
        installed[0].forget_in_child()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.raise_signal(signal.SIGUSR1)

    Forked(child).result()
    installed[0].restore()
    assert installed[1] == []


def _by_a_thread_that_ends(number: int) -> None:
    sender = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), number))
    sender.start()
    sender.join()


def test_what_another_thread_gets_while_they_are_held_comes_when_they_are_heeded_again(
    installed: tuple[Signals, list[str], threading.Event],
) -> None:
    signals, heard, something = installed
    _by_a_thread_that_ends(signal.SIGUSR1)
    assert signals.hold() > 2
    assert heard == ["SIGUSR1"], "what came before has been passed on"
    something.clear()
    _by_a_thread_that_ends(signal.SIGUSR1)
    assert not something.wait(0.1)
    signals.heed()
    assert something.wait(20)
    signals.restore()
    assert heard == ["SIGUSR1"] * 2


def test_what_is_held_comes_to_the_program_that_this_process_becomes() -> None:
    """A wakeup descriptor has a byte for each signal, also of a thread that the exec ends."""
    program = (
        "import os, signal, sys; from fdhandoff.system.signalpipe import SignalPipe; fd = int(sys.argv[1]);"
        "SignalPipe.raise_again(fd, among=[signal.SIGUSR1]);"
        "print(sorted(map(int, signal.sigpending())), fd in map(int, os.listdir('/proc/self/fd')))"
    )

    def become() -> str:
        read, write = os.pipe()
        if os.fork() == 0:
            os.dup2(write, 1)
            signals = Signals({"SIGUSR1": HOOKS}, lambda *_: None)
            signals.install()
            signal.signal(signal.SIGUSR2, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
            fd = signals.hold()
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                unblocked = threading.Thread(
                    target=lambda number=number: (
                        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number]),
                        signal.pthread_kill(threading.get_ident(), number),
                    )
                )
                unblocked.start()
                unblocked.join()
            os.execv(sys.executable, [sys.executable, "-c", program, str(fd)])
        os.close(write)
        with os.fdopen(read) as said:
            return said.read()

    assert Forked(become).result() == f"[{signal.SIGUSR1:d}] False\n"


def test_what_was_not_left_to_this_program_is_let_alone(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    SignalPipe.raise_again(fd, among=signal.valid_signals())
    os.close(fd)
    SignalPipe.raise_again(fd, among=signal.valid_signals())
    read, write = os.pipe()
    SignalPipe.raise_again(read, among=signal.valid_signals())  # empty, and somebody could still write to it
    os.close(write)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)


def test_what_was_there_before_comes_back_unless_it_was_changed_since() -> None:
    def mine(*_: object) -> None: ...

    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)
    installed = Signals({"SIGUSR1": HOOKS, "SIGUSR2": HOOKS}, lambda *_: None)
    installed.install()
    signal.signal(signal.SIGUSR2, mine)
    installed.restore()
    try:
        assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)) == (before[0], mine)
    finally:
        signal.signal(signal.SIGUSR2, before[1])


def test_in_another_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    installed = Signals(DEFAULT, lambda *_: None)
    thread = threading.Thread(target=installed.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("actions", [{"SIGNONE": STOP}, {"HUP": STOP}, {"SIGHUP": "reload"}])
def test_nonsense_is_refused(actions: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="names such as SIGHUP to upgrade, stop or hooks"):
        Signals(actions, lambda *_: None)


def test_a_second_signal_is_the_same_at_first_and_hurries_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    requests = StopRequests()
    assert not requests.pending
    assert requests.judge(by_signal=True) == requests.FIRST
    assert requests.pending
    now[0] += 0.9
    assert requests.judge(by_signal=True) == requests.SAME
    assert requests.judge(by_signal=False) == requests.HURRY
    now[0] += 0.2
    assert requests.judge(by_signal=True) == requests.HURRY
    requests.forget()
    assert not requests.pending
    assert requests.judge(by_signal=True) == requests.FIRST
