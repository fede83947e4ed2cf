"""Who gets a connection, or a datagram, while three generations are alive, each with several workers: never the wrong one."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from ..cli import wait_for
from . import Load, Service, quick
from .test_canary import COMMAND
from .test_kinds import UDP

if TYPE_CHECKING:
    from pathlib import Path

#: Prompt for those who speak at once; who is silent keeps a thread of it busy.
THREADED = COMMAND[2].replace(
    "while True:",
    "import threading\n"
    "def serve(connection):\n"
    "    with connection:\n"
    "        connection.recv(4096); connection.sendall(answer)\n"
    "while True:\n"
    "    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()\n"
    "while True:",
    1,
)


def step(service: Service) -> str:
    return str(service.status()["last_upgrade"]["step"])


def test_a_canary_beside_a_draining_generation_gets_its_share_and_the_draining_one_nothing(tmp_path: Path) -> None:
    """Three generations of three workers each; after the canary was taken back all goes to the one that served."""
    options = quick("--workers", "3", "--grace", "60s", "--canary", "30%:600s")
    with Service(tmp_path, *options, command=[sys.executable, "-c", THREADED]) as service:
        address = service.address()
        with contextlib.closing(socket.create_connection(address)) as silent:
            wait_for(lambda: service.generations()[1]["active"] == 1)
            assert service.command("--canary", "none")[0] == 0
            with Load(address, 2) as load:
                assert service.command("--no-wait")[0] == 0
                wait_for(lambda: step(service) == "canary 30%", "the canary")
                began = time.monotonic()
                wait_for(lambda: sum(load.generations(began).values()) >= 3000, "3,000 connections")
                shares = load.generations(began)
                assert set(shares) == {2, 3}
                assert 0.26 <= shares[3] / sum(shares.values()) <= 0.34
                assert {number: one["share"] for number, one in service.generations().items()} == {
                    1: 0.0,
                    2: 0.7,
                    3: 0.3,
                }
                assert all(len(one["pids"]) == 3 for one in service.generations().values())
                assert service.command("--abort")[0] == 0
                after = time.monotonic()
                load.heard(2, 500)
                assert set(load.generations(after)) == {2}
                assert not load.failures
            silent.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"- 1 " in silent.recv(1000)
        service.settled(2)


def test_a_canary_of_udp_gets_whole_flows_and_gives_them_back(tmp_path: Path) -> None:
    options = quick("--canary", "25%:600s", "--ready", "delay:0.2")
    with (
        Service(tmp_path, *options, bind="udp:127.0.0.1:0", command=[sys.executable, "-c", UDP]) as service,
        contextlib.ExitStack() as stack,
    ):
        host, _, port = service.status()["listeners"][0]["address"].removeprefix("udp:").rpartition(":")
        flows = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(400)]
        for flow in flows:
            flow.settimeout(10)
            flow.connect((host, int(port)))

        def ask() -> list[int]:
            """Of each flow, who answered it."""
            said = []
            for flow in flows:
                flow.send(b"x")
                said.append(int(flow.recv(100).split()[0]))
            return said

        assert set(ask()) == {1}
        assert service.command("--no-wait")[0] == 0
        wait_for(lambda: step(service) == "canary 25%", "the canary")
        first = ask()
        # Of 400 by chance: 100, and in 999,999 of a million cases fewer than 43 away from that.
        assert 57 <= Counter(first)[2] <= 143
        assert all(ask() == first for _ in range(5))
        assert service.command("--abort")[0] == 0
        assert set(ask()) == {1}
        service.settled(1)
