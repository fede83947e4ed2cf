"""A real systemd in 0.2 s: booted in namespaces of its own over a throw-away overlay of a root directory, of which nothing is
ever written. It has its own processes, network, users and cgroup; one directory is shared with the test.

Everything of it ends with the process that watches over it, and that one ends when its standard input does: also where the
test, or all of pytest, was killed.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from ....conftest import needs, needs_that
from ...cli import DEADLINE, PACKAGE, wait_for
from ...master import RUDE, Load as PlainLoad, request as plain_request

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdhandoff-tests"
_CLONE_NEWNET = 0x40000000
QUICK = "--settle 100ms --probation 300ms"

#: What would only cost time, or wait for hardware that is not there.
MASKED = (
    "console-getty.service", "getty.target", "nginx.service", "systemd-firstboot.service", "systemd-logind.service",
    "systemd-modules-load.service", "systemd-networkd.service", "systemd-networkd.socket", "systemd-remount-fs.service",
    "systemd-resolved.service", "systemd-sysctl.service", "systemd-timesyncd.service", "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup.service", "systemd-udev-trigger.service", "systemd-udevd.service",
    "systemd-update-utmp.service",
)  # fmt: skip


class Tree:
    """A release of systemd: the root directory over which it is laid, and what lies over its /usr."""

    def __init__(self, root: Path, usr: Path | None, python: str) -> None:
        self.root = root
        self.usr = usr
        self.python = python


def tree(version: int) -> Tree:
    """This machine's own (Debian 12: 252), or one that ``.ci/systemd-trees`` has fetched; or a skip that says why."""
    needs_that(os.geteuid() == 0, "root, for a systemd of its own")
    for program, package in (("unshare", "util-linux"), ("setpriv", "util-linux"), ("systemctl", "systemd")):
        needs(program, package)
    needs_that(cgroup2() is not None, "a cgroup2 hierarchy that can be written")
    if version == 252:
        needs_that(Path("/lib/systemd/systemd").exists(), "systemd: apt-get install systemd")
        return Tree(Path("/"), None, sys.executable)
    place = CACHE / f"systemd-{version}"
    if not place.is_dir():
        pytest.skip(
            f"systemd {version} is not in {CACHE}: .ci/systemd-trees fetches it where Debian's mirror can be reached"
        )
    if (place / "lib/systemd/systemd").exists():
        return Tree(place, None, "/usr/bin/python3")
    return Tree(Path("/"), place / "usr", sys.executable)


def cgroup2() -> Path | None:
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(where)
    return None


class Bed:
    """The system. ``shared`` is the directory that both sides see, under the same name and, inside, as ``/srv``; units are
    written with ``unit``."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        self.shared = folder / "shared"
        self.tree = tree
        self._folder = folder
        self._units, self._user_units = folder / "units", folder / "user-units"
        for directory in (self.shared, self._units, self._user_units, folder / "stage", folder / "bin"):
            directory.mkdir(mode=0o755)
        for name in MASKED:
            (self._units / name).symlink_to("/dev/null")
        self.leader = 0
        self._watch: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        parent = cgroup2()
        assert parent is not None
        cgroup = parent / f"fdhandoff-test-{os.getpid()}-{self._folder.name}"
        binds = [
            (str(self.shared), str(self.shared)),
            (str(self.shared), "/srv"),
            (str(self._units), "/etc/systemd/system"),
            (str(self._user_units), "/etc/systemd/user"),
            (f"ro:{PROJECT}", str(PROJECT)),
            (f"ro:{self._cli()}", "/usr/local/bin/fdhandoff-cli"),
        ]
        if self.tree.root == Path("/"):
            binds.append((f"ro:{sys.base_prefix}", sys.base_prefix))
        self._watch = subprocess.Popen(
            ["/bin/sh", str(HERE / "watch.sh"), str(cgroup), str(self._folder / "stage"), str(self.tree.root),
             str(self.tree.usr or ""), *(word for pair in binds for word in pair)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._watch.stdout is not None
        unshare = int(self._watch.stdout.readline())
        self.leader = int(wait_for(lambda: self._booting(unshare), "the namespaces"))
        wait_for(lambda: self._booted(unshare), "systemd")

    def _cli(self) -> Path:
        """The command line, as it is installed: on the one path that units name."""
        path = self._folder / "bin" / "fdhandoff-cli"
        path.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(PROJECT))} exec {self.tree.python} -m {PACKAGE} "$@"\n',
            encoding="utf-8",
        )
        path.chmod(0o755)
        return path

    def _booting(self, unshare: int) -> int:
        try:
            if Path(f"/proc/{unshare}/comm").read_text(encoding="ascii") != "unshare\n":
                return 0  # it has only begun
            children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text(encoding="ascii").split()
        except FileNotFoundError:
            return 0
        return int(children[0]) if children else 0

    def _booted(self, unshare: int) -> bool:
        self._alive()
        try:
            is_systemd = Path(f"/proc/{self.leader}/comm").read_text(encoding="ascii") == "systemd\n"
        except FileNotFoundError:
            is_systemd = False
        # Before that, who enters is still in the test's own root.
        return is_systemd and self.systemctl("is-system-running", check=False) == "running"

    def _alive(self) -> None:
        assert self._watch is not None
        assert self._watch.stderr is not None
        if self.leader and not Path(f"/proc/{self.leader}").exists():
            self.close()
            raise AssertionError(f"the system did not boot: {self._errors}")

    _errors = ""

    @property
    def running(self) -> bool:
        return self._watch is not None and bool(self.leader)

    def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        _, self._errors = watch.communicate(timeout=DEADLINE)

    # --- inside ---------------------------------------------------------------------------------------------

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A process inside, as root."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.leader), "-a", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def inside(
        self, *command: str, check: bool = True, timeout: float = 2 * DEADLINE
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, to its end."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.inside("systemctl", "--no-pager", *words, check=check).stdout.strip()

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.inside("fdhandoff-cli", *words, check=check)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def log(self, unit: str = "") -> str:
        """What the journal has of it."""
        only = ["--unit", unit] if unit else []
        return self.inside("journalctl", "--no-pager", "--output=cat", *only, check=False).stdout

    def processes(self, unit: str) -> list[int]:
        """Every process in the unit's cgroup, by its number inside."""
        group = self.show(unit, "ControlGroup")
        return self.processes_of(group) if group else []

    def processes_of(self, group: str) -> list[int]:
        listed = self.inside("sh", "-c", f"find /sys/fs/cgroup{group} -name cgroup.procs -exec cat {{}} +", check=False)
        return sorted(map(int, listed.stdout.split()))

    def programs(self, unit: str) -> list[int]:
        """The same without those that only pass output on."""
        pids = self.processes(unit)
        listed = (
            self.inside("ps", "-o", "pid=,comm=", "-p", ",".join(map(str, pids)), check=False).stdout if pids else ""
        )
        return [int(line.split()[0]) for line in listed.splitlines() if line.split()[1] != "fdh-relay"]

    def freeze(self, pid: int) -> None:
        """Stops it; returns when no thread of it runs any more."""
        self.inside("kill", "-STOP", str(pid))
        states = ["sh", "-c", f"cut -d')' -f2 /proc/{pid}/task/*/stat"]
        wait_for(lambda: {line.split()[0] for line in self.inside(*states).stdout.splitlines()} == {"T"}, "it to stop")

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    # --- units and files ------------------------------------------------------------------------------------

    def unit(self, name: str, text: str) -> None:
        """Writes it; ``reload`` makes it known."""
        path = self._units / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def user_unit(self, name: str, text: str) -> None:
        path = self._user_units / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def reload(self) -> None:
        self.systemctl("daemon-reload")

    def program(self, name: str = "server", source: str = RUDE) -> Path:
        """A program inside, in ``/srv``, that is ``source`` run by Python."""
        path = self.shared / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        text = f"#!{self.tree.python}\nimport sys\nsys.path.insert(0, {str(PROJECT)!r})\n{source}"
        fresh = path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        fresh.rename(path)
        return path

    # --- its network ----------------------------------------------------------------------------------------

    def enter_network(self) -> None:
        """For the calling thread, and for ever: its sockets are the system's from here on."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(f"/proc/{self.leader}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(fd, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def in_network(self, what: Callable[[], T]) -> T:
        """What ``what`` returns or raises in a thread whose network is the system's."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self.enter_network()
                results.append(what())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def request(self, address: Any, path: str = "/") -> tuple[str, int, int]:
        return self.in_network(lambda: plain_request(address, path))


class Question:
    """A request from inside the system, that may have to wait for its answer."""

    def __init__(self, bed: Bed, address: Any, path: str = "/") -> None:
        self._bed = bed
        self._address = address
        self._path = path
        self._outcome: tuple[str, int, int] | OSError | None = None
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._bed.enter_network()
            self._outcome = plain_request(self._address, self._path)
        except OSError as error:
            self._outcome = error

    def answer(self) -> tuple[str, int, int]:
        """Release, generation and pid of who answered, once it is there; or how it failed, as ``OSError``."""
        self._thread.join()
        assert self._outcome is not None
        if isinstance(self._outcome, OSError):
            raise self._outcome
        return self._outcome


class Load(PlainLoad):
    """Clients in the system's own network."""

    def __init__(self, bed: Bed, address: Any, clients: int = 4, path: str = "/") -> None:
        super().__init__(address, clients, path)
        self._bed = bed

    def _ask(self) -> None:
        self._bed.enter_network()
        super()._ask()


# --- the page -------------------------------------------------------------------------------------------------

PAGE = PROJECT / "docs/how-to/supervisors/systemd.md"


def units() -> dict[str, str]:
    """The unit files that the page has, by the path that their first line names."""
    blocks = re.findall(r"```ini\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks, f"{PAGE} shows no unit"
    return dict(blocks)


def install(bed: Bed, *names: str, quick: str = QUICK) -> None:
    """Writes units of the page as they stand there, by the last part of their path. What is slow on purpose is made quick by a
    drop-in: it repeats the page's own ExecStart, with ``quick`` among its options."""
    for path, text in units().items():
        name = path.removeprefix("/etc/systemd/system/")
        if name not in names:
            continue
        bed.unit(name, text)
        command = re.search(r"^ExecStart=(.*fdhandoff-cli run) (.*)$", text, re.MULTILINE)
        if command is not None and quick:
            bed.unit(f"{name}.d/quick.conf", f"[Service]\nExecStart=\nExecStart={command[1]} {quick} {command[2]}\n")
    bed.reload()
