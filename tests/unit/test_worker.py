"""One thread that does jobs in their order."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from fdhandoff.worker import Worker


def test_jobs_are_done_in_order_by_one_thread() -> None:
    worker, done = Worker("test"), []
    for number in range(100):
        worker.post(lambda number=number: done.append((number, worker.is_me())))
    worker.end()
    assert done == [(number, True) for number in range(100)]
    assert not worker.is_me()


def test_a_fault_in_a_job_is_shown_and_the_next_one_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    worker, done = Worker("test"), []
    worker.post(lambda: 1 / 0)
    worker.post(lambda: done.append(1))
    worker.end()
    assert done == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_job_may_end_the_worker() -> None:
    worker, ended = Worker("test"), threading.Event()

    def job() -> None:
        worker.end()
        ended.set()

    worker.post(job)
    assert ended.wait(10)
    worker._thread.join(10)
    assert not worker._thread.is_alive()


def test_the_descriptor_stays_until_who_ends_it_has_done_with_it() -> None:
    """The thread may have been woken by something else, and be through before the word that it is to end was written."""

    class Late:
        def set(self) -> None:
            fd = mail._write
            mail.set()
            worker._thread.join(10)
            assert not worker._thread.is_alive()
            os.write(fd, (1).to_bytes(8, "little"))

        def __getattr__(self, name: str) -> Any:
            return getattr(mail, name)

    worker = Worker("test")
    mail, worker._mail = worker._mail, Late()  # type: ignore[assignment]
    worker._wake = worker._mail.set  # type: ignore[method-assign]
    worker.end()
    assert mail.fileno() == -1


def test_what_is_posted_too_late_is_not_an_error() -> None:
    worker = Worker("test")
    worker.end()
    worker.post(lambda: None)
