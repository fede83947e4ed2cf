"""What holds for every test: nothing is left behind, and in CI nothing is skipped for want of a program or a privilege.

A skip whose reason begins with "needs " says that this machine lacks something that could be had; with ``CI=true`` in the
environment it is a failure. What a kernel can't do is skipped in other words ("this kernel has no …").
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
MARK = "FDHANDOFF_TEST_RUN"
SETTLE = 5.0  # seconds that threads and children of a test get to finish after it

# --- what a test may need -----------------------------------------------------------------------------------


def needs(program: str, package: str = "") -> str:
    """The path of ``program``, or a skip that says which Debian package has it."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: apt-get install {package or program}")
    return found


def needs_that(there: bool, what: str) -> None:
    """A skip unless ``there``; ``what`` completes the sentence "needs …": ``needs_that(os.geteuid() == 0, "root")``."""
    if not there:
        pytest.skip(f"needs {what}")


def _skipped_for_want(report: pytest.TestReport | pytest.CollectReport) -> str:
    if not report.skipped or hasattr(report, "wasxfail"):
        return ""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    return reason if reason.startswith("needs ") else ""


def _no_skip_in_ci(report: Any) -> Any:
    reason = _skipped_for_want(report) if IN_CI else ""
    if reason:
        report.outcome = "failed"
        report.longrepr = f"CI has everything, and yet this test {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    return _no_skip_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    return _no_skip_in_ci((yield))


def pytest_configure() -> None:
    os.environ[MARK] = str(os.getpid())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: run it with --soak"))


# --- nothing is left behind ---------------------------------------------------------------------------------


def _target(fd: int) -> str:
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        info = os.fstat(fd)
        target = f"mode {info.st_mode:o} inode {info.st_ino}"
    return target


def _open_fds() -> dict[int, str]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for fd in map(int, os.listdir(folder)):  # the listing's own descriptor is closed when we look
        try:
            found[fd] = _target(fd)
        except OSError:
            pass
    return found


def _describe(fd: int, target: str) -> str:
    if target.startswith("socket:"):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                target += f" {sock.family.name} {sock.type.name} {sock.getsockname()!r}{' listening' * listening}"
        except OSError:
            pass
    return f"{fd} -> {target}"


def _children() -> dict[int, str]:
    """Our child processes, dead ones that nobody waited for included, and their orphans (known by an environment variable
    that all inherit); empty where /proc does not tell."""
    mark = f"\0{MARK}={os.getpid()}\0".encode()
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else ()):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
            ours = parent == os.getpid() or mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
            if ours and int(pid) != os.getpid():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(pid)] = command.strip() or "(a zombie)"
        except OSError:
            pass  # it ended meanwhile, or is none of ours
    return found


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _signals() -> dict[str, Any]:
    handlers = {number.name: signal.getsignal(number) for number in signal.Signals}
    return {**handlers, "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def _changes(what: str, before: dict[Any, Any], after: dict[Any, Any], show: Any) -> list[str]:
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            found.append(f"{what} gone: {show(key, before[key])}")
        elif key not in before:
            found.append(f"{what} left behind: {show(key, after[key])}")
        elif before[key] != after[key]:
            found.append(f"{what} changed: {show(key, after[key])}, before: {before[key]}")
    return found


class Surroundings:
    """The state of the process that a test must leave as it found it."""

    def __init__(self) -> None:
        self.fds = _open_fds()
        self.children = _children()
        self.environment = _environment()
        self.signals = _signals()
        self.directory = os.getcwd()

    def differences(self) -> list[str]:
        directory = os.getcwd()
        return [
            *_changes("descriptor", self.fds, _open_fds(), _describe),
            *_changes("child process", self.children, _children(), lambda pid, command: f"{pid} {command}"),
            *_changes("environment variable", self.environment, _environment(), lambda name, value: f"{name}={value}"),
            *_changes("signal", self.signals, _signals(), lambda name, value: f"{name}: {value}"),
            *([f"working directory changed: {directory}"] if directory != self.directory else []),
        ]

    def settle(self) -> list[str]:
        """The differences that remain when what ends by itself has had its time."""
        differences = self.differences()
        if differences:
            gc.collect()  # a traceback in a cycle keeps its frame's sockets
        give_up = time.monotonic() + SETTLE
        while (differences := self.differences()) and time.monotonic() < give_up:
            time.sleep(0.005)
        return differences

    def restore(self) -> None:
        """So that one test's fault is not the next one's too."""
        for pid in _children().keys() - self.children.keys():
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)  # an orphan is init's to wait for
            except OSError:
                pass
        for name in _environment().keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)
        for name, handler in self.signals.items():
            if name == "mask":
                signal.pthread_sigmask(signal.SIG_SETMASK, handler)
            elif handler is not None and name not in ("SIGKILL", "SIGSTOP"):
                signal.signal(signal.Signals[name], handler)
        os.chdir(self.directory)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Descriptors, child processes, environment, signal handlers and working directory are the same after each test."""
    before = Surroundings()
    yield
    differences = before.settle()
    if differences:
        before.restore()
        pytest.fail("the test left the process changed:\n  " + "\n  ".join(differences), pytrace=False)
