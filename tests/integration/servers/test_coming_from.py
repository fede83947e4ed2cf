"""Every program of the page for those who come from elsewhere runs, is taken over, and ends in good order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from ..cli import Running, environment, free_port, wait_for

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "coming-from.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not part of this copy")
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
BLOCKS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", TEXT, re.M | re.S)


class Program(Running):
    def __init__(self, folder: Path) -> None:
        env = environment(FDHANDOFF_RUNTIME_DIR=str(folder / "run"))
        self._start([sys.executable, str(folder / "program.py")], cwd=str(folder), env=env)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "app.py").write_text(re.findall(r"```python\n(# app\.py.*?)```", TEXT, re.S)[0])
    return tmp_path


def write(folder: Path, text: str) -> list[int]:
    """The program, with free ports in place of its own."""
    ports = {number: free_port() for number in sorted(set(re.findall(r"\b800\d\b", text)))}
    for number, port in ports.items():
        text = text.replace(number, str(port))
    (folder / "program.py").write_text(text)
    return list(ports.values())


def answerer(port: int) -> int:
    """The pid of who answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        raw = b""
        while part := sock.recv(4096):
            raw += part
    return int(raw.rpartition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(("system", "text"), BLOCKS, ids=[system.partition(",")[0] for system, _ in BLOCKS])
def test_a_program_is_taken_over_by_its_next_start(system: str, text: str, folder: Path) -> None:
    ports = write(folder, text.replace('Service("app"', 'Service("app", probation=0.2'))
    with contextlib.ExitStack() as stack:
        old = Program(folder)
        stack.callback(old.stop)
        old.says("generation 1 serves")
        assert {answerer(port) for port in ports} == {old.pid}
        new = Program(folder)
        stack.callback(new.stop)
        new.says("generation 2 serves")
        assert {answerer(port) for port in ports} == {new.pid}
        assert old.ends() == 0, f"{system}: {old.text()}"
        new.signal(signal.SIGTERM)
        assert new.ends() == 0, new.text()
        assert "Traceback" not in old.text() + new.text()


def test_the_endless_program_has_its_hooks_and_its_hammer(folder: Path) -> None:
    text = dict(BLOCKS)["endless"].replace('Service("app"', 'Service("app", probation=0.2')
    (port,) = write(folder, text.replace("service.serve(answer, batch=1)", SERVE))
    old = Program(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(old.stop)
        old.says(f"begins as {old.pid}")
        old.signal(signal.SIGHUP)
        old.says("before the fork")
        old.says("generation 2 serves")
        old.says("after it")
        wait_for(lambda: old.process.poll() is not None, "the first one's end")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as inside:
            new = int(re.findall(r"begins as (\d+)", old.text())[-1])
            stack.callback(end, new)
            old.says("one inside")
            os.kill(new, signal.SIGTERM)
            old.says("stopping: SIGTERM")
            assert alive(new), "it waits a minute for who is inside"
            os.kill(new, signal.SIGUSR2)
            wait_for(lambda: not alive(new), "the end at once")
            assert inside.recv(100) == b""


def end(pid: int) -> None:
    """Whatever became of the test."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_the_limit_holds_in_each_generation_and_nobody_is_turned_away(folder: Path) -> None:
    text = dict(BLOCKS)["graceful"].replace("limit=100", "limit=1, probation=0.2")
    (port,) = write(folder, text.replace("service.serve(answer, batch=1)", SERVE))
    with contextlib.ExitStack() as stack:
        old = Program(folder)
        stack.callback(old.stop)
        old.says("generation 1 serves")
        only_one_enters(port, old)
        new = Program(folder)
        stack.callback(new.stop)
        new.says("generation 2 serves")
        assert old.ends() == 0
        only_one_enters(port, new)


def only_one_enters(port: int, server: Program) -> None:
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(answerer(port)))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as inside:
        server.says("one inside")
        waiting.start()
        wait_for(lambda: queued(port) == 1, "the second one to wait in the queue")
        assert not got
        inside.sendall(b"GET / HTTP/1.0\r\n\r\n")
        waiting.join(20)
    assert got == [server.pid], "it was served when there was room"


SERVE = """import threading

    def begin(connection, listener):
        print("one inside", flush=True)
        threading.Thread(target=answer, args=(connection, listener), daemon=True).start()

    service.serve(begin, timeout=30)"""


def queued(port: int) -> int:
    """How many connections wait to be accepted there."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{port:04X}") and words[3] == "0A":
            return int(words[4].partition(":")[2], 16)
    return -1
