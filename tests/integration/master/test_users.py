"""Services and verbs of different users: who may ask whom, and what everybody else is told."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fdhandoff
from fdhandoff import cli

from ...conftest import needs_that
from ..cli import verb, wait_for
from . import Service, quick, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can come to."""
    needs_that(os.geteuid() == 0, "root")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def start_as_nobody(words: Sequence[str], errors: int) -> int:
    """The command line in a process of another user: its pid. Everything is loaded before, for that user may not be allowed
    to read it."""
    package = f"{fdhandoff.__name__}."
    ours = [module.name for module in pkgutil.walk_packages(fdhandoff.__path__, package)]
    adapters = f"{package}servers."  # of what need not be installed, and no verb needs
    for name in ("encodings.ascii", "encodings.idna", *ours):
        if not name.endswith("__main__") and not name.startswith(adapters):
            importlib.import_module(name)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.dup2(errors, 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - to its end
        os._exit(cli.main(list(words)))
    except BaseException as error:
        os.write(errors, repr(error).encode())
    finally:
        os._exit(99)


def as_nobody(*words: str) -> tuple[int, str]:
    """The exit code of a verb that nobody says, and its complaint."""
    with tempfile.TemporaryFile() as errors:
        _, status = os.waitpid(start_as_nobody(words, errors.fileno()), 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read().decode()


def verbs(*target: str) -> list[list[str]]:
    return [[name, *target] for name in ("status", "upgrade", "rollback", "drain", "hurry", "stop")]


def test_nobody_may_not_ask_the_service_of_root(folder: Path) -> None:
    with Service(folder, *quick()) as service:
        for words in [*verbs(str(service.path)), *verbs("--pid", str(service.pid))]:
            code, errors = as_nobody(*words)
            assert (code, errors.count("\n")) == (3, 1), (words, errors)
            assert "belongs to uid 0" in errors, (words, errors)
        assert request(service.address())[1] == 1
        assert service.status()["counters"]["upgrades"] == 0


def test_a_path_that_all_may_connect_to_obeys_those_who_are_allowed(folder: Path) -> None:
    with Service(folder, *quick("--socket-mode", "0666")) as service:
        for words in verbs(str(service.path)):
            code, errors = as_nobody(*words)
            assert (code, errors.count("\n"), f"uid {NOBODY}" in errors) == (1, 1, True), (words, errors)
        assert service.status()["state"] == "serving"
        assert service.stop() == 0
    with Service(folder, *quick("--socket-mode", "0666", "--allow-uid", str(NOBODY))) as service:
        assert as_nobody("upgrade", str(service.path))[0] == 0
        assert as_nobody("stop", str(service.path))[0] == 0
        assert service.running.ends() == 0


def test_root_may_ask_the_service_of_nobody(folder: Path) -> None:
    """By its pid as it is; by its path when it says whom it expects there."""
    os.chown(folder, NOBODY, NOBODY)
    path = str(folder / "s")
    with tempfile.TemporaryFile() as errors:
        words = [
            "run",
            "--path",
            path,
            "--bind",
            "127.0.0.1:0",
            *quick("--ready", "delay:0.1"),
            "--",
            "/bin/sleep",
            "100",
        ]
        master = start_as_nobody(words, errors.fileno())
        try:
            asked = ("status", path, "--allow-uid", str(NOBODY), "--json")
            wait_for(lambda: '"state": "serving"' in verb(*asked).stdout, "the service of nobody")
            done = verb("stop", path)
            assert (done.returncode, f"--allow-uid {NOBODY}" in done.stderr) == (1, True), done.stderr
            for words in (["status"], ["upgrade"], ["stop"]):
                done = verb(*words, "--pid", str(master))
                assert done.returncode == 0, done.stderr
            _, status = os.waitpid(master, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGTERM)
            os.waitpid(master, 0)
            errors.seek(0)
            print(errors.read().decode())
            raise
    assert not os.listdir(folder)


def test_what_nobody_can_not_read_or_write_is_said(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("A=1\n")
    secret.chmod(0o600)
    private = folder / "private"
    private.mkdir(mode=0o700)
    mine = folder / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    for words, code, part in (
        (["--path", f"{mine}/s", "--env-file", str(secret)], 2, f"{secret}: Permission denied"),
        (["--path", f"{mine}/s", "--config", str(secret)], 2, f"{secret}: Permission denied"),
        (["--path", f"{private}/s"], 125, f"uid {NOBODY} has no permission there"),
        (["--path", f"{folder}/s"], 125, f"uid {NOBODY} has no permission there"),
        (["--path", f"{mine}/s", "--bind", f"unix:{private}/u"], 125, f"uid {NOBODY} has no permission there"),
        (["--path", f"{mine}/s", "--", str(secret)], 126, "not"),
    ):
        tail = [] if "--" in words else ["--", "/bin/sleep", "9"]
        got, errors = as_nobody("run", "--bind", "127.0.0.1:0", *words, *tail)
        assert (got, part in errors, "Traceback" in errors) == (code, True, False), (words, errors)
        assert not os.listdir(mine)


def test_the_port_of_another_user_is_said_to_be_taken(folder: Path) -> None:
    """Nobody can't see who has it, and is told how it could be found out."""
    mine = folder / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, errors = as_nobody("run", "--path", f"{mine}/s", "--bind", address, "--", "/bin/sleep", "9")
    assert (code, errors.count("\n"), f"{address} is taken" in errors) == (125, 1, True), errors
