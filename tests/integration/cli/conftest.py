"""A holder with one TCP listener, and verbs that are ended when the test is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from . import Running, stopping
from .mastered import Mastered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a verb that stays; it is ended after the test, the last one first."""
    with contextlib.ExitStack() as stack:

        def begin(*words: str, **options: Any) -> Running:
            running = Running(*words, **options)
            stack.enter_context(stopping(running))
            return running

        yield begin


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "h.sock"


@pytest.fixture
def mastered(tmp_path: Path, start: Start) -> Mastered:
    """A service under a master, not started yet."""
    return Mastered(tmp_path, start)


class Held:
    """Where the holder's listener is."""

    def __init__(self, holder: Running) -> None:
        self.holder = holder
        line = holder.says("holding http")
        host, _, port = line.split()[-1].rpartition(":")
        self.address = (host, int(port))
        holder.says("offered at")


@pytest.fixture
def held(path: Path, start: Start) -> Held:
    """A holder that stays."""
    return Held(start("hold", str(path), "--bind", "http=127.0.0.1:0"))


@pytest.fixture
def given(path: Path, start: Start) -> Held:
    """A holder that gives everything, the path included, to the first taker."""
    return Held(start("hold", str(path), "--once", "--bind", "http=127.0.0.1:0"))
