"""Many connections at once: those that rest and websockets with their sessions move in one upgrade, and none is lost."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import pytest

from ..cli import free_port
from . import Client
from .test_chat import Chat, Talker

LIBRARY = "websockets-sansio"


@pytest.fixture
def descriptors() -> None:
    """As many as may be had: a client has one for each connection."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(("idle", "sessions"), [(500, 100), pytest.param(10_000, 2_000, marks=pytest.mark.soak)])
def test_resting_connections_and_sessions_move_in_one_upgrade(tmp_path: Path, idle: int, sessions: int) -> None:
    port = free_port()
    with contextlib.ExitStack() as servers, contextlib.ExitStack() as stack:
        old = Chat(tmp_path, port, LIBRARY, 1)
        servers.callback(old.stop)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(idle)]
        for client in clients:
            assert client.ask() == 1
        talkers = [stack.enter_context(contextlib.closing(Talker(port))) for _ in range(sessions)]
        for number, talker in enumerate(talkers):
            assert talker.ask(f"/join {number}") == (1, f"you are in {number}")
        new = Chat(tmp_path, port, LIBRARY, 2)
        servers.callback(new.stop)
        began = time.monotonic()
        assert old.ends() == 0, old.text()
        print(f"{idle} resting, {sessions} sessions: the old process was gone after {time.monotonic() - began:.2f} s")
        assert f"{idle + sessions} connections moved on, 0 ended here" in old.text()
        for client in clients:
            assert client.ask() == 2
        for number, talker in enumerate(talkers):
            assert talker.ask("hi") == (2, f"somebody@{number} #1: hi")
