"""What becomes of a service when its master is killed, or is itself replaced, under load."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import PeerRefused

from .cli import DEADLINE, verb, wait_for
from .master import Load, Service, kill, quick, request, rude


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


@pytest.mark.parametrize(("ready", "served"), [("delay:60s", False), ("accept", True)])
def test_an_upgrade_that_its_master_did_not_survive_is_told_by_the_next(
    tmp_path: Path, ready: str, served: bool
) -> None:
    """In the step *ready* it failed; in *probation* the new generation serves for good."""
    config = tmp_path / "run.toml"
    config.write_text('ready = "accept"\n')
    options = ["--config", str(config), "--settle", "0", "--probation", "60s"]
    with Service(tmp_path, *options) as service:
        config.write_text(f'ready = "{ready}"\n')
        assert verb("upgrade", str(service.path), "--no-wait").returncode == 0
        step = "probation" if served else "ready"
        wait_for(lambda: (service.status()["last_upgrade"] or {}).get("step") == step, step)
        kill(service.pid)
        service.running.process.wait(DEADLINE)
        with Service(tmp_path, *options, wait=False) as again:
            facts = again.serves()
            last = facts["last_upgrade"]
            assert (facts["generation"], last["from"], last["to"]) == (1 + served, 1, 2)
            assert last["result"] == ("done" if served else "failed")
            assert last["reason"].startswith("the master died at the step ")
            assert facts["counters"]["failed"] == (not served)
            for number in (2, 1):  # whichever is left
                for pid in again.generations().get(number, {"pids": []})["pids"]:
                    kill(pid)
            kill(again.pid)


def test_who_asks_where_a_master_was_killed_hears_what_lives_on(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        (pid,) = service.generations()[1]["pids"]
        os.kill(service.pid, signal.SIGKILL)
        os.waitid(os.P_PID, service.pid, os.WEXITED | os.WNOWAIT)
        gone = verb("upgrade", "--pid", str(service.pid))
        assert (gone.returncode, f"there is no process {service.pid}" in gone.stderr) == (4, True), gone.stderr
        service.running.process.wait(DEADLINE)
        for words in (["status"], ["upgrade"], ["drain"]):
            done = verb(*words, str(service.path))
            assert done.returncode == 4
            assert done.stderr.endswith(
                f"of a master that died there lives generation 1 (pid {pid}): the same run again goes on with it, "
                "stop --left-over ends it\n"
            ), done.stderr
        assert verb("stop", "--left-over", str(service.path)).returncode == 0
        assert "lives" not in verb("status", str(service.path)).stderr


def test_a_generation_that_shall_not_outlive_its_master_does_not(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--death-signal", "KILL", "--workers", "2")) as service:
        ask(service.path, "upgrade-master", timeout=DEADLINE)
        service.upgrade()
        service.settled(2)
        family = service.generations()[2]["pids"]
        assert len(family) == 2
        kill(service.pid)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family), "the end of its processes")
        service.running.process.wait(DEADLINE)
        with Service(tmp_path, *quick()) as again:
            assert list(again.generations()) == [1], "nothing was left to go on with"


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


def own_copy(folder: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the package, which a test may change, and the environment of a program that has it."""
    package = folder / "fdhandoff"
    origin = os.path.dirname(os.path.abspath(sys.modules["fdhandoff"].__file__ or ""))
    subprocess.run(["cp", "-r", origin, str(package)], check=True)
    return package, {**os.environ, "PYTHONPATH": str(folder)}


def test_a_new_master_that_fails_its_rehearsal_changes_nothing(tmp_path: Path) -> None:
    """The program is replaced by one that can't even start: the running master finds out before it is too late."""
    package, environment = own_copy(tmp_path)
    with Service(tmp_path, *quick(), env=environment, cwd=str(tmp_path)) as service, Load(service.address()) as load:
        master = package / "master" / "master.py"
        text = master.read_text()
        master.write_text("this is no Python\n")
        with pytest.raises(PeerRefused, match="rehearsal"):
            ask(service.path, "upgrade-master", timeout=DEADLINE)
        master.write_text(text)
        assert ask(service.path, "upgrade-master", timeout=DEADLINE)["state"] == "serving"
        load.end()
        assert not load.failures


def test_who_asked_is_told_when_the_new_master_can_not_begin_after_its_rehearsal(tmp_path: Path) -> None:
    """The directory that it was started in goes away meanwhile."""
    package, environment = own_copy(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    with Service(tmp_path, *quick(), env=environment, cwd=str(work)) as service, Load(service.address()) as load:
        resume = package / "master" / "resume.py"
        text = resume.read_text()
        leave = f"import atexit\n    atexit.register(os.rmdir, {str(work)!r})"
        resume.write_text(f"{text}\nif DRY_RUN in os.environ:\n    {leave}\n")
        with pytest.raises(PeerRefused, match="No such file or directory"):
            ask(service.path, "upgrade-master", timeout=DEADLINE)
        resume.write_text(text)
        work.mkdir()
        assert ask(service.path, "upgrade-master", timeout=DEADLINE)["state"] == "serving"
        load.end()
        assert not load.failures


def test_signals_during_the_replacement_are_not_lost(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        ask(service.path, "upgrade-master", timeout=DEADLINE)
        os.kill(service.pid, signal.SIGHUP)
        wait_for(lambda: 2 in service.generations(), "the generation that HUP asked for")


# --- what the next master knows -----------------------------------------------------------------------------------


def followed(service: Service) -> None:
    """The master is killed; what it ran goes on."""
    kill(service.pid)
    service.running.process.wait(DEADLINE)


@pytest.mark.parametrize("how", ["killed", "replaced"])
def test_the_next_master_knows_how_many_workers_there_shall_be(tmp_path: Path, how: str) -> None:
    with Service(tmp_path, *quick("--workers", "2")) as service:
        service.running.signal(signal.SIGTTIN)
        service.running.says("3 workers from now on")
        if how == "replaced":
            ask(service.path, "upgrade-master", timeout=DEADLINE)
            service.upgrade()
            assert len(service.generations()[2]["pids"]) == 3
            return
        followed(service)
        kill(request(service_address := address_of(tmp_path))[2])
        with Service(tmp_path, *quick("--workers", "2")) as again:
            assert again.address() == service_address
            wait_for(lambda: len(again.generations()[1]["pids"]) == 3, "the worker that died without a master")
            again.upgrade()
            assert len(again.generations()[2]["pids"]) == 3


def address_of(folder: Path) -> tuple[str, int]:
    """Of the first listener, as the journal has it."""
    host, _, port = json.loads((folder / "master.sock.journal").read_text())["outlets"][0]["address"].rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("how", ["killed", "replaced"])
def test_the_next_master_knows_which_generation_is_kept_and_how_long(tmp_path: Path, how: str) -> None:
    options = quick("--keep-old", "60s")
    with Service(tmp_path, *options) as service, Load(service.address(), 2) as load:
        service.upgrade()
        before = service.generations()[1]
        assert before["state"] == "kept"
        if how == "replaced":
            ask(service.path, "upgrade-master", timeout=DEADLINE)
            again = service
        else:
            followed(service)
            again = Service(tmp_path, *options)
        with again:
            kept = again.generations()[1]
            assert (kept["state"], kept["pids"]) == ("kept", before["pids"])
            assert 0 < kept["deadline"] < before["deadline"]
            assert verb("rollback", str(again.path)).returncode == 0
            load.heard(1)
            again.settled(1)
            load.end()
            assert not load.failures


def test_a_generation_drains_as_it_was_started_whatever_the_next_master_is_told(tmp_path: Path) -> None:
    """It gets the signal that its own options named, when its own grace period is over, counted from where it was."""
    command = rude()
    command[2] = (
        "import signal, sys\nsignal.signal(signal.SIGUSR2, lambda *_: (print('told by USR2', flush=True), sys.exit(0)))\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('told by TERM', flush=True))\n" + command[2]
    )
    options = ["--settle", "0.1", "--probation", "0.1"]
    with Service(tmp_path, *options, "--grace", "4s", "--drain-signal", "USR2", command=command) as service:
        slow = Load(service.address(), 1, "/sleep60")
        slow._threads[0].start()
        slow._over.set()  # one request is enough
        wait_for(lambda: service.generations()[1]["active"] == 1)
        service.upgrade()
        wait_for(lambda: service.generations()[1]["state"] == "draining")
        before = service.generations()[1]["deadline"]
        followed(service)
        with Service(tmp_path, *options, "--grace", "60s", command=command) as again:
            one = again.generations()[1]
            assert (one["state"], 0 < one["deadline"] < before) == ("draining", True)
            service.running.says("told by USR2")  # its output goes where it went
            slow.end()
            again.settled(2)
            assert "told by TERM" not in service.running.text()


def test_a_generation_that_was_told_to_stop_is_not_told_again(tmp_path: Path) -> None:
    command = rude()
    command[2] = "import signal\nsignal.signal(15, lambda *_: print('told to stop', flush=True))\n" + command[2]
    options = ["--settle", "0.1", "--probation", "0.1", "--grace", "0.2s", "--kill-after", "3s"]
    with Service(tmp_path, *options, command=command) as service:
        service.upgrade()
        service.running.says("told to stop")
        wait_for(lambda: service.generations()[1]["state"] == "stopping")
        followed(service)
        with Service(tmp_path, *options, command=command) as again:
            assert again.generations()[1]["state"] == "stopping"
            again.running.says("did not end within 3s of being told to; it is killed")
            again.settled(2)
            assert (service.running.text() + again.running.text()).count("told to stop") == 1


def test_a_journal_that_can_not_be_written_is_said_once_and_the_last_whole_one_stays(tmp_path: Path) -> None:
    journal = tmp_path / "master.sock.journal"
    with Service(tmp_path, *quick()) as service:
        hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)[1]
        before = journal.read_text()
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (100, hard))
        service.upgrade()
        service.upgrade()
        service.settled(3)
        assert service.running.text().count("can't be written") == 1
        assert journal.read_text() == before
        assert not (tmp_path / "master.sock.journal.new").exists()
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))
        service.upgrade()
        assert service.running.text().count("is written again") == 1
        assert json.loads(journal.read_text())["number"] == 4
        assert service.stop() == 0


@pytest.mark.parametrize("damage", ["half", "another schema", "a key is missing", "a wrong type"])
def test_a_journal_that_makes_no_sense_is_one_sentence(tmp_path: Path, damage: str) -> None:
    """Nothing is begun beside a generation that lives; where none does, all begins afresh."""
    path = tmp_path / "master.sock.journal"
    with Service(tmp_path, *quick()) as service:
        (family,) = [one["pids"] for one in service.generations().values()]
        followed(service)
        state = json.loads(path.read_text())
        if damage == "another schema":
            state["schema"] = 99
        elif damage == "a key is missing":
            del state["runs"][0]["slot"]
        elif damage == "a wrong type":
            state["outlets"] = 5
        text = json.dumps(state)
        path.write_text(text[: text.index('"options"')] if damage == "half" else text)
        done = verb("run", "--path", str(service.path), "--bind", "127.0.0.1:0", "--", *rude())
        assert (done.returncode, str(family[0]) in done.stderr, done.stderr.count("\n")) == (125, True, 1), done.stderr
        assert "makes no sense" in done.stderr
        kill(family[0])
        with Service(tmp_path, *quick()) as again:
            assert "nothing that it names is alive: starting afresh" in again.running.text()
            assert list(again.generations()) == [1]
            again.upgrade()


def test_a_state_that_leads_nowhere_is_one_sentence(tmp_path: Path) -> None:
    for value in ("wat", "999", "1"):
        done = verb(
            "run",
            "--path",
            str(tmp_path / "s"),
            "--bind",
            "127.0.0.1:0",
            "--",
            "true",
            env={"FDHANDOFF_MASTER_STATE": value},
        )
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
        assert "FDHANDOFF_MASTER_STATE" in done.stderr
