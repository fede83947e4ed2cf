"""Real, unmodified servers, upgraded again and again under clients that open a connection for each request; none retries."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs, needs_that
from . import Load, Service, quick, rude

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS = Path(__file__).parents[1] / "servers" / "unmodified"


class Server:
    """A command, what ``run`` is told besides, and how release ``number`` is deployed: most need nothing."""

    def __init__(
        self,
        command: list[str],
        *options: str,
        bind: str = "http=127.0.0.1:0",
        deploy: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.command = command
        self.options = options
        self.bind = bind
        self.deploy = deploy


def module(name: str) -> list[str]:
    """The program of a Python package, which may not be on the PATH of whoever runs the tests."""
    there = shutil.which(name, path=sysconfig.get_path("scripts"))
    needs_that(there is not None, f"{name}: pip install {name}")
    return [sys.executable, "-m", name]


def uvicorn(folder: Path) -> Server:
    return Server([*module("uvicorn"), "--app-dir", str(PROGRAMS), "--log-level", "warning", "asgi:app"])


def gunicorn(folder: Path) -> Server:
    return Server([
        *module("gunicorn"), "--chdir", str(PROGRAMS), "--log-level", "warning", "--no-control-socket",
        "-k", "gthread", "--threads", "8", "wsgi:app",
    ])  # fmt: skip


def node(folder: Path) -> Server:
    return Server([needs("node", "nodejs"), str(PROGRAMS / "server.js")])


def nginx(folder: Path) -> Server:
    """As it comes: the same ``listen`` line in its configuration and behind ``--bind``, and nothing else: it is recognised."""
    address = f"127.{os.getpid() % 250 + 1}.{random.randrange(250)}.{random.randrange(1, 250)}:8080"

    def deploy(number: int) -> None:
        text = (PROGRAMS / "nginx.conf").read_text(encoding="utf-8")
        (folder / "nginx.conf").write_text(text % {"folder": folder, "address": address, "number": number})

    program = [needs("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return Server(
        [*program, "-g", "daemon off;"], "--check", shlex.join([*program, "-t", "-q"]),
        bind=f"http={address}", deploy=deploy,
    )  # fmt: skip


SERVERS = {
    "uvicorn": uvicorn,
    "gunicorn": gunicorn,
    "node": node,
    "nginx": nginx,
    "rude": lambda folder: Server(rude()),
}


def test_an_operator_reads_what_to_expect_and_nothing_where_that_was_not_wanted(tmp_path: Path) -> None:
    server = uvicorn(tmp_path)
    with Service(tmp_path, *quick(), command=server.command) as service:
        assert "python -m fdhandoff.servers.uvicorn instead loses none" in service.running.text()
        service.upgrade()
        assert service.running.text().count("instead loses none") == 1, "it is said once"
        code, output, _ = service.command("--dry-run", "--json")
        assert code == 0
        assert "instead loses none" in output
        assert service.stop() == 0
    quiet = [*server.command[:-1], "--fd", "3", server.command[-1]]
    with Service(tmp_path, *quick("--server", "none"), command=quiet) as service:
        assert "instead loses none" not in service.running.text()
        assert service.stop() == 0


def upgraded(folder: Path, name: str, times: int) -> None:
    server = SERVERS[name](folder)
    server.deploy(1)
    options = ["--settle", "0.1", "--probation", "0.1", "--grace", "20", *server.options]
    with (
        Service(folder, *options, command=server.command, bind=server.bind) as service,
        Load(service.address(), 3) as load,
    ):
        for number in range(2, times + 2):
            server.deploy(number)
            done = service.upgrade()
            assert done["result"] == "done", done
            load.heard(number, 5)
        service.settled(times + 1)
        load.end()
        answered = len(load.answers)
        assert not load.failures, (answered, load.failures)
        assert set(load.generations()) == set(range(1, times + 2))
        print(f"{name}: {times} upgrades, {answered} requests, {sum(load.failures.values())} failed")
        assert service.stop() in (0, 143)


@pytest.mark.parametrize("name", SERVERS)
def test_twenty_upgrades_fail_no_request(tmp_path: Path, name: str) -> None:
    upgraded(tmp_path, name, 20)


@pytest.mark.soak
@pytest.mark.parametrize("name", SERVERS)
def test_two_hundred_upgrades_fail_no_request(tmp_path: Path, name: str) -> None:
    upgraded(tmp_path, name, 200)


def test_several_listeners_are_all_switched(tmp_path: Path) -> None:
    """Two ports, and connections of both are waited for."""
    command = rude()
    command[2] = command[2].replace(
        "while True:\n    connection",
        "second = socket.socket(fileno=4); second.setblocking(True)\n"
        "def other():\n"
        "    while True:\n"
        "        threading.Thread(target=serve, args=(second.accept()[0],), daemon=True).start()\n"
        "threading.Thread(target=other, daemon=True).start()\n"
        "while True:\n    connection",
    )
    with (
        Service(tmp_path, *quick("--bind", "other=[::1]:0"), command=command) as service,
        Load(service.address(0), 2) as one,
        Load(service.address(1), 2) as two,
    ):
        for number in range(2, 7):
            service.upgrade()
            one.heard(number)
            two.heard(number)
        one.end()
        two.end()
        assert not one.failures + two.failures
