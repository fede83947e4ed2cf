"""Each example does what its first lines promise, by hand and under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..conftest import needs
from .services import alive, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of this copy")


class Programs:
    """Processes, each with a file of what it said; all of them end with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []
        self.path = directory / "handoff.sock"
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]

    def start(self, *command: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        log = self.directory / f"log{len(self.started)}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(word) for word in command], stdout=file, stderr=file, env=environment, start_new_session=True
            )
        self.started.append(process)
        return process

    def python(self, script: str, *arguments: object) -> subprocess.Popen[bytes]:
        return self.start(sys.executable, EXAMPLES / script, *arguments)

    def server(self, script: str, *arguments: object) -> subprocess.Popen[bytes]:
        where = ("--listen", f"127.0.0.1:{self.port}", "--path", self.path, "--probation", "0.3")
        return self.python(script, *where, *arguments)

    def said(self, process: subprocess.Popen[bytes], words: str) -> str:
        log = self.directory / f"log{self.started.index(process)}"

        def look() -> bool:
            if words in log.read_text():
                return True
            assert process.poll() is None, f"{process.args} ended: {log.read_text()}"
            return False

        eventually(look, f"{process.args} did not say {words!r}")
        return log.read_text()

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    found = Programs(tmp_path)
    yield found
    found.end()


def answer(port: int, target: str = "/") -> dict[str, object]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{target}", timeout=10) as response:
        found: dict[str, object] = json.load(response)
    return found


@pytest.mark.parametrize("server", ["asyncio", "threaded"])
def test_the_demo_sees_no_failed_request(server: str) -> None:
    command = [sys.executable, EXAMPLES / "demo.py", "--server", server]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    result = subprocess.run(
        [*command, "--handoffs", "3", "--steady", "0.5", "--pause", "0.2"],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "a bad release fails its own check and exits with 1" in result.stdout
    assert ", 0 failed" in result.stdout


@pytest.mark.parametrize("script", ["asyncio_http.py", "threaded_http.py"])
def test_a_server_upgrades_itself_at_a_signal(programs: Programs, script: str) -> None:
    first = programs.server(script)
    programs.said(first, "generation 1 serves")
    assert answer(programs.port)["generation"] == 1
    first.send_signal(signal.SIGHUP)
    assert first.wait(20) == 0
    found = answer(programs.port)
    assert found["generation"] == 2
    os.kill(int(str(found["pid"])), signal.SIGTERM)
    eventually(lambda: not alive(int(str(found["pid"]))))
    assert not programs.path.exists()


def test_jobs_finish_where_they_were_accepted(programs: Programs, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    options = (spool, "--path", programs.path, "--probation", "0.3")
    (spool / "long.job").write_text(f"sleep 3; echo $PPID > {tmp_path}/long")
    first = programs.python("jobs.py", *options)
    eventually((spool / "long.running").exists)
    second = programs.python("jobs.py", *options)
    programs.said(second, "generation 2 serves")
    (spool / "short.job").write_text(f"echo $PPID > {tmp_path}/short")
    eventually((spool / "short.done").exists)
    assert not (spool / "long.done").exists()
    os.killpg(first.pid, signal.SIGTERM)  # a supervisor that stops "as group": the job has a group of its own
    assert first.wait(20) == 0
    assert (spool / "long.done").exists()
    assert [int((tmp_path / name).read_text()) for name in ("long", "short")] == [first.pid, second.pid]
    (spool / "bad.job").write_text("exit 3")
    eventually((spool / "bad.failed").exists)
    second.terminate()
    assert second.wait(20) == 0


def test_a_job_that_outlasts_the_grace_period_is_ended(programs: Programs, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "endless.job").write_text(f"echo $$ > {tmp_path}/pid; exec sleep 600")
    runner = programs.python("jobs.py", spool, "--path", programs.path, "--grace", "0.5")
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    runner.terminate()
    assert runner.wait(20) == 0
    assert not alive(pid)


def test_the_two_functions(programs: Programs, tmp_path: Path) -> None:
    script = tmp_path / "send_receive.py"
    script.write_text((EXAMPLES / "send_receive.py").read_text().replace("8000", str(programs.port)))

    def ask() -> str:
        with socket.create_connection(("127.0.0.1", programs.port), 10) as sock:
            return sock.makefile().read()

    first = programs.start(sys.executable, script, programs.path, "first")
    programs.said(first, "serves")
    assert f"says process {first.pid}" in ask()
    second = programs.start(sys.executable, script, programs.path)
    programs.said(second, "serves; 1 were served before")
    assert first.wait(20) == 0
    assert f"says process {second.pid}" in ask()
    third = programs.start(sys.executable, script, programs.path)
    programs.said(third, "serves; 2 were served before")
    assert second.wait(20) == 0
    third.kill()


# --- C --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def c_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as its users build it: the two files dropped beside the server's own."""
    needs("cc", "gcc")
    needs("make")
    directory = tmp_path_factory.mktemp("c")
    for source in (*(EXAMPLES / "c").iterdir(), ROOT / "src" / "fdhandoff.c", ROOT / "src" / "fdhandoff.h"):
        shutil.copy(source, directory)
    (directory / "server").unlink(missing_ok=True)
    subprocess.run(["make", "-C", str(directory), "LIBRARY=."], check=True, capture_output=True)
    return directory / "server"


def test_a_c_server_takes_the_service_from_python_and_gives_it_back_under_load(
    programs: Programs, c_server: Path
) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from load import Book, Load  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLES))

    async def scenario() -> Book:
        book = Book()
        load = Load("127.0.0.1", programs.port, book)
        owner = programs.server("asyncio_http.py")
        await asyncio.to_thread(programs.said, owner, "generation 1 serves")
        load.start()
        for number in range(2, 8):
            load.slow(1.0)
            load.silent(1.0)
            await asyncio.sleep(0.3)
            if number % 2:
                successor = programs.server("threaded_http.py" if number % 4 == 1 else "asyncio_http.py")
            else:
                successor = programs.start(c_server, programs.path)
            await asyncio.to_thread(programs.said, successor, f"generation {number} serves")
            book.newest = number
            assert await asyncio.to_thread(owner.wait, 20) == 0
            owner = successor
        await load.stop()
        owner.terminate()
        assert await asyncio.to_thread(owner.wait, 20) == 0
        return book

    book = asyncio.run(scenario())
    assert book.failures == []
    assert sum(book.asked.values()) == len(book.answers) > 500
    assert set(book.generations()) == set(range(1, 8))
    assert not programs.path.exists()


def test_a_c_server_that_is_killed_before_it_is_ready_changes_nothing(programs: Programs, c_server: Path) -> None:
    owner = programs.server("asyncio_http.py")
    programs.said(owner, "generation 1 serves")
    # Stopped by the kernel at its very first moments, again and again: wherever that is, somebody serves.
    for pause in (0.0, 0.001, 0.002, 0.004):
        successor = programs.start(c_server, programs.path)
        time.sleep(pause)
        successor.kill()
        successor.wait(10)
        assert answer(programs.port)["pid"] == owner.pid
    successor = programs.start(c_server, programs.path)
    programs.said(successor, "serves")
    assert owner.wait(20) == 0
    assert answer(programs.port)["release"] == "c"
    successor.terminate()
    assert successor.wait(20) == 0


# --- the tutorial ---------------------------------------------------------------------------------------------


def test_the_tutorial_holds_what_it_says(programs: Programs, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial" / "first-upgrade.md").read_text(encoding="utf-8")
    source = text.partition("```python\n")[2].partition("```")[0]
    source = source.replace("8000", str(programs.port)).replace("/tmp/tutorial/handoff.sock", str(programs.path))
    script = tmp_path / "server.py"

    def release(word: str) -> None:
        script.write_text(source.replace('"one"', f'"{word}"'))

    def ask(target: str = "") -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{programs.port}/{target}", timeout=30) as response:
            found: bytes = response.read()
        return found

    release("one")
    first = programs.start(sys.executable, script)
    programs.said(first, "generation 1 serves")
    assert ask() == b"release one, generation 1\n"
    release("two")
    second = programs.start(sys.executable, script)
    programs.said(second, f"generation 2 serves, taken over from pid {first.pid}")
    assert ask() == b"release two, generation 2\n"
    assert first.wait(20) == 0
    broken = programs.start(sys.executable, script, "--broken")
    assert broken.wait(20) == 1
    assert ask() == b"release two, generation 2\n"
    release("three")
    second.send_signal(signal.SIGHUP)
    assert second.wait(30) == 0
    assert ask() == b"release three, generation 3\n"
