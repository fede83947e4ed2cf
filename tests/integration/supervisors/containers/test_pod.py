"""The shape of a pod: a readiness endpoint, a load balancer that is slow to believe it, ``preStop``, then TERM."""

from __future__ import annotations

import http.client
import sys
import threading
import time

import pytest

from ...cli import free_port, wait_for
from ...master import RUDE, Load, request
from . import Containers, cli

LAG = 1.0  # seconds from a readiness that turned false to the last client that was told


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Balancer:
    """Sends clients for as long as the endpoint was ready ``LAG`` seconds ago, as a cluster's routing does."""

    def __init__(self, load: Load, health: int) -> None:
        self.load = load
        self._health = health
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self.unready = 0.0

    def _watch(self) -> None:
        wait_for(lambda: not ready(self._health), "the endpoint to be unready")
        self.unready = time.monotonic()
        threading.Event().wait(LAG)
        self.load.end()

    def join(self) -> None:
        self._thread.join(30)


@pytest.fixture
def pod(containers: Containers) -> tuple[Containers, int, int]:
    port, health = free_port(), free_port()
    run = cli(
        "run", "--path", "/vol/app.sock", "--bind", f"http=127.0.0.1:{port}", "--health", f"127.0.0.1:{health}",
        "--pre-stop-delay", "3s", "--grace", "10s", "--", sys.executable, "-c", RUDE,
    )  # fmt: skip
    containers.start("pod", run).says("generation 1 serves")
    return containers, port, health


def test_a_pod_that_ends_by_its_pre_stop_hook_fails_no_request(pod: tuple[Containers, int, int]) -> None:
    containers, port, health = pod
    one = containers.running["pod"]
    load = Load(("127.0.0.1", port))
    with load:
        balancer = Balancer(load, health)
        load.heard(1)
        hook = one.verb("drain", "--wait", "/vol/app.sock")
        balancer.join()
        late = [began for began, _, _ in load.answers if began > balancer.unready]
    assert late, "connections that came after the readiness had turned false were served"
    assert not load.failures
    assert one.ends() == 0
    # The hook ends with the container that it is in, if not before; 255 is podman's own, which finds it gone already.
    assert hook.returncode in (0, 137, 255), hook.stderr


def test_term_right_after_a_drain_that_was_asked_for_does_not_cut_it_short(pod: tuple[Containers, int, int]) -> None:
    containers, port, health = pod
    one = containers.running["pod"]
    load = Load(("127.0.0.1", port))
    with load:
        balancer = Balancer(load, health)
        load.heard(1)
        assert one.verb("drain", "/vol/app.sock").returncode == 0
        containers.do("kill", "--signal", "TERM", "pod")
        slow = request(("127.0.0.1", port), "/sleep1 ")
        balancer.join()
    assert slow[1] == 1
    assert not load.failures
    assert one.ends() == 0
