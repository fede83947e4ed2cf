"""What many upgrades leave behind: nothing. And how fast they may follow each other."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ..cli import wait_for
from . import Load, Service, rude
from .test_canary import COMMAND

SWIFT = ("--settle", "0", "--probation", "0", "--max-draining", "20")


def descriptors(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0])
        except FileNotFoundError:
            pass
    return sorted(found)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int) -> int:
    """KiB of its own: PSS."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def environment(service: Service) -> list[bytes]:
    """That of the serving generation, less what is meant to differ."""
    (pid,) = next(iter(service.generations().values()))["pids"]
    own = (b"FDHANDOFF_GENERATION=", b"LISTEN_PID=")
    return sorted(line for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if not line.startswith(own))


def worn(folder: Path, before: int, times: int) -> None:
    with Service(folder, *SWIFT, env={"SLOW": "0"}) as service:

        def upgraded(count: int) -> None:
            for _ in range(count):
                number = service.upgrade()["to"]
                service.settled(number)
            wait_for(lambda: len(children(service.pid)) == 2, "one server and the relay of its output")

        def state() -> dict[str, Any]:
            return {
                "descriptors": Counter(descriptors(service.pid)),
                "children": len(children(service.pid)),
                "environment": environment(service),
                "threads": len(os.listdir(f"/proc/{service.pid}/task")),
            }

        upgraded(before)  # all that is opened once, the history that status keeps, and what the allocator keeps
        first, weight = state(), memory(service.pid)
        upgraded(times)
        # None more. (The connection by which the master was asked last is closed a moment later: it may have been counted.)
        wait_for(lambda: state()["descriptors"] <= first["descriptors"], f"{first}, not {state()}")
        last = state()
        for what in ("children", "environment", "threads"):
            assert last[what] == first[what]
        heavier = memory(service.pid) - weight
        print(f"{times} upgrades: {heavier} KiB more than {weight}, {sum(first['descriptors'].values())} descriptors")
        assert heavier < 512


def test_thirty_upgrades_leave_the_master_as_it_was(tmp_path: Path) -> None:
    worn(tmp_path, 15, 30)


@pytest.mark.soak
def test_two_hundred_upgrades_leave_the_master_as_it_was(tmp_path: Path) -> None:
    worn(tmp_path, 120, 200)


NOTIFYING = [
    COMMAND[0],
    "-I",
    "-S",
    "-c",
    COMMAND[2].replace(
        "while True:",
        "with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:\n"
        "    notify.connect(os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1)); notify.send(b'READY=1')\n"
        "while True:",
        1,
    ),
]


def hastened(folder: Path, seconds: float, clients: int) -> None:
    """Ten upgrades a second are asked for; those that find one starting become one with the next."""
    import signal

    with (
        Service(folder, "--ready", "notify", *SWIFT, command=NOTIFYING) as service,
        Load(service.address(), clients) as load,
    ):
        began = time.monotonic()
        asked = 0
        while time.monotonic() < began + seconds:
            service.running.signal(signal.SIGHUP)
            asked += 1
            pause = began + asked / 10
            wait_for(lambda pause=pause: time.monotonic() >= pause)
        wait_for(lambda: service.status()["state"] == "serving")
        service.settled()
        load.end()
        counters = service.status()["counters"]
        print(f"{asked} asked for, {counters}, {len(load.answers)} requests, {sum(load.failures.values())} failed")
        assert not load.failures
        assert counters["failed"] == 0
        assert counters["upgrades"] >= seconds  # at least one a second, on the slowest machine


def test_ten_upgrades_a_second_fail_no_request(tmp_path: Path) -> None:
    hastened(tmp_path, 3, 2)


@pytest.mark.soak
def test_ten_upgrades_a_second_for_long(tmp_path: Path) -> None:
    hastened(tmp_path, 18, 4)


def wake_ups(pid: int) -> int:
    """How often a thread of it went to sleep: so often it had been woken."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        count += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return count


def test_a_master_sleeps_while_its_service_serves(tmp_path: Path) -> None:
    """Not one wake-up in ten seconds, whatever its clients do, with everything on."""
    config = tmp_path / "run.toml"
    config.write_text("# the command line says it all\n") if sys.version_info >= (3, 11) else None
    more = ["--config", str(config)] if config.exists() else []
    options = (
        "--ready",
        "http:/",
        "--workers",
        "2",
        "--bind",
        "udp:127.0.0.1:0",
        "--bind",
        f"unix:{tmp_path}/u",
        *more,
    )
    with (
        Service(tmp_path, *SWIFT, *options, command=rude("{fd:http}"), env={"SLOW": "0"}) as service,
        Load(service.address(), 2) as load,
    ):
        service.upgrade()
        service.settled(2)

        def rests(seconds: float) -> bool:
            before, until = wake_ups(service.pid), time.monotonic() + seconds
            wait_for(lambda: time.monotonic() >= until)
            return wake_ups(service.pid) == before

        wait_for(lambda: rests(2), "the end of what an upgrade leaves to do")
        answered = len(load.answers)
        assert rests(10)
        assert len(load.answers) > answered + 100, "it did not rest for want of work"
