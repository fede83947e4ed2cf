"""Programs with a ``Service`` of their own under a real systemd: one that names its successor, one that keeps its pid, and two
units that hand over to each other. The units are the page's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ...cli import wait_for
from . import Bed, Load, install

if TYPE_CHECKING:
    from .conftest import Boot

ADDRESS = ("127.0.0.1", 8001)

APP = """
import os, threading
from fdhandoff import Service
RELEASE, SAME_PID = {release!r}, {same_pid}
def answer(connection):
    with connection:
        if connection.recv(4096):
            body = f"{{RELEASE}} {{service.generation.number}} {{os.getpid()}}".encode()
            head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body)
            connection.sendall(head + body)
with Service("app", probation=0.3, same_pid=SAME_PID) as service:
    service.listen("http", "127.0.0.1:8001")
    service.ready()
    service.serve(lambda connection, _: threading.Thread(target=answer, args=(connection,)).start())
    service.drain()
"""


def deploy(bed: Bed, release: str, *, place: str = "current", same_pid: bool = False) -> None:
    bed.program(f"app/{place}/bin/app", APP.format(release=release, same_pid=same_pid))


def ends(bed: Bed, unit: str) -> None:
    bed.systemctl("stop", unit)
    assert bed.show(unit, "ActiveState") == "inactive"
    assert bed.show(unit, "Result") == "success"
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/app", check=False).stdout == ""
    assert bed.inside("test", "-e", "/run/app/handoff.sock", check=False).returncode


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_systemd_follows_a_chain_of_successors_under_load(boot: Boot, version: int) -> None:
    bed = boot(version)
    deploy(bed, "1")
    install(bed, "app.service")
    bed.systemctl("start", "app")
    pids = [bed.main_pid("app")]
    with Load(bed, ADDRESS) as load:
        for number in (2, 3, 4):
            deploy(bed, str(number))
            bed.systemctl("reload", "app")
            release, generation, pid = bed.request(ADDRESS)
            assert (release, generation) == (str(number), number)
            wait_for(lambda pid=pid: bed.processes("app") == [pid], f"{pid} alone, not {bed.processes('app')}")
            pids.append(bed.main_pid("app"))
            assert pids[-1] == pid
        assert len(set(pids)) == 4
        assert bed.show("app", "NRestarts") == "0"
        assert bed.show("app", "ActiveState") == "active"
    assert not load.failures
    # And a crash of the last of them is one restart, by systemd.
    bed.inside("kill", "-KILL", str(pids[-1]))
    wait_for(lambda: bed.show("app", "NRestarts") == "1" and bed.show("app", "ActiveState") == "active", "the restart")
    assert bed.request(ADDRESS)[1] == 1
    ends(bed, "app")


def test_a_successor_that_fails_leaves_the_main_process_as_it_is(bed: Bed) -> None:
    deploy(bed, "1")
    install(bed, "app.service")
    bed.systemctl("start", "app")
    pid = bed.main_pid("app")
    with Load(bed, ADDRESS) as load:
        bed.program("app/current/bin/app", "raise SystemExit(3)")
        assert bed.inside("systemctl", "reload", "app", check=False).returncode != 0
        assert (bed.show("app", "ActiveState"), bed.main_pid("app")) == ("active", pid)
        load.heard(1)
    assert not load.failures
    assert bed.processes("app") == [pid]
    ends(bed, "app")


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_the_same_pid_ends_up_with_the_new_code_twice_under_load(boot: Boot, version: int) -> None:
    bed = boot(version)
    deploy(bed, "1", same_pid=True)
    install(bed, "app.service")
    bed.unit("app.service.d/same.conf", "[Service]\nNotifyAccess=main\n")
    bed.reload()
    bed.systemctl("start", "app")
    pid = bed.main_pid("app")
    with Load(bed, ADDRESS) as load:
        for number, release in ((3, "2"), (5, "3")):
            deploy(bed, release, same_pid=True)
            bed.systemctl("reload", "app")
            wait_for(lambda number=number: bed.request(ADDRESS)[1] == number, f"generation {number}")
            wait_for(lambda: bed.processes("app") == [pid], f"{pid} alone, not {bed.processes('app')}")
            assert bed.request(ADDRESS) == (release, number, pid)
            wait_for(lambda: bed.show("app", "ActiveState") == "active", "the end of the reload")
        assert bed.main_pid("app") == pid
        assert bed.show("app", "NRestarts") == "0"
    assert not load.failures
    ends(bed, "app")


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_two_instances_of_a_template_hand_over_to_each_other_under_load(boot: Boot, version: int) -> None:
    bed = boot(version)
    deploy(bed, "b1", place="blue")
    install(bed, "app@.service")
    bed.systemctl("start", "app@blue")
    with Load(bed, ADDRESS) as load:
        for number, (old, new) in enumerate([("blue", "green"), ("green", "blue"), ("blue", "green")], 2):
            deploy(bed, f"{new}{number}", place=new)
            bed.systemctl("start", f"app@{new}")
            assert bed.request(ADDRESS)[:2] == (f"{new}{number}", number)
            wait_for(lambda old=old: bed.show(f"app@{old}", "ActiveState") == "inactive", f"the end of {old}")
            assert bed.show(f"app@{old}", "Result") == "success"
            assert bed.show(f"app@{new}", "ActiveState") == "active"
            load.heard(number)
    assert not load.failures
    ends(bed, "app@green")


def test_a_new_instance_that_fails_leaves_the_old_one_serving(bed: Bed) -> None:
    deploy(bed, "b1", place="blue")
    bed.program("app/green/bin/app", "raise SystemExit(3)")
    install(bed, "app@.service")
    bed.unit("app@green.service.d/once.conf", "[Service]\nRestart=no\n")
    bed.reload()
    bed.systemctl("start", "app@blue")
    with Load(bed, ADDRESS) as load:
        assert bed.inside("systemctl", "start", "app@green", check=False).returncode != 0
        assert bed.show("app@blue", "ActiveState") == "active"
        load.heard(1)
    assert not load.failures
    ends(bed, "app@blue")
