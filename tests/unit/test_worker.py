"""Jobs in their order, by a thread that is there while there are any."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from fdhandoff.worker import Worker

_PATIENCE = 10.0


def _threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_jobs_are_done_in_order_by_the_worker() -> None:
    worker, done = Worker(), []
    for number in range(100):
        worker.post(lambda number=number: done.append((number, worker.is_me(), threading.get_ident())))
    worker.end()
    assert [one[:2] for one in done] == [(number, True) for number in range(100)]
    assert threading.get_ident() not in {one[2] for one in done}
    assert not worker.is_me()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="/proc/self/task shows the threads on Linux alone")
def test_there_is_no_thread_without_a_job() -> None:
    before = _threads()  # one of another test may be about to end
    worker, go_on = Worker(), threading.Event()
    assert not _threads() - before
    worker.post(go_on.wait)  # type: ignore[arg-type]
    assert len(_threads() - before) == 1
    go_on.set()
    deadline = time.monotonic() + _PATIENCE
    while _threads() - before:
        assert time.monotonic() < deadline, "the thread stayed"
    worker.end()


def test_what_is_posted_while_the_thread_is_about_to_end_is_done() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        worker = Worker()
        for _ in range(5000):
            done = threading.Event()
            worker.post(done.set)
            assert done.wait(_PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    worker.end()


@pytest.mark.parametrize("fault", [ZeroDivisionError("by zero"), SystemExit("by an exit")])
def test_a_fault_in_a_job_is_shown_and_the_next_one_is_done(
    fault: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    worker, done = Worker(), []

    def job() -> None:
        raise fault

    worker.post(job)
    worker.post(lambda: done.append(1))
    worker.end()
    assert done == [1]
    assert str(fault) in capsys.readouterr().err


def test_a_job_may_end_the_worker() -> None:
    worker, ended, late = Worker(), threading.Event(), []

    def job() -> None:
        worker.end()
        worker.post(lambda: late.append(1))
        ended.set()

    worker.post(job)
    assert ended.wait(_PATIENCE)
    worker.end()
    assert not late


def test_what_is_posted_too_late_is_not_an_error_and_not_done() -> None:
    worker, late = Worker(), []
    worker.end()
    worker.post(lambda: late.append(1))
    assert not late


def test_where_no_thread_can_be_started_whoever_posts_a_job_does_it() -> None:
    worker, done = Worker(), []
    before = threading.stack_size(1 << 46)  # more than there is of addresses
    try:
        worker.post(lambda: done.append((worker.is_me(), threading.get_ident())))
    finally:
        threading.stack_size(before)
    assert done == [(True, threading.get_ident())]
    worker.post(lambda: done.append((worker.is_me(), 0)))
    worker.end()
    assert done[1:] == [(True, 0)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_nothing_of_it() -> None:
    worker, go_on = Worker(), threading.Event()
    worker.post(go_on.wait)  # type: ignore[arg-type]
    child = os.fork()
    if not child:
        late: list[int] = []
        worker.forget_in_child()
        worker.post(lambda: late.append(1))
        os._exit(len(late))
    go_on.set()
    assert os.waitpid(child, 0)[1] == 0
    worker.end()
