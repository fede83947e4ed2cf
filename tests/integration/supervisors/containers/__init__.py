"""Real containers without a registry: podman over a root made of links into the host's ``/usr``, which is mounted read-only
like the Python and the checkout under test. Everything of podman's own lies in a folder that goes with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from tests.conftest import needs, needs_that

from ...cli import DEADLINE, PACKAGE, Running

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GROUP = 3000  # of whoever may use the volume


class Containers:
    """``volume`` is mounted as ``/vol`` in all of them, and belongs to ``GROUP``."""

    def __init__(self, folder: Path) -> None:
        needs("podman")
        needs("runc")
        needs_that(os.geteuid() == 0, "root")
        self._own = tempfile.mkdtemp(prefix="fdh-")  # podman wants its paths to be short
        self.volume = folder / "vol"
        self.volume.mkdir()
        os.chown(self.volume, 0, GROUP)
        self.volume.chmod(0o2770)
        self._root = folder / "root"
        for name in ("proc", "sys", "dev", "tmp", "run", "etc", "vol", "usr"):
            (self._root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self._root / name).symlink_to(f"usr/{name}")
        self.running: dict[str, Container] = {}

    def podman(self, *words: str) -> list[str]:
        own = ["--root", f"{self._own}/storage", "--runroot", f"{self._own}/state", "--storage-driver", "vfs"]
        return ["podman", *own, "--cgroup-manager", "cgroupfs", *words]

    def do(self, *words: str, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.podman(*words), capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, name: str, command: Sequence[str], *, user: int = 1000, options: Sequence[str] = ()) -> Container:
        """``command`` as process 1 of a container: user ``user``, no capability, nothing of the root writable but ``/tmp`` and
        the volume, the network of the host."""
        mounts = []
        for place in dict.fromkeys(("/usr", sys.base_prefix, sys.prefix, *map(os.path.abspath, _checkout()))):
            mounts += ["--volume", f"{place}:{place}:ro"]
        words = self.podman(
            "run", "--rm", "--name", name, "--runtime", "runc", "--network", "host", "--read-only", "--tmpfs", "/tmp",
            "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000", "--cap-drop", "all",
            "--security-opt", "no-new-privileges", "--user", f"{user}:{GROUP}", "--env", f"PYTHONPATH={_path()}",
            "--env", "PYTHONDONTWRITEBYTECODE=1", *mounts, "--volume", f"{self.volume}:/vol", *options,
            "--rootfs", str(self._root), *command,
        )  # fmt: skip
        self.running[name] = Container(self, name, words)
        return self.running[name]

    def close(self) -> None:
        for one in self.running.values():
            one.remove()
        for folder in (f"{self._own}/storage/vfs", f"{self._own}/storage"):  # podman mounts them over themselves
            subprocess.run(["umount", folder], capture_output=True, check=False)
        shutil.rmtree(self._own)


class Container(Running):
    """One container: its output as it comes, its end as ``podman run`` tells it."""

    def __init__(self, bed: Containers, name: str, words: list[str]) -> None:
        self._bed = bed
        self.name = name
        self._start(words)

    def host_pid(self) -> int:
        """The number that its process 1 has out here."""
        done = self._bed.do("inspect", "--format", "{{.State.Pid}}", self.name)
        return int(done.stdout)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside."""
        return self._bed.do("exec", self.name, *words)

    def verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(*cli(*words))

    def stop(self, seconds: int = 10) -> None:
        """As an orchestrator does: TERM, and KILL after so long."""
        done = self._bed.do("stop", "--time", str(seconds), self.name)
        assert done.returncode == 0, done.stderr

    def remove(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._bed.do("rm", "--force", "--time", "0", self.name)
        if self.process.poll() is None:
            self.process.kill()
        self.ends()


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", PACKAGE, *words]


def _checkout() -> list[str]:
    """The folders that the package and the tests are imported from."""
    return [os.path.dirname(os.path.dirname(sys.modules[PACKAGE].__file__ or "")), os.getcwd()]


def _path() -> str:
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)
