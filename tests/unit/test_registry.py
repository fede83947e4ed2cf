"""One endpoint for each path that this process answers, whoever uses it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdhandoff
from fdhandoff import registry
from tests.support.forked import Forked


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    found = str(tmp_path / "h.sock")
    yield found
    registry.remove(found)


def test_a_path_has_one_endpoint_however_it_is_written(path: str, tmp_path: Path) -> None:
    endpoint = registry.obtain(path)
    assert registry.obtain(str(tmp_path / "." / "h.sock")) is endpoint
    (tmp_path / "link").symlink_to(tmp_path)
    assert registry.find(str(tmp_path / "link" / "h.sock")) is endpoint
    assert registry.find(str(tmp_path / "other")) is None


def test_the_final_owner_removes_the_path(path: str, tmp_path: Path) -> None:
    registry.obtain(path)
    registry.remove(path)
    registry.remove(path)
    assert os.listdir(tmp_path) == []
    assert registry.find(path) is None


def test_who_hands_over_forgets_the_path_and_leaves_it(path: str) -> None:
    endpoint = registry.obtain(path)
    with socket.socket(fileno=os.dup(endpoint.socket.fileno())) as successor:
        registry.forget(path)
        assert os.path.exists(path)
        registry.adopt(path, socket.socket(fileno=os.dup(successor.fileno())), 5)
    assert fdhandoff.ask(path, "status")["generation"] == 5


def test_a_path_that_somebody_else_bound_anew_is_not_removed(path: str) -> None:
    registry.obtain(path)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        registry.remove(path)
        assert os.path.exists(path)
    os.unlink(path)


def test_a_released_endpoint_answers_again_when_it_is_resumed(path: str) -> None:
    endpoint = registry.obtain(path)
    registry.release(endpoint)
    with pytest.raises(fdhandoff.DeadlineExceeded):
        fdhandoff.ask(path, "status", timeout=0.1)
    registry.resume(endpoint)
    assert fdhandoff.ask(path, "status", timeout=5)["pid"] == os.getpid()


def test_no_thread_is_left_when_the_last_path_is_gone(path: str) -> None:
    registry.obtain(path)
    assert any(thread.name == "fdhandoff-control" for thread in threading.enumerate())
    registry.remove(path)
    assert not any(thread.name == "fdhandoff-control" for thread in threading.enumerate())


def test_a_forked_child_answers_nothing_and_holds_nothing_of_it(path: str) -> None:
    endpoint = registry.obtain(path)

    def child() -> list[object]:
        numbers = [endpoint.socket.fileno()]
        return [registry.find(path) is None, numbers, len(threading.enumerate())]

    assert Forked(child).result() == [True, [-1], 1]
    assert fdhandoff.ask(path, "status")["pid"] == os.getpid()
