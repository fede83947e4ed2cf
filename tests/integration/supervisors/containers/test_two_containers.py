"""Two containers that share a volume and nothing else, not even the user: one hands its service to the other."""

from __future__ import annotations

import os
import sys

import pytest

from ...cli import free_port
from ...master import RUDE, Load, quick, request
from . import GROUP, Container, Containers, cli

HANDOFFS = 6
USERS = (1000, 2000)

#: A service by ``Service``. Its answers name the container and the generation.
SERVICE = f"""
import sys
from fdhandoff import Service
name, port = sys.argv[1:]
with Service("app", path="/vol/app.sock", allow_uids={USERS}, socket_mode=0o660, socket_group={GROUP}, probation=1) as service:
    service.listen("http", f"127.0.0.1:{{port}}")
    service.ready()
    print(f"{{name}} serves as generation {{service.generation.number}}", flush=True)
    def serve(connection, _):
        with connection:
            connection.settimeout(10)
            if connection.recv(4096):
                body = f"{{name}} {{service.generation.number}} 0".encode()
                connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    service.serve(serve)
    service.drain()
"""


def service(containers: Containers, name: str, port: int, user: int) -> Container:
    return containers.start(name, [sys.executable, "-c", SERVICE, name, str(port)], user=user)


def test_a_service_goes_from_container_to_container_and_from_user_to_user(containers: Containers) -> None:
    port = free_port()
    old = service(containers, "c1", port, USERS[0])
    old.says("c1 serves as generation 1")
    with Load(("127.0.0.1", port)) as load:
        for number in range(2, HANDOFFS + 2):
            new = service(containers, f"c{number}", port, USERS[(number + 1) % 2])
            new.says(f"c{number} serves as generation {number}")
            load.heard(number)
            assert old.ends() == 0, old.text()
            old = new
    assert not load.failures
    old.stop()
    assert old.ends() == 0


def test_a_bad_container_costs_nobody_anything(containers: Containers) -> None:
    port = free_port()
    old = service(containers, "old", port, USERS[0])
    old.says("old serves")
    broken = SERVICE.replace("    service.ready()", "    raise SystemExit('this image is broken')")
    with Load(("127.0.0.1", port)) as load:
        bad = containers.start("bad", [sys.executable, "-c", broken, "bad", str(port)], user=USERS[1])
        assert bad.ends() == 1
        assert "this image is broken" in bad.text()
        load.heard(1)
        good = service(containers, "good", port, USERS[1])
        good.says("good serves")
        assert old.ends() == 0
        load.heard(max(load.generations()))
    assert not load.failures


def master(containers: Containers, name: str, port: int, user: int) -> Container:
    allowed = [word for one in USERS for word in ("--allow-uid", str(one))]
    return containers.start(
        name,
        cli(
            "run", "--path", "/vol/app.sock", "--takeover", "always", "--bind", f"http=127.0.0.1:{port}",
            "--socket-mode", "0660", "--socket-group", str(GROUP), *allowed, *quick("--env", f"RELEASE={name}"),
            "--", sys.executable, "-c", RUDE,
        ),
        user=user,
    )  # fmt: skip


def test_a_master_takes_over_from_the_master_in_another_container(containers: Containers) -> None:
    """With a server that knows nothing of it, and dies at once of TERM."""
    port = free_port()
    old = master(containers, "c1", port, USERS[0])
    old.says("generation 1 serves")
    with Load(("127.0.0.1", port)) as load:
        for number in range(2, HANDOFFS + 2):
            new = master(containers, f"c{number}", port, USERS[(number + 1) % 2])
            new.says(f"generation {number} serves")
            load.heard(number)
            assert old.ends() == 0, old.text()
            old = new
    assert not load.failures
    old.stop()
    assert old.ends() == 0
    assert not [name for name in os.listdir(containers.volume) if not name.endswith(".lock")]


@pytest.mark.parametrize("user", [3000])
def test_a_user_who_was_not_allowed_is_told_so(containers: Containers, user: int) -> None:
    port = free_port()
    old = service(containers, "old", port, USERS[0])
    old.says("old serves")
    stranger = service(containers, "stranger", port, user)
    assert stranger.ends() == 1
    assert "uid 3000 is not allowed here" in stranger.text() or "must be allowed on purpose" in stranger.text()
    assert request(("127.0.0.1", port))[0] == "old"
