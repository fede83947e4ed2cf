"""Workers that are replaced one by one, because they are old or have become fat."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from fdhandoff.client import ask

from ..cli import DEADLINE, verb, wait_for
from . import Load, Service, kill, polite, quick, request, rude

if TYPE_CHECKING:
    from pathlib import Path


def telling(command: list[str], notes: Path) -> list[str]:
    """It notes when it accepts, and when it is told to stop."""
    command = [*command]
    command[2] = (
        f"def note(what):\n    with open({str(notes)!r}, 'a') as file: file.write(f'{{what}} {{os.getpid()}}\\n')\n"
        + command[2]
    ).replace("lambda *_: stop.append(1)", "lambda *_: (note('told'), stop.append(1))")
    command[2] = command[2].replace(
        'if os.environ.get("NOTIFY_SOCKET")', "note('serves')\nif os.environ.get('NOTIFY_SOCKET')"
    )
    assert command[2].count("note(") == 3
    return command


def pids(service: Service, number: int = 1) -> set[int]:
    return set(service.generations()[number]["pids"])


@pytest.mark.parametrize("ready", ["accept", "notify"])
def test_old_workers_are_replaced_and_no_request_fails(tmp_path: Path, ready: str) -> None:
    notes = tmp_path / "notes"
    options = quick("--workers", "2", "--worker-lifetime", "1s", "--ready", ready)
    with Service(tmp_path, *options, command=telling(polite(), notes)) as service, Load(service.address(), 3) as load:
        first = pids(service)
        wait_for(lambda: service.running.text().count("has replaced") >= 4, "four replacements")
        assert service.status()["counters"]["recycled"] >= 4
        assert not first & pids(service)
        load.end()
        assert not load.failures
        assert set(load.generations()) == {1}
        # The new one first, and then the old one is told.
        pairs = re.findall(r"worker (\d+) has replaced (\d+)", service.running.text())
        lines = notes.read_text().splitlines()
        for new, old in pairs[:4]:
            assert lines.index(f"serves {new}") < lines.index(f"told {old}")
        assert service.upgrade()["result"] == "done"


def test_a_fat_worker_is_replaced(tmp_path: Path) -> None:
    command = polite()
    eat = '            if b"/eat" in asked:\n                fat.append(b"x" * (80 << 20))\n'
    command[2] = command[2].replace('            if b"/sleep" in asked:', eat + '            if b"/sleep" in asked:')
    command[2] = "fat = []\n" + command[2]
    with Service(tmp_path, *quick("--worker-memory", "70M:200ms"), command=command) as service:
        address = service.address()
        _, _, thin = request(address)
        assert request(address, "/eat")[2] == thin
        service.running.says("MiB of memory, more than 70")
        wait_for(lambda: thin not in pids(service), "the fat one to go")
        assert request(address)[1] == 1
        assert service.status()["counters"]["recycled"] == 1


def test_a_worker_that_does_not_become_ready_replaces_nobody(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--worker-lifetime", "1s")) as service, Load(service.address(), 2) as load:
        before = pids(service)
        service.release(FAULT="exit1")
        service.running.says("is not replaced: worker ")
        load.heard(1, 50)
        assert before <= pids(service)
        wait_for(lambda: pids(service) == before)
        load.end()
        assert not load.failures
        assert service.status()["counters"]["recycled"] == 0


def test_a_worker_that_does_not_finish_is_killed_when_its_grace_period_is_over(tmp_path: Path) -> None:
    command = polite()
    command[2] = command[2].replace("lambda *_: stop.append(1)", "signal.SIG_IGN")
    options = ["--worker-lifetime", "2s", "--grace", "1s", "--kill-after", "20s"]
    with Service(tmp_path, *options, command=command) as service:
        with socket.create_connection(service.address()) as slow:
            slow.sendall(b"GET /sleep60 HTTP/1.1\r\n\r\n")
            wait_for(lambda: service.generations()[1]["active"] == 1)
            line = service.running.says("of being told to; it is killed, with 1 connection")
            assert float(re.search(r"within ([\d.]+)s", line)[1]) >= 1.0  # type: ignore[index]
        service.running.says("has replaced")


def test_none_is_replaced_during_an_upgrade(tmp_path: Path) -> None:
    options = ["--settle", "0.1", "--probation", "600s", "--worker-lifetime", "500ms"]
    with Service(tmp_path, *options, command=polite()) as service:
        wait_for(lambda: service.status()["counters"]["recycled"] >= 1)
        service.upgrade(wait="served")
        before = service.status()["counters"]["recycled"], pids(service, 2)
        until = time.monotonic() + 2
        wait_for(lambda: time.monotonic() > until)
        assert (service.status()["counters"]["recycled"], pids(service, 2)) == before
        assert verb("rollback", str(service.path)).returncode == 0
        wait_for(lambda: service.status()["counters"]["recycled"] > before[0], "the next one")


def test_a_master_that_dies_while_a_worker_is_replaced_leaves_one_too_many_and_the_next_one_sends_it_away(
    tmp_path: Path,
) -> None:
    """The replacement never becomes ready: the master is killed while it waits for it."""
    command = polite()
    command[2] = command[2].replace(
        "listener = socket", "time.sleep(float(os.environ.get('BOOT', '0')))\nlistener = socket"
    )
    options = quick("--worker-lifetime", "1s")
    with Service(tmp_path, *options, command=command) as service:
        (first,) = pids(service)
        service.release(BOOT="1000")
        service.running.says("is to replace")
        kill(service.pid)
        service.running.process.wait(DEADLINE)
        service.release()
        with Service(tmp_path, *quick(), command=command) as again:
            wait_for(lambda: pids(again) == {first}, f"{first} alone, not {pids(again)}")
            assert request(again.address())[2] == first


def test_a_worker_that_was_told_to_go_is_not_told_again_and_killed_in_the_end(tmp_path: Path) -> None:
    """TTOU: one that ignores it does not stay for ever, also not under the next master."""
    command = rude()
    command[2] = "import signal\nsignal.signal(15, lambda *_: print('told', flush=True))\n" + command[2]
    options = quick("--workers", "2", "--kill-after", "2s")
    with Service(tmp_path, *options, command=command) as service:
        service.running.signal(signal.SIGTTOU)
        service.running.says("told")
        ask(service.path, "upgrade-master", timeout=DEADLINE)
        assert len(pids(service)) == 2
        service.running.says("it is killed, with no connection left")
        wait_for(lambda: len(pids(service)) == 1)
        assert service.running.text().count("told\n") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--worker-lifetime", "0"], "lives for no time"),
        (["--worker-lifetime", "old"], "is not a duration"),
        (["--worker-memory", "much"], "is no amount of memory"),
        (["--worker-memory", "0"], "is no amount of memory"),
        (["--worker-memory", "1M:0"], "would be looked at all the time"),
    ],
)
def test_wrong_usage_is_one_sentence(tmp_path: Path, words: list[str], reason: str) -> None:
    done = verb("run", "--path", str(tmp_path / "s"), *words, "--", "true")
    assert (done.returncode, done.stderr.count("\n"), reason in done.stderr) == (2, 1, True), done.stderr
    assert os.listdir(tmp_path) == []
