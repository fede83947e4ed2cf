"""The master as process 1 of a container: its signals, its orphans, its exit status, and upgrades inside."""

from __future__ import annotations

import os
import signal
import sys
import threading

from fdhandoff.system.process import command_name

from ...cli import free_port, wait_for
from ...master import RUDE, Load, quick, request
from . import Container, Containers, cli

UPGRADES = 20

#: A server that leaves behind, each second process of it, an orphan that ends at once: process 1 is to wait for it.
LITTER = (
    """
import os
for _ in range(20):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
"""
    + RUDE
)


def master(port: int, *options: str, script: str = RUDE) -> list[str]:
    address = f"http=127.0.0.1:{port}"
    return cli("run", "--path", "/vol/app.sock", "--bind", address, *options, "--", sys.executable, "-c", script)


def serves(container: Container) -> None:
    container.says("generation 1 serves")


def zombies(parent: int) -> list[int]:
    """The dead children of ``parent`` that nobody has waited for."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                state, above = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(above) == parent and state == "Z":
            found.append(pid)
    return found


def test_orphans_of_all_generations_are_waited_for(containers: Containers) -> None:
    one = containers.start("litter", master(port := free_port(), *quick(), script=LITTER))
    serves(one)
    for _ in range(3):
        done = one.verb("upgrade", "/vol/app.sock")
        assert done.returncode == 0, done.stderr
    assert request(("127.0.0.1", port))[1] == 4
    first = one.host_pid()
    wait_for(lambda: not zombies(first), f"the orphans of {first} to be waited for: {zombies(first)}")


def test_twenty_upgrades_inside_a_container_cost_its_users_nothing(containers: Containers) -> None:
    one = containers.start("app", master(port := free_port(), *quick("--probation", "0", "--settle", "0.05")))
    serves(one)
    first = one.host_pid()
    with Load(("127.0.0.1", port)) as load:
        for number in range(2, UPGRADES + 2):
            done = one.verb("upgrade", "/vol/app.sock")
            assert done.returncode == 0, done.stderr
            load.heard(number, 5)
    assert not load.failures
    assert one.host_pid() == first


def test_a_stop_of_the_container_drains_and_ends_with_status_0(containers: Containers) -> None:
    one = containers.start("app", master(port := free_port(), "--grace", "8s"))
    serves(one)
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(request(("127.0.0.1", port), "/sleep2 ")[1]))
    with Load(("127.0.0.1", port)) as load:
        slow.start()
        load.heard(1)
    one.stop(10)
    slow.join(20)
    assert answers == [1], "the request that was inside is answered"
    assert one.ends() == 0
    assert not [name for name in os.listdir(containers.volume) if not name.endswith(".lock")]


def test_the_status_of_a_command_that_cannot_serve_is_the_containers(containers: Containers) -> None:
    one = containers.start("app", master(free_port(), "--env", "FAULT=exit7"))
    assert one.ends() == 7, one.text()


def test_every_signal_of_the_master_reaches_process_1(containers: Containers) -> None:
    one = containers.start("app", master(free_port(), *quick()))
    serves(one)
    for name, heard in (("HUP", "generation 2 is ready"), ("TTIN", "has 2 workers"), ("TTOU", "has 1 worker ")):
        done = containers.do("kill", "--signal", name, one.name)
        assert done.returncode == 0, done.stderr
        one.says(heard)
    one.says("upgraded from generation 1")
    containers.do("kill", "--signal", "TERM", one.name)
    assert one.ends() == 0


def test_a_killed_container_leaves_nothing_that_runs(containers: Containers) -> None:
    one = containers.start("app", master(port := free_port(), *quick()))
    serves(one)
    first = one.host_pid()
    (server,) = [int(pid) for pid in _children(first) if command_name(int(pid)) != "fdh-relay"]
    os.kill(first, signal.SIGKILL)
    assert one.ends() == 137
    wait_for(lambda: not os.path.exists(f"/proc/{server}"), "the generation to end with its container")
    # The same again: the journal of the dead is no obstacle, though its processes can't be seen any more.
    two = containers.start("again", master(port, *quick()))
    serves(two)
    assert request(("127.0.0.1", port))[1] == 1


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return file.read().split()
