"""``--workers`` of uvicorn and hypercorn with their adapters: several processes, one generation."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping, verb, wait_for
from ..master import Load, Service, kill, quick
from . import Client, KeepAlive, replaces_itself

APP = "tests.integration.servers.app:app"
HERE = Path(__file__).parent
WORKERS = 2
UPGRADES = 2
UVICORN = [
    sys.executable, "-m", f"{PACKAGE}.servers.uvicorn", APP, "--workers", str(WORKERS), "--no-access-log",
    "--timeout-keep-alive", "60",
]  # fmt: skip


def uvicorn(port: int, folder: Path) -> list[str]:
    return [
        *UVICORN, "--port", str(port), "--handoff-path", str(folder / "h.sock"), "--handoff-probation", "500ms",
    ]  # fmt: skip


def hypercorn(port: int, folder: Path) -> list[str]:
    pytest.importorskip("hypercorn", reason="needs hypercorn: pip install 'fdhandoff[test]'")
    program = str(HERE / "on_hypercorn.py")
    return [sys.executable, program, str(port), str(folder / "h.sock"), "--workers", str(WORKERS)]


class Crew(Running):
    def __init__(self, command: list[str], **env: str) -> None:
        self._start(command, env=environment(**env))

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")

    def workers(self) -> set[int]:
        return set(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn"])
def test_strangers_with_workers_take_over_and_every_connection_stays(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    port = free_port()
    command = {"uvicorn": uvicorn, "hypercorn": hypercorn}[name](port, tmp_path)
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = Crew(command)
        stack.callback(old.stop)
        old.serves(1)
        assert len(old.workers()) == WORKERS
        idle = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(10)]
        assert {client.ask() for client in idle} == {1}
        with Load(address, 2) as load, KeepAlive(address) as busy:
            for number in range(2, UPGRADES + 2):
                new = Crew(command)
                stack.callback(new.stop)
                new.serves(number)
                assert old.ends() == 0, old.text()
                busy.heard(number)
                load.heard(number)
                old = new
        assert {client.ask() for client in idle} == {number}
        assert not load.failures
        assert not busy.failures
        assert busy.reconnects == 0
        for client in idle:
            client.close()
    assert os.listdir(tmp_path) == [], "nothing is left of it"


def test_what_is_done_behind_the_last_answer_has_the_rest_of_the_grace_period(tmp_path: Path) -> None:
    port = free_port()
    crew = Crew([*uvicorn(port, tmp_path), "--timeout-graceful-shutdown", "60"])
    with stopping(crew):
        crew.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask("/behind/12") == 1
        crew.signal(signal.SIGTERM)
        assert crew.ends() == 0, crew.text()
    assert "12 seconds behind it" in crew.text()
    assert "it is killed" not in crew.text()


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn"])
def test_hup_is_an_upgrade_of_the_same_command(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    port = free_port()
    crew = Crew({"uvicorn": uvicorn, "hypercorn": hypercorn}[name](port, tmp_path))
    with stopping(crew):
        crew.serves(1)
        replaces_itself(crew, port, tmp_path / "h.sock")


def test_under_the_master_the_connections_of_all_workers_move(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "http:/"), command=UVICORN) as service:
        address = service.address()
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(10)]
            assert {client.ask() for client in idle} == {1}
            with Load(address, 2) as load, KeepAlive(address) as busy:
                for number in range(2, UPGRADES + 2):
                    service.upgrade()
                    busy.heard(number)
                    service.settled(number)
            assert {client.ask() for client in idle} == {UPGRADES + 1}
            assert not load.failures
            assert not busy.failures
            assert busy.reconnects == 0
        assert service.stop() == 0


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    crew = Crew(uvicorn(port, tmp_path))
    with stopping(crew):
        crew.serves(1)
        victim = min(crew.workers())
        kill(victim)
        crew.says(f"worker {victim} ended with -9: another takes its place")
        wait_for(lambda: crew.text().count("Application startup complete") == WORKERS + 1, "the new worker")
        assert len(crew.workers()) == WORKERS
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert client.ask() == 1
        crew.signal(signal.SIGTERM)
        assert crew.ends() == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_after_a_rollback_the_connections_of_the_newer_one_move_back(tmp_path: Path, workers: int) -> None:
    port = free_port()
    command = [*uvicorn(port, tmp_path), "--handoff-probation", "10m", "--workers", str(workers)]
    old = Crew(command)
    with stopping(old), contextlib.ExitStack() as stack:
        old.serves(1)
        new = Crew(command)
        stack.enter_context(stopping(new))
        new.serves(2)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(10)]
        assert {client.ask() for client in clients} == {2}
        done = verb("rollback", "--path", str(tmp_path / "h.sock"))
        assert done.returncode == 0, done.stderr
        assert new.ends() == 0, new.text()
        assert {client.ask() for client in clients} == {1}
        assert not any(client.ended for client in clients)
        for client in clients:
            client.close()
        old.signal(signal.SIGTERM)
        assert old.ends() == 0, old.text()
    assert os.listdir(tmp_path) == []


def test_workers_end_when_the_first_process_is_killed(tmp_path: Path) -> None:
    port = free_port()
    crew = Crew(uvicorn(port, tmp_path))
    with stopping(crew):
        crew.serves(1)
        workers = crew.workers()
        kill(crew.pid)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "the workers' end")


def test_workers_whose_application_does_not_start_end_it_all(tmp_path: Path) -> None:
    crew = Crew(uvicorn(free_port(), tmp_path), BOOT="fail")
    assert crew.ends() == 3
    assert "the database is not there" in crew.text()
    assert os.listdir(tmp_path) == []
