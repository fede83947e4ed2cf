"""How many connections ``status`` says that a generation has, held against clients that know: of servers that count nothing."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ..cli import DEADLINE, wait_for
from . import Service, quick
from .test_servers import Server, nginx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

#: It answers as often as it is asked on one connection, and every process of it accepts from all that it was given.
PATIENT = """
import os, selectors, socket, threading
def serve(connection):
    with connection:
        while connection.recv(1000):
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
def accept(listener):
    listener.setblocking(True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
for fd in range(4, 3 + int(os.environ["LISTEN_FDS"])):
    threading.Thread(target=accept, args=(socket.socket(fileno=fd),), daemon=True).start()
accept(socket.socket(fileno=3))
"""

#: Each connection is given to a process of its own, which leaves its family: another session, and init's child.
ESCAPING = """
import os, socket
listener = socket.socket(fileno=3); listener.setblocking(True)
while True:
    connection, _ = listener.accept()
    child = os.fork()
    if not child:
        os.setsid()
        if os.fork():
            os._exit(0)
        listener.close()
        while connection.recv(1000):
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        os._exit(0)
    os.waitpid(child, 0)
    connection.close()
"""


class Crowd:
    """Clients with one connection each."""

    def __init__(self) -> None:
        self.clients: list[socket.socket] = []

    def come(self, count: int, address: Any, *, speaks: bool = True) -> None:
        for _ in range(count):
            family = (
                socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            )
            sock = socket.socket(family, socket.SOCK_STREAM)
            self.clients.append(sock)
            sock.settimeout(DEADLINE)
            sock.connect(address)
            if speaks:
                sock.sendall(REQUEST)
                assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")

    def go(self, count: int) -> None:
        for _ in range(count):
            self.clients.pop().close()

    def close(self) -> None:
        self.go(len(self.clients))


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with contextlib.closing(Crowd()) as crowd:
        yield crowd


def shows(service: Service, *active: int) -> None:
    """The connections of each generation with a process, the oldest first."""

    def look() -> list[int]:
        return [one["active"] for _, one in sorted(service.generations().items())]

    wait_for(lambda: look() == list(active), f"{active} connections, not {look()}")


@pytest.mark.parametrize("name", ["nginx", "patient"])
def test_every_connection_is_counted_as_long_as_it_lasts(tmp_path: Path, crowd: Crowd, name: str) -> None:
    """Idle ones between two requests, silent ones that were accepted, and of none that was closed."""
    server = nginx(tmp_path) if name == "nginx" else Server([sys.executable, "-c", PATIENT])
    server.deploy(1)
    with Service(tmp_path, *quick(*server.options), command=server.command, bind=server.bind) as service:
        address = service.address()
        shows(service, 0)
        crowd.come(20, address)
        shows(service, 20)
        crowd.come(5, address, speaks=False)
        shows(service, 25)
        crowd.go(10)
        shows(service, 15)
        crowd.close()
        shows(service, 0)


def test_what_waits_is_the_queues_and_not_the_generations(tmp_path: Path, crowd: Crowd) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with Service(tmp_path, *quick("--ready", "delay:0.1"), command=command) as service:
        crowd.come(7, service.address(), speaks=False)
        wait_for(lambda: service.status()["listeners"][0]["queue"] == 7)
        shows(service, 0)


def test_both_families_of_one_listener_are_counted_and_nothing_else(tmp_path: Path, crowd: Crowd) -> None:
    """Another listener with the same port on another address is another's."""
    with Service(tmp_path, *quick(), bind="http=:0", command=[sys.executable, "-c", PATIENT]) as service:
        port = service.address()[1]
        crowd.come(3, ("127.0.0.1", port))
        crowd.come(4, ("::1", port))
        crowd.come(2, ("127.0.0.9", port))
        shows(service, 9)


def test_two_services_on_one_port_count_their_own(tmp_path: Path, crowd: Crowd) -> None:
    command = [sys.executable, "-c", PATIENT]
    for name in "ab":
        (tmp_path / name).mkdir()
    with Service(tmp_path / "a", *quick(), bind="127.0.0.2:0", command=command) as one:
        port = one.address()[1]
        with Service(tmp_path / "b", *quick(), bind=f"127.0.0.3:{port}", command=command) as other:
            crowd.come(2, ("127.0.0.2", port))
            crowd.come(5, ("127.0.0.3", port))
            shows(one, 2)
            shows(other, 5)


def test_listeners_of_several_kinds_are_counted_together(tmp_path: Path, crowd: Crowd) -> None:
    options = quick("--bind", f"local=unix:{tmp_path}/app", "--bind", "other=[::1]:0")
    with Service(tmp_path, *options, command=[sys.executable, "-c", PATIENT]) as service:
        crowd.come(3, service.address())
        crowd.come(4, f"{tmp_path}/app")
        crowd.come(5, service.address(2))
        shows(service, 12)
        service.upgrade(wait="served")
        crowd.come(2, f"{tmp_path}/app")
        shows(service, 12, 2)


def test_connections_stay_with_their_generation_whatever_its_state(tmp_path: Path, crowd: Crowd) -> None:
    options = ["--settle", "0.05", "--probation", "0.1", "--grace", "60s", "--workers", "3"]
    with Service(tmp_path, *options, command=[sys.executable, "-c", PATIENT]) as service:
        address = service.address()
        crowd.come(30, address)
        shows(service, 30)
        service.upgrade()
        crowd.come(4, address)
        shows(service, 30, 4)
        service.upgrade()
        crowd.come(2, address)
        shows(service, 30, 4, 2)
        assert [one["state"] for _, one in sorted(service.generations().items())] == ["draining", "draining", "serving"]
        crowd.go(2)
        shows(service, 30, 4, 0)
        crowd.go(4)
        shows(service, 30, 0)  # the second one has drained, and is gone


def test_a_connection_of_a_process_that_left_the_family_is_counted(tmp_path: Path, crowd: Crowd) -> None:
    """And so the generation is not told to stop before it is closed."""
    options = ["--settle", "0.05", "--probation", "0.1", "--grace", "60s"]
    with Service(tmp_path, *options, command=[sys.executable, "-c", ESCAPING]) as service:
        crowd.come(3, service.address())
        shows(service, 3)
        service.upgrade()
        shows(service, 3, 0)
        crowd.close()
        service.settled(2)


def test_a_program_that_does_not_count_has_no_number_of_accepted_connections(tmp_path: Path, crowd: Crowd) -> None:
    with Service(tmp_path, *quick(), command=[sys.executable, "-c", PATIENT]) as service:
        crowd.come(3, service.address())
        assert service.generations()[1]["accepted"] is None
