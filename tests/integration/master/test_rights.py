"""Generations as another user, with limits of their own, under a master that has given up what it does not need."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fdhandoff
from fdhandoff.system import capabilities

from ...conftest import needs, needs_that
from ..cli import verb, wait_for
from ..servers import Client, KeepAlive
from . import RUDE, Load, Service, quick, request

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no capabilities")

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where another user gets to, with a server that it can run."""
    needs_that(os.geteuid() == 0, "root")
    found = Path(tempfile.mkdtemp())
    found.chmod(0o755)
    (found / "rude.py").write_text(RUDE)
    yield found
    shutil.rmtree(found)


def python() -> str:
    """An interpreter that another user may execute."""
    return needs("/usr/bin/python3", "python3")


def facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def as_nobody(folder: Path, *options: str, **more: Any) -> Service:
    command = [python(), str(folder / "rude.py")]
    return Service(folder, "--user", "nobody", *quick("--kill-after", "2"), *options, command=command, **more)


def caps(pid: int, which: str = "CapEff") -> set[int]:
    mask = int(facts(pid)[which], 16)
    return {number for number in range(64) if mask >> number & 1}


EXPECTED = {
    capabilities.SETUID, capabilities.SETGID, capabilities.KILL, capabilities.SYS_PTRACE, capabilities.DAC_READ_SEARCH,
    capabilities.NET_BIND_SERVICE,
}  # fmt: skip


def test_a_generation_is_unprivileged_and_the_master_keeps_only_what_it_needs(folder: Path) -> None:
    with as_nobody(folder, "--no-new-privileges", "--umask", "0", "--rlimit", "nofile=300:400") as service:
        (generation,) = service.generations().values()
        (pid,) = generation["pids"]
        found = facts(pid)
        assert found["Uid"].split() == [str(NOBODY)] * 4
        assert found["Gid"].split() == [str(NOBODY)] * 4
        assert found["Groups"].split() == [str(NOBODY)]
        assert caps(pid) == caps(pid, "CapPrm") == caps(pid, "CapInh") == caps(pid, "CapAmb") == set()
        assert found["NoNewPrivs"] == "1"
        assert found["Umask"] == "0000"
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {b"USER=nobody", b"LOGNAME=nobody", b"HOME=/nonexistent"} <= set(environ)
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")] == [
            ["300", "400"]
        ]
        assert {int(uid) for uid in facts(service.pid)["Uid"].split()} == {0}
        everything = EXPECTED | {capabilities.SYS_RESOURCE}
        for which in ("CapEff", "CapPrm", "CapBnd"):
            assert EXPECTED <= caps(service.pid, which) <= everything
        assert caps(service.pid, "CapInh") == caps(service.pid, "CapAmb") == set()
        assert facts(service.pid)["NoNewPrivs"] == "0"


@pytest.fixture
def package(folder: Path) -> str:
    """A copy of ours that another user may import, with what it imports."""
    shutil.copytree(Path(fdhandoff.__file__).parent, folder / "fdhandoff")
    for module in ("threaded", "slow", "encrypted", "probation"):
        shutil.copy(Path(__file__).parents[1] / "servers" / f"{module}.py", folder)
    needs_that(
        subprocess.run([python(), "-c", "import _cffi_backend"], check=False).returncode == 0, "python3-cffi-backend"
    )
    return str(folder)


@pytest.mark.parametrize("way", ["path", "name"])
def test_connections_move_between_generations_of_another_user(
    folder: Path, package: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a master that is not their user, and may not write what is theirs; also where its directory is closed to others."""
    command = [python(), str(folder / "threaded.py"), "http", "0", ""]
    path = folder / "h.sock"
    if way == "name":
        monkeypatch.setenv("FDHANDOFF_RUNTIME_DIR", str(folder))
        path = folder / "web" / "handoff.sock"
        path.parent.mkdir(mode=0o700)
    options = ["--path", str(path), "--user", "nobody", "--ready", "http:/", "--env", f"PYTHONPATH={package}"]
    with Service(folder, *options, *quick("--kill-after", "2"), command=command, wait=False) as service:
        service.path = path
        service.serves()
        with contextlib.closing(Client(service.address())) as idle, KeepAlive(service.address()) as busy:
            assert idle.ask() == 1
            for number in (2, 3):
                if number == 3:
                    assert verb("upgrade", str(path), "--master").returncode == 0
                service.upgrade()
                busy.heard(number)
                service.settled(number)
            assert idle.ask() == 3
        assert not busy.failures
        assert busy.reconnects == 0
        doors = Path(f"{path}.connections/doors")
        assert (doors.stat().st_uid, doors.stat().st_mode & 0o777) == (NOBODY, 0o700)
        assert doors.parent.stat().st_uid == 0, "who serves is the master's to say"
        assert {int(uid) for uid in facts(service.generations()[3]["pids"][0])["Uid"].split()} == {NOBODY}
        assert caps(service.pid) == EXPECTED
        assert service.stop() == 0
    assert not doors.parent.exists()


def test_upgrades_drains_and_a_new_master_work_without_what_was_given_up(folder: Path) -> None:
    with as_nobody(folder) as service:
        with Load(service.address()) as load:
            for number in (2, 3):
                service.upgrade()
                load.heard(number)
                service.settled(number)
            assert verb("upgrade", str(service.path), "--master").returncode == 0
            assert caps(service.pid) == EXPECTED, "an exec gives root nothing back"
            load.heard(3)
            service.upgrade()
            load.heard(4)
            service.settled(4)
        assert not load.failures
        (generation,) = service.generations().values()
        assert facts(generation["pids"][0])["Uid"].split() == [str(NOBODY)] * 4
        assert service.stop() == 0


def test_a_drain_waits_for_the_connections_that_it_sees_in_another_users_process(folder: Path) -> None:
    with as_nobody(folder) as service, Load(service.address(), clients=1) as load:
        answers: list[tuple[str, int, int]] = []
        slow = threading.Thread(target=lambda: answers.append(request(service.address(), "/sleep1.5")))
        slow.start()
        wait_for(lambda: any(one["active"] for one in service.status()["generations"]))
        service.upgrade()
        slow.join()
        assert answers[0][1] == 1, "what generation 1 had begun it finished"
        load.end()
        assert not load.failures


def test_a_master_that_was_killed_is_succeeded_by_one_that_finds_the_users_generation(folder: Path) -> None:
    with as_nobody(folder) as service:
        (before,) = service.generations().values()
        os.kill(service.pid, signal.SIGKILL)
        service.running.ends()
        with as_nobody(folder, bind="http=127.0.0.1:0") as again:
            again.running.says("goes on")
            (after,) = again.generations().values()
            assert after["pids"] == before["pids"]
            assert caps(again.pid) == EXPECTED
            with Load(again.address()) as load:
                again.upgrade()
                load.heard(2)
            assert not load.failures
            assert again.stop() == 0


def test_readiness_by_notification_comes_from_another_user(folder: Path) -> None:
    with as_nobody(folder, "--ready", "notify") as service:
        service.upgrade()
        assert request(service.address())[1] == 2


def test_readiness_by_notification_of_anybody_else_is_not_believed(folder: Path) -> None:
    """Whoever is on this machine can write to where it is expected."""
    options = quick("--ready", "notify", "--ready-timeout", "2", "--env", "FAULT=mute")
    before = _abstract_names()
    with Service(folder, *options, command=[python(), str(folder / "rude.py")], wait=False) as service:
        service.running.says("started (pid")
        (name,) = wait_for(lambda: _abstract_names() - before, "where it listens")
        script = (
            "import socket, sys; sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
            "sock.sendto(b'READY=1', chr(0) + sys.argv[1])"
        )
        subprocess.run([python(), "-c", script, name[1:]], check=True, user=NOBODY, group=NOBODY, extra_groups=[])
        assert service.running.ends() == 125
        text = service.running.text()
    assert f"(uid {NOBODY}), which is none of its, is not believed" in text
    assert "serves" not in text


def _abstract_names() -> set[str]:
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {row[7] for row in rows if len(row) == 8 and row[7].startswith("@") and row[4] == "0002"}


def test_a_unix_listener_is_the_masters_and_the_path_stays(folder: Path) -> None:
    public = folder / "public.sock"
    with as_nobody(folder, bind=f"unix:{public}?mode=0660&owner=nobody") as service:
        assert caps(service.pid) == EXPECTED | {capabilities.CHOWN, capabilities.FOWNER}
        service.upgrade()
        service.settled(2)
        assert request(str(public))[1] == 2
        assert public.stat().st_uid == NOBODY
        assert public.stat().st_mode & 0o777 == 0o660


def test_paths_in_somebody_elses_directory_can_still_be_removed(folder: Path) -> None:
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    public = theirs / "public.sock"
    with as_nobody(folder, "--pidfile", str(theirs / "app.pid"), bind=f"unix:{public}") as service:
        assert capabilities.DAC_OVERRIDE in caps(service.pid)
        service.upgrade()
        service.settled(2)
        assert request(str(public))[1] == 2
        assert service.stop() == 0
    assert not list(theirs.glob("*.sock*"))
    assert not (theirs / "app.pid").exists()


def test_commands_of_the_operator_run_as_the_user_too(folder: Path) -> None:
    proof = folder / "proof"
    proof.mkdir()
    proof.chmod(0o777)
    with as_nobody(folder, "--check", f"/bin/cp /bin/true {proof}/check") as service:
        service.upgrade()
        assert (proof / "check").stat().st_uid == NOBODY


def test_a_root_of_its_own_holds_the_command(folder: Path) -> None:
    compiler = needs("gcc")
    jail = folder / "jail"
    (jail / "bin").mkdir(parents=True)
    program = ["#include <unistd.h>", "int main(void) { for (;;) pause(); }"]
    subprocess.run(
        [compiler, "-static", "-x", "c", "-", "-o", str(jail / "bin" / "wait")],
        input="\n".join(program), text=True, check=True,
    )  # fmt: skip
    with Service(
        folder, "--chroot", str(jail), "--user", "nobody", "--ready", "delay:100ms", *quick("--kill-after", "1"),
        command=["/bin/wait"],
    ) as service:  # fmt: skip
        (generation,) = service.generations().values()
        assert os.readlink(f"/proc/{generation['pids'][0]}/root") == str(jail)
        assert os.readlink(f"/proc/{service.pid}/root") == "/"
        assert capabilities.SYS_CHROOT in caps(service.pid)
        service.upgrade()
        assert service.generations()[2]["pids"]


def test_without_another_user_nothing_is_given_up(folder: Path) -> None:
    with Service(folder, *quick()) as service:
        (generation,) = service.generations().values()
        assert caps(service.pid) == caps(os.getpid())
        assert caps(generation["pids"][0]) == caps(os.getpid())


@pytest.mark.parametrize(("options", "says"), [
    (("--rlimit", "nofile=1:4611686018427387904"), "its limits"),
    (("--user", "nobody", "--", "{closed}/program"), "Permission denied"),
    (("--user", "nobody", "--", "no-such-program-at-all"), "not found"),
])  # fmt: skip
def test_what_the_system_refuses_is_told(folder: Path, options: tuple[str, ...], says: str) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    words = [word.format(closed=closed) for word in (options if "--" in options else (*options, "--", "true"))]
    done = verb("run", "--path", str(folder / "sock"), "--bind", "127.0.0.1:0", *words)
    assert done.returncode in (125, 126, 127)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_says_whether_a_second_generation_fits(folder: Path) -> None:
    with as_nobody(folder) as service:
        done = verb("upgrade", str(service.path), "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert checks["memory"]["ok"]
        assert "fit" in checks["memory"]["detail"]
        assert service.status()["warnings"] == []
