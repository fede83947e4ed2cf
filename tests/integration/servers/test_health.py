"""A ``Service``'s health, by HTTP and by a file, through upgrades, stops and crashes; and a load balancer that asks for it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ...conftest import needs
from ..cli import PACKAGE, Running, environment, free_port, stopping, verb, wait_for
from ..master import Load, Service as Master, kill, quick, request
from ..master.test_health import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
UPGRADES = 3


class Watched(Running):
    def __init__(
        self, folder: Path, port: int, name: str = "h.sock", env: dict[str, str] | None = None, **options: Any
    ):
        words = [str(HERE / "watched.py"), str(port), str(folder / name), json.dumps(options)]
        self._start([sys.executable, *words], env=environment(**(env or {})))

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


class Asking:
    """Asks for the readiness without a pause: ``answers`` are status codes, or how it failed."""

    def __init__(self, port: int) -> None:
        self.answers: list[int | str] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.answers.append(asked(self._port)[0])
            except OSError as error:
                self.answers.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Asking:
        self._thread.start()
        wait_for(lambda: len(self.answers) > 3, "the first answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_the_endpoint_and_the_file_go_from_generation_to_generation(tmp_path: Path) -> None:
    port, health, mark = free_port(), free_port(), tmp_path / "ready"
    options = {"health": f"127.0.0.1:{health}", "health_file": str(mark), "probation": 0.1}
    with contextlib.ExitStack() as stack:
        old = Watched(tmp_path, port, **options)
        stack.callback(old.stop)
        old.serves(1)
        over, missing = threading.Event(), []

        def look() -> None:
            while not over.is_set():
                if not mark.exists():
                    missing.append(time.monotonic())

        with Asking(health) as asking:
            looker = threading.Thread(target=look)
            looker.start()
            stack.callback(over.set)
            for number in range(2, UPGRADES + 2):
                new = Watched(tmp_path, port, **options)
                stack.callback(new.stop)
                new.serves(number)
                assert old.ends() == 0, old.text()
                assert asked(health)[1]["generation"] == number
                assert json.loads(mark.read_text())["pid"] == new.pid
                old = new
            over.set()
            looker.join()
            assert not missing, "there were moments without the file"
        assert set(asking.answers) == {200}, "no question failed, and none had another answer"
        old.signal(signal.SIGTERM)
        assert old.ends() == 0
    assert os.listdir(tmp_path) == []
    with pytest.raises(ConnectionRefusedError):
        asked(health)


def test_a_stop_is_told_before_it_begins_and_an_upgrade_never_is(tmp_path: Path) -> None:
    port, health, mark = free_port(), free_port(), tmp_path / "ready"
    settings = {"FDHANDOFF_HEALTH": f"127.0.0.1:{health}", "FDHANDOFF_HEALTH_FILE": str(mark)}
    running = Watched(tmp_path, port, env=settings, pre_stop_delay=1.5)
    with stopping(running):
        running.serves(1)
        assert asked(health)[1] == {
            "schema": 1, "ready": True, "state": "serving", "generation": 1, "service": "watched"
        }  # fmt: skip
        running.signal(signal.SIGHUP)
        running.says("generation 2 serves")
        wait_for(lambda: asked(health)[1]["generation"] == 2, "the successor, which has our settings, to answer")
        wait_for(lambda: running.process.poll() is not None, "the end of the first one")
        pid = json.loads(mark.read_text())["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: asked(health)[0] == 503, "readiness to be false")
        assert not mark.exists()
        assert asked(health, "/live")[0] == 200
        assert request(("127.0.0.1", port))[1] == 2, "connections are accepted for the length of the delay"
        wait_for(lambda: refused(health), "the end")


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return bool(sock.connect_ex(("127.0.0.1", port)))


def test_who_is_in_a_hurry_does_not_wait_for_the_delay(tmp_path: Path) -> None:
    running = Watched(tmp_path, free_port(), health=f"127.0.0.1:{(health := free_port())}", pre_stop_delay=600)
    with stopping(running):
        running.serves(1)
        running.signal(signal.SIGTERM)
        wait_for(lambda: asked(health)[0] == 503, "readiness to be false")
        assert verb("hurry", str(tmp_path / "h.sock")).returncode == 0
        assert running.ends() == 0


def test_who_takes_the_service_back_answers_again(tmp_path: Path) -> None:
    port, health, mark = free_port(), free_port(), tmp_path / "ready"
    options = {"health": f"127.0.0.1:{health}", "health_file": str(mark), "probation": 60}
    old, new = Watched(tmp_path, port, **options), None
    with stopping(old):
        old.serves(1)
        new = Watched(tmp_path, port, **options)
        with stopping(new):
            new.serves(2)
            wait_for(lambda: asked(health)[1]["generation"] == 2, "the new one to answer")
            kill(new.pid)
            wait_for(lambda: asked(health)[1]["generation"] == 1, "the old one to answer again")
            wait_for(lambda: json.loads(mark.read_text())["pid"] == old.pid, "its file")
            assert asked(health)[0] == 200


def test_the_file_of_one_that_was_killed_does_not_speak_for_the_next(tmp_path: Path) -> None:
    port, mark = free_port(), tmp_path / "ready"
    first = Watched(tmp_path, port, health_file=str(mark))
    with stopping(first):
        first.serves(1)
        kill(first.pid)
        first.ends()
    assert mark.exists(), "nobody was left to remove it"
    with socket.create_server(("127.0.0.1", port)):  # the next one can't start
        assert Watched(tmp_path, port, health_file=str(mark)).ends() != 0
    assert not mark.exists()


def test_a_health_address_that_is_taken_and_a_file_that_can_not_be_written_are_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        health = other.getsockname()[1]
        running = Watched(tmp_path, free_port(), health=f"127.0.0.1:{health}")
        assert running.ends() != 0
        assert f"127.0.0.1:{health} is taken" in running.text()
    running = Watched(tmp_path, free_port(), "i.sock", health_file=str(tmp_path / "missing" / "ready"))
    with stopping(running):
        running.serves(1)
        assert "can't be written (No such file or directory)" in running.text()


def test_under_a_master_the_endpoint_is_left_to_it(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "watched.py"), "0", "", json.dumps({"health": "127.0.0.1:1"})]
    options = quick("--health", f"127.0.0.1:{(health := free_port())}")
    with Master(tmp_path, *options, bind="main=127.0.0.1:0", command=command) as service:
        service.upgrade()
        assert "the master answers for the service's health" in service.running.text()
        assert asked(health)[0] == 200


def test_an_adapter_takes_it_from_the_command_line(tmp_path: Path) -> None:
    health = free_port()
    running = Running.__new__(Running)
    words = [
        str(free_port()),
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tmp_path),
        "--handoff-health",
        f"127.0.0.1:{health}",
    ]
    words += ["--handoff-health-file", str(tmp_path / "ready"), "--handoff-path", str(tmp_path / "h.sock")]
    running._start([sys.executable, "-m", f"{PACKAGE}.servers.http_server", *words], env=environment())
    with stopping(running):
        running.says("generation 1 serves")
        assert asked(health)[0] == 200
        assert (tmp_path / "ready").exists()


# --- a load balancer --------------------------------------------------------------------------------------------


class Balancer:
    """haproxy, in front of ``servers`` (port and health port each), that asks each of them for its readiness every 50 ms."""

    def __init__(self, folder: Path, servers: list[tuple[int, int]]) -> None:
        self.port = free_port()
        self._socket = str(folder / "haproxy.sock")
        lines = [
            f"server s{number} 127.0.0.1:{port} check port {health} inter 50ms fall 1 rise 1"
            for number, (port, health) in enumerate(servers)
        ]
        (folder / "haproxy.cfg").write_text(
            f"global\n  stats socket {self._socket} mode 600\n  maxconn 200\n"
            "defaults\n  mode http\n  retries 0\n"
            "  timeout connect 20s\n  timeout check 20s\n  timeout client 30s\n  timeout server 30s\n"
            f"frontend in\n  bind 127.0.0.1:{self.port}\n  default_backend app\n"
            "backend app\n  option httpchk GET /ready\n  http-check expect status 200\n  " + "\n  ".join(lines) + "\n"
        )
        self.running = Running.__new__(Running)
        self.running._start([needs("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")])

    def __enter__(self) -> Balancer:
        wait_for(lambda: os.path.exists(self._socket) and all(state == "UP" for state in self.states()), "haproxy")
        return self

    def __exit__(self, *_: object) -> None:
        self.running.process.kill()
        self.running.ends()

    def servers(self) -> list[dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(self._socket)
            sock.sendall(b"show stat\n")
            text = b""
            while part := sock.recv(65536):
                text += part
        rows = csv.DictReader(text.decode().removeprefix("# ").splitlines())
        return [row for row in rows if row["pxname"] == "app" and row["svname"] != "BACKEND"]

    def states(self) -> list[str]:
        return [row["status"] for row in self.servers()]


@pytest.fixture(params=["Service", "master"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Any]]:
    """Two of a kind: a port, a health port, and what upgrades it and stops it."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            one = (Alone if request.param == "Service" else Mastered)(folder)
            stack.callback(one.close)
            made.append(one)
        yield made


class Alone:
    def __init__(self, folder: Path) -> None:
        self.port, self.health, self.number, self._folder = free_port(), free_port(), 1, folder
        self._now = self._start()

    def _start(self) -> Watched:
        address = f"127.0.0.1:{self.health}"
        one = Watched(self._folder, self.port, health=address, pre_stop_delay=2, probation=0.1)
        one.serves(self.number)
        return one

    def upgrade(self) -> None:
        old = self._now
        self.number += 1
        self._now = self._start()
        assert old.ends() == 0

    def signal_stop(self) -> None:
        self._now.signal(signal.SIGTERM)

    def ends(self) -> int:
        return self._now.ends()

    def close(self) -> None:
        self._now.stop()


class Mastered:
    def __init__(self, folder: Path) -> None:
        self.health = free_port()
        options = quick("--health", f"127.0.0.1:{self.health}", "--pre-stop-delay", "2s")
        self._service = Master(folder, *options)
        self.port = self._service.address()[1]

    def upgrade(self) -> None:
        self._service.upgrade()

    def signal_stop(self) -> None:
        self._service.running.signal(signal.SIGTERM)

    def ends(self) -> int:
        return self._service.running.ends()

    def close(self) -> None:
        self._service.__exit__()


def test_no_request_fails_behind_haproxy_through_upgrades_and_a_stop(pair: list[Any], tmp_path: Path) -> None:
    with Balancer(tmp_path, [(one.port, one.health) for one in pair]) as balancer:
        with Load(("127.0.0.1", balancer.port)) as load:
            for _ in range(UPGRADES):
                for one in pair:
                    one.upgrade()
            assert balancer.states() == ["UP", "UP"]
            assert [row["chkdown"] for row in balancer.servers()] == ["0", "0"], "haproxy never noticed"
            pair[0].signal_stop()
            wait_for(lambda: balancer.states() == ["DOWN", "UP"], "haproxy to leave the one that is to stop")
            assert pair[0].ends() == 0
            before = len(load.answers)
            wait_for(lambda: len(load.answers) > before + 20 or load.failures, "answers of the other one")
        assert not load.failures
