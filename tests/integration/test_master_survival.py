"""What becomes of a service when its master is killed, or is itself replaced, under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import PeerRefused

from .cli import DEADLINE, wait_for
from .master import Load, Service, kill, quick


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_killed_master_leaves_its_generation_serving_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service, Load(service.address()) as load:
        service.upgrade()
        load.heard(2)
        kill(service.pid)
        service.running.process.wait(DEADLINE)
        load.heard(2)
        with Service(tmp_path, *quick()) as again:
            assert set(again.generations()) == {2}
            assert again.upgrade()["to"] == 3
            load.heard(3)
            again.settled(3)
            load.end()
            assert not load.failures
            assert again.stop() == 0
    assert not service.path.exists()
    assert not (tmp_path / "master.sock.journal").exists()


@pytest.mark.parametrize("step", ["start", "ready", "switch", "probation"])
def test_a_master_killed_during_an_upgrade_leaves_one_owner(tmp_path: Path, step: str) -> None:
    with Service(tmp_path, *quick("--probation", "5", "--settle", "0.2")) as service, Load(service.address()) as load:

        def look(event: dict[str, object]) -> None:
            if event.get("step") == step:
                kill(service.pid)

        with pytest.raises(Exception, match=r"hung up|did not answer"):
            ask(service.path, "upgrade", {}, timeout=DEADLINE, on_event=look)
        service.running.process.wait(DEADLINE)
        with Service(tmp_path, *quick()) as again:
            wait_for(lambda: len(again.generations()) == 1, "one generation")
            (number,) = again.generations()
            load.heard(number)
            assert again.upgrade()["to"] == again.status()["last_upgrade"]["to"]
            load.end()
            assert not load.failures


def test_a_journal_of_dead_generations_is_a_fresh_start(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        family = [pid for one in service.generations().values() for pid in one["pids"]]
        kill(service.pid)
        service.running.process.wait(DEADLINE)
        for pid in family:
            kill(pid)
        with Service(tmp_path, *quick()) as again:
            assert list(again.generations()) == [1]


def test_a_master_replaces_itself_under_load(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service, Load(service.address()) as load:
        ask(service.path, "upgrade-master", timeout=DEADLINE)
        before = descriptors(service.pid)
        (one,) = service.generations().values()
        for _ in range(5):
            answer = ask(service.path, "upgrade-master", timeout=DEADLINE)
            assert answer["state"] == "serving"
            (same,) = service.generations().values()
            assert same["pids"] == one["pids"]
        wait_for(lambda: descriptors(service.pid) <= before, "as many descriptors as before")
        assert service.upgrade()["to"] == 2
        load.heard(2)
        service.settled(2)
        load.end()
        assert not load.failures
        assert service.stop() == 0


def test_the_exit_status_is_still_known_after_the_master_was_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); signal.pause()"]
    with Service(tmp_path, *quick("--ready", "delay:0.1"), command=command) as service:
        ask(service.path, "upgrade-master", timeout=DEADLINE)
        assert service.stop() == 5


def test_a_new_master_that_fails_its_rehearsal_changes_nothing(tmp_path: Path) -> None:
    """The program is replaced by one that can't even start: the running master finds out before it is too late."""
    package = tmp_path / "fdhandoff"
    origin = os.path.dirname(os.path.abspath(sys.modules["fdhandoff"].__file__ or ""))
    subprocess.run(["cp", "-r", origin, str(package)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with Service(tmp_path, *quick(), env=environment, cwd=str(tmp_path)) as service, Load(service.address()) as load:
        (package / "master" / "master.py").write_text("this is no Python\n")
        with pytest.raises(PeerRefused, match="rehearsal"):
            ask(service.path, "upgrade-master", timeout=DEADLINE)
        (package / "master" / "master.py").write_bytes((Path(origin) / "master" / "master.py").read_bytes())
        assert ask(service.path, "upgrade-master", timeout=DEADLINE)["state"] == "serving"
        load.end()
        assert not load.failures


def test_signals_during_the_replacement_are_not_lost(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        ask(service.path, "upgrade-master", timeout=DEADLINE)
        os.kill(service.pid, signal.SIGHUP)
        wait_for(lambda: 2 in service.generations(), "the generation that HUP asked for")
