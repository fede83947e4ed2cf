"""A machine that is full, read-only, out of descriptors, or somebody else's: one clear sentence, the documented exit code,
nothing left, and what serves goes on serving."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs_that
from ..cli import DEADLINE, PACKAGE, environment, verb, wait_for
from . import Load, Service, quick, request, rude
from .test_mistakes import sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


class Small:
    """A file system of a few pages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self.path / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))

    def empty(self) -> None:
        (self.path / "ballast").unlink()

    def remount(self, options: str) -> None:
        assert mount("-o", f"remount,{options}", str(self.path))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    path = tmp_path / "small"
    path.mkdir()
    needs_that(os.geteuid() == 0 and mount("-t", "tmpfs", "-o", "size=64k,nr_inodes=16", "none", str(path)), "root")
    try:
        yield Small(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# --- a full disk ------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_neither_the_service_nor_an_upgrade(small: Small) -> None:
    with Service(small.path, *quick()) as service, Load(service.address(), 2) as load:
        small.fill()
        assert service.command()[0] == 0
        load.heard(2)
        assert service.command()[0] == 0
        service.settled(3)
        assert sum("the journal" in line for line in service.running.err) == 1
        small.empty()
        assert service.command()[0] == 0
        service.running.says("is written again")
        load.end()
        assert not load.failures
        assert service.stop() == 0
    assert os.listdir(small.path) == ["release.env"]


def test_a_full_disk_does_not_stop_a_start(small: Small) -> None:
    with Service(small.path, *quick(), wait=False) as service:
        small.fill()
        service.serves()
        assert request(service.address())[1] == 1
        assert service.stop() == 0
    small.empty()
    assert os.listdir(small.path) == ["release.env"]


def test_a_log_on_a_full_disk_stops_nothing(small: Small) -> None:
    path = small.path / "s"
    words = ["run", "--path", str(path), "--bind", "127.0.0.1:0", *quick(), "--", *rude()]
    with open(small.path / "log", "wb", buffering=0) as log:
        small.fill()
        master = subprocess.Popen([sys.executable, "-m", PACKAGE, *words], stdout=log, stderr=log, env=environment())
    with master:
        wait_for(lambda: verb("upgrade", str(path)).returncode == 0, "an upgrade")
        small.empty()
        assert verb("upgrade", str(path)).returncode == 0
        assert verb("stop", str(path), "--wait").returncode == 0
    assert master.returncode == 0
    assert "to generation 3 in" in (small.path / "log").read_text()


def test_a_configuration_that_a_full_disk_cut_short_is_refused(small: Small) -> None:
    config = small.path / "run.toml"
    config.write_text("command = ['sleep', '1000']\n")
    options = quick("--config", str(config), "--ready", "delay:0.1")
    with Service(small.path, *options, command=()) as service:
        for text in ("", "command = ['sle"):
            config.write_text(text)
            done = verb("upgrade", str(service.path))
            assert (done.returncode, "configuration file" in sentence(done) or "run.toml" in done.stderr) == (1, True)
        assert service.status()["generation"] == 1


def test_no_room_for_another_name_is_said_at_the_start(small: Small) -> None:
    with contextlib.suppress(OSError):
        for number in range(100):
            (small.path / str(number)).touch()
    before = os.listdir(small.path)
    for words in (
        ["--path", f"{small.path}/s"],
        ["--path", f"{small.path.parent}/s", "--bind", f"unix:{small.path}/u"],
    ):
        done = verb("run", *words, "--bind", "127.0.0.1:0", "--", "sleep", "9")
        assert (done.returncode, "No space left on device" in sentence(done)) == (125, True), done.stderr
    assert os.listdir(small.path) == before
    assert os.listdir(small.path.parent) == ["small"]


# --- a read-only directory --------------------------------------------------------------------------------------


def test_a_read_only_directory_is_said_at_the_start(small: Small) -> None:
    small.remount("ro")
    for words in (
        ["--path", f"{small.path}/s"],
        ["--path", f"{small.path.parent}/s", "--bind", f"unix:{small.path}/u"],
    ):
        done = verb("run", *words, "--bind", "127.0.0.1:0", "--", "sleep", "9")
        assert (done.returncode, "Read-only file system" in sentence(done)) == (125, True), done.stderr
    done = verb("run", "--name", "app", "--", "sleep", "9", env={"FDHANDOFF_RUNTIME_DIR": str(small.path)})
    assert (done.returncode, "Read-only file system" in sentence(done)) == (125, True), done.stderr
    assert os.listdir(small.path.parent) == ["small"]


def test_a_directory_that_becomes_read_only_stops_neither_an_upgrade_nor_a_stop(small: Small) -> None:
    with Service(small.path, *quick()) as service, Load(service.address(), 2) as load:
        small.remount("ro")
        assert service.command()[0] == 0
        load.heard(2)
        load.end()
        assert not load.failures
        assert service.stop() == 0
        assert "Traceback" not in service.running.text()


# --- too few descriptors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", range(7, 21))
def test_a_start_with_too_few_descriptors_says_so_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    words = ["run", "--path", str(tmp_path / "s"), "--bind", "127.0.0.1:0", "--", "sleep", "9"]
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", sys.executable, "-m", PACKAGE, *words],
        capture_output=True, text=True, env=environment(), timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert (done.returncode, "Too many open files: raise the open-files limit" in done.stderr) == (125, True), (
        done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)


def test_an_upgrade_with_too_few_descriptors_is_refused_and_the_next_one_works(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service, Load(service.address(), 2) as load:
        assert service.command()[0] == 0
        service.settled(2)
        before = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{service.pid}/fd"))
        codes = []
        for spare in range(1, 6):
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (used + spare, before[1]))
            done = verb("upgrade", str(service.path))
            codes.append(done.returncode)
            assert done.returncode == 0 or "raise the open-files limit" in done.stderr.splitlines()[-1], done.stderr
            service.settled()
        assert codes[0] == 1
        assert set(codes) <= {0, 1}
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, before)
        assert service.command()[0] == 0
        load.heard(service.status()["generation"])
        load.end()
        assert not load.failures


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [96, 100, 101, 104, 105, 106, 107, 108])
def test_a_long_path_works_or_is_refused_before_anything_is_started(tmp_path: Path, length: int) -> None:
    """A Unix socket's name has 107 bytes at most, and beside a listener's own its generations have names of theirs."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        public = f"{folder}/{'x' * (length - len(folder) - 1)}"
        with Service(tmp_path, *quick(), bind=f"unix:{public}", wait=False) as service:
            wait_for(lambda: service.running.process.poll() is not None or service.quietly().get("state") == "serving")
            if service.running.process.poll() is None:
                service.upgrade()
                assert request(public)[1] == 2
                assert service.stop() == 0
            else:
                assert service.running.ends() == 125
                (line,) = service.running.err
                assert "choose a shorter one" in line
        assert not os.listdir(folder)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"A=\xff\n")
    for option in ("--env-file", "--config"):
        for file in (tmp_path, tmp_path / "binary"):
            done = verb(
                "run", "--path", f"{tmp_path}/s", "--bind", "127.0.0.1:0", option, str(file), "--", "sleep", "9"
            )
            assert (done.returncode, str(file) in sentence(done), "Errno" in done.stderr) == (2, True, False), (
                done.stderr
            )
    with Service(tmp_path, *quick()) as service:
        service.env_file.unlink()
        service.env_file.mkdir()
        done = verb("upgrade", str(service.path))
        assert (done.returncode, "release.env" in sentence(done), "Errno" in done.stderr) == (1, True, False), (
            done.stderr
        )


# --- whose it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "udp:"])
def test_a_port_that_another_program_has_is_said_with_its_pid_and_name(tmp_path: Path, kind: str) -> None:
    code = (
        f"import socket; s = socket.socket(type=socket.SOCK_{'DGRAM' if kind else 'STREAM'}); s.bind(('127.0.0.1', 0))\n"
        f"{kind!r} or s.listen(); print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        done = verb("run", "--path", str(tmp_path / "s"), "--bind", f"{kind}127.0.0.1:{port}", "--", "true")
        other.communicate("\n")
    assert done.returncode == 125
    for part in (f"127.0.0.1:{port}", str(other.pid), "python"):
        assert part in sentence(done)
    assert not os.listdir(tmp_path)
