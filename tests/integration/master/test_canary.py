"""A share of the connections for the new generation, and who gets which of them; three generations at once."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

from ..cli import verb, wait_for
from . import Load, Service, kill, quick, request

#: As small as a server can be: no thread, no wait.
PROMPT = """
import os, socket
listener = socket.socket(fileno=3); listener.setblocking(True)
body = f"- {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
answer = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body
while True:
    connection, _ = listener.accept()
    try:
        connection.recv(4096); connection.sendall(answer)
    except OSError:
        pass
    connection.close()
"""
COMMAND = [sys.executable, "-c", PROMPT]


def step(service: Service) -> str:
    return str(service.status()["last_upgrade"]["step"])


def test_a_canary_of_five_percent_gets_five_percent_of_ten_thousand(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--canary", "5%:600s"), command=COMMAND) as service:
        address = service.address()
        assert service.command("--no-wait")[0] == 0
        wait_for(lambda: step(service) == "canary 5%", "the canary")
        with Load(address, 2) as load:
            wait_for(lambda: len(load.answers) >= 10_000, "10,000 connections")
            share = load.generations()[2] / sum(load.generations().values())
            assert 0.04 <= share <= 0.06
            shares = {number: one["share"] for number, one in service.generations().items()}
            assert shares == {1: 0.95, 2: 0.05}
            assert service.command("--abort")[0] == 0
            after = time.monotonic()
            load.heard(1, 1000)
            assert set(load.generations(after)) == {1}
            assert not load.failures
        assert service.status()["last_upgrade"]["result"] == "rolled back"
        service.settled(1)


def test_a_canary_goes_through_its_steps_and_on(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--canary", "5%:0.4s,50%:0.4s"), command=COMMAND) as service:
        with Load(service.address(), 2) as load:
            done = service.upgrade()
            load.heard(2)
            assert not load.failures
        assert [one["step"] for one in done["steps"]][2:5] == ["canary 5%", "canary 50%", "switch"]


def test_a_canary_that_is_held_stays_until_it_is_promoted(tmp_path: Path) -> None:
    with (
        Service(tmp_path, *quick("--canary", "20%:3s"), command=COMMAND) as service,
        Load(service.address(), 2) as load,
    ):
        service.command("--no-wait")
        wait_for(lambda: step(service) == "canary 20%", "the canary")
        assert service.command("--hold")[0] == 0
        until = time.monotonic() + 3.5
        wait_for(lambda: time.monotonic() > until)
        assert step(service) == "canary 20%"
        assert service.command("--promote")[0] == 0
        service.running.says("upgraded from generation 1 to generation 2")
        load.end()
        assert not load.failures


def test_after_a_promotion_the_master_sleeps_through_probation(tmp_path: Path) -> None:
    with Service(tmp_path, "--probation", "600s", "--canary", "20%:600s", command=COMMAND) as service:
        service.command("--no-wait")
        wait_for(lambda: step(service) == "canary 20%", "the canary")
        assert service.command("--promote")[0] == 0
        wait_for(lambda: step(service) == "probation")

        def ticks() -> int:
            fields = Path(f"/proc/{service.pid}/stat").read_bytes().rpartition(b")")[2].split()
            return int(fields[11]) + int(fields[12])  # utime and stime, hundredths of a second

        before, until = ticks(), time.monotonic() + 2
        wait_for(lambda: time.monotonic() > until)
        assert ticks() - before < 50


def test_a_canary_that_dies_is_taken_back(tmp_path: Path) -> None:
    with (
        Service(tmp_path, *quick("--canary", "50%:600s"), command=COMMAND) as service,
        Load(service.address(), 2) as load,
    ):
        service.command("--no-wait")
        load.heard(2)
        kill(service.generations()[2]["pids"][0])
        service.running.says("died as a canary")
        after = time.monotonic()
        load.heard(1, 200)
        assert set(load.generations(after)) == {1}
        load.end()
        assert sum(load.failures.values()) <= 2


def test_of_three_generations_only_the_newest_gets_connections(tmp_path: Path) -> None:
    """Each of the older two is kept by a connection that it has not answered yet."""
    silent = []
    options = ("--settle", "0.1", "--probation", "0", "--grace", "60", "--max-draining", "4")
    slow = PROMPT.replace(
        "connection.recv(4096); ", "threading.Thread(target=serve, args=(connection,)).start(); continue;"
    )
    slow = slow.replace("import os, socket\n", "import os, socket, threading\n").replace(
        "while True:\n",
        "def serve(connection):\n"
        "    with connection:\n"
        "        connection.recv(4096); connection.sendall(answer)\n"
        "while True:\n",
        1,
    )
    with (
        Service(tmp_path, *options, command=[sys.executable, "-c", slow]) as service,
        Load(service.address(), 2) as load,
    ):
        address = service.address()
        for number in range(1, 5):
            load.heard(number, 5)
            silent.append(socket.create_connection(address))
            wait_for(lambda number=number: service.generations()[number]["active"] >= 1)
            began = time.monotonic()
            service.upgrade()
            after = time.monotonic()
            load.heard(number + 1, 200)
            assert set(load.generations(after)) == {number + 1}
            assert set(load.generations(began)) <= {number, number + 1}
        assert len(service.generations()) == 5
        for number, sock in enumerate(silent, 1):
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            answer = b""
            while part := sock.recv(1000):
                answer += part
            assert f"- {number} ".encode() in answer
            sock.close()
        service.settled(5)
        load.end()
        assert not load.failures


def test_a_slow_stream_straddles_two_upgrades(tmp_path: Path) -> None:
    """New requests go to the new one during and after; the long one ends where it began."""
    from . import rude

    with Service(tmp_path, *quick("--grace", "30"), command=rude()) as service:
        address = service.address()
        answers: list[tuple[str, int, int]] = []
        slow = threading.Thread(target=lambda: answers.append(request(address, "/sleep9")))
        slow.start()
        wait_for(lambda: service.generations()[1]["active"])
        service.upgrade()
        assert request(address)[1] == 2
        service.upgrade()
        assert request(address)[1] == 3
        assert not answers
        slow.join()
        assert answers[0][1] == 1
        service.settled(3)


def test_a_canary_is_refused_where_there_is_none(tmp_path: Path) -> None:
    done = verb(
        "run", "--path", str(tmp_path / "s"), "--bind", f"unix:{tmp_path}/u", "--canary", "5%:1s", "--", "sleep", "9"
    )
    assert (done.returncode, len(done.stderr.splitlines()), "canary" in done.stderr) in (
        (2, 1, True),
        (125, 1, True),
    ), done
