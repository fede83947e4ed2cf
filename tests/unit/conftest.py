"""What the tests of accepting share: a gate, and a listener with room for many."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from fdhandoff.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.release()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as made:
        yield made
