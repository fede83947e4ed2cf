"""Signals as requests."""

from __future__ import annotations

import signal
import threading

import pytest

from fdhandoff import signals
from fdhandoff.signals import DEFAULT, HOOKS, STOP, UPGRADE, Signals, StopRequests


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
