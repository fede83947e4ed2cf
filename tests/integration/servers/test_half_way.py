"""A new generation that is killed while connections move to it, or has no room for them: what it has not acknowledged is
answered where it was."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from pathlib import Path

import pytest

import fdhandoff
from fdhandoff import registry
from fdhandoff.heir import name_heir
from fdhandoff.system.environment import connections_of

from ..cli import PACKAGE, Running, environment, free_port, stopping
from . import Client

HERE = Path(__file__).parent
CLIENTS = 150
PROGRAMS = {
    "uvicorn": [
        "-m", f"{PACKAGE}.servers.uvicorn", "tests.integration.servers.app:app", "--timeout-keep-alive", "60",
        "--no-access-log", "--handoff-probation", "200ms", "--port", "PORT", "--handoff-path", "PATH",
    ],
    "aiohttp": [str(HERE / "on_aiohttp.py"), "PORT", "PATH"],
    "socketserver": [str(HERE / "threaded.py"), "http", "PORT", "PATH"],
}  # fmt: skip


class Server(Running):
    def __init__(self, name: str, folder: Path, port: int, *, before: tuple[str, ...] = (), files: int = 0) -> None:
        if name != "socketserver":
            pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
        meant = {"PORT": str(port), "PATH": str(folder / "h.sock")}
        command = [sys.executable, *before, *(meant.get(word, word) for word in PROGRAMS[name])]
        if files:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        self._start(command, env=environment())

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def answers_of(clients: list[Client]) -> list[int]:
    """The generation that answered each; 0 for those whose connection is gone."""
    answers = []
    for client in clients:
        try:
            answers.append(client.ask())
        except OSError:
            answers.append(0)
    return answers


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        *(("uvicorn", moment) for moment in ("greeted", "came", "1", "3")),
        *((name, moment) for name in ("aiohttp", "socketserver") for moment in ("came", "3")),
    ],
)
def test_what_a_killed_receiver_has_not_acknowledged_is_answered_where_it_was(
    name: str, moment: str, tmp_path: Path
) -> None:
    port, book = free_port(), tmp_path / "acknowledged"
    with contextlib.ExitStack() as stack:
        old = Server(name, tmp_path, port)
        stack.callback(old.stop)
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(CLIENTS)]
        assert set(answers_of(clients)) == {1}
        new = Server(name, tmp_path, port, before=(str(HERE / "dying.py"), moment, str(book)))
        stack.callback(new.stop)
        new.serves(2)
        assert new.ends() == -9
        acknowledged = int(book.read_text())
        assert (acknowledged > 0) == moment.isdigit()
        answers = answers_of(clients)
        assert answers.count(0) == acknowledged, "what it had is gone with it"
        assert answers.count(1) == CLIENTS - acknowledged, "and nothing else"
        for client in clients:
            client.close()
        assert old.ends() == 0, old.text()


def test_while_the_new_one_is_called_for_the_first_time_all_are_answered_by_the_old(tmp_path: Path) -> None:
    """This process is the new one, which is slow to answer the call."""
    port, path = free_port(), str(tmp_path / "h.sock")
    with contextlib.ExitStack() as stack:
        old = Server("uvicorn", tmp_path, port)
        stack.callback(old.stop)
        old.serves(1)
        client = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        assert client.ask() == 1
        directory = connections_of(path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        door = stack.enter_context(socket.socket(socket.AF_UNIX))
        door.bind(f"{directory}/2-{os.getpid()}.sock")
        door.listen()
        name_heir(directory, 2)
        stack.callback(registry.remove, path)
        takeover = stack.enter_context(fdhandoff.receive(path, timeout=60))
        stack.callback(takeover.listeners.close)
        stack.callback(os.close, takeover.counters_fd)
        takeover.ready(60)
        door.settimeout(60)
        call = stack.enter_context(door.accept()[0])
        call.settimeout(60)
        assert call.recv(1), "it has called"
        assert client.ask() == 1
        call.setblocking(False)
        while True:
            try:
                said = call.recv(4096)
            except BlockingIOError:
                break  # it waits for the answer still
            assert said, "it had hung up before it answered its client"


def test_where_the_new_one_may_open_too_few_files_the_rest_is_answered_by_the_old(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        old = Server("uvicorn", tmp_path, port)
        stack.callback(old.stop)
        old.serves(1)
        clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(CLIENTS)]
        assert set(answers_of(clients)) == {1}
        new = Server("uvicorn", tmp_path, port, files=120)
        stack.callback(new.stop)
        new.serves(2)
        old.says(f"pid {new.pid} may open 120 files and takes no more connections: raise its open-files limit")
        answers = answers_of(clients)
        assert set(answers) == {1, 2}
        with contextlib.closing(Client(("127.0.0.1", port))) as another:
            assert another.ask() == 2, "there is room left for whoever comes"
        for client in clients:
            client.close()
        assert old.ends() == 0, old.text()
        assert "Traceback" not in old.text() + new.text()


def test_where_the_old_one_has_no_descriptor_left_its_connections_move_all_the_same(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        old = Server("uvicorn", tmp_path, port)
        with stopping(old):
            old.serves(1)
            clients = [stack.enter_context(contextlib.closing(Client(("127.0.0.1", port)))) for _ in range(CLIENTS)]
            assert set(answers_of(clients)) == {1}
            new = Server("uvicorn", tmp_path, port)
            with stopping(new):
                new.serves(2)
                highest = max(int(name) for name in os.listdir(f"/proc/{old.pid}/fd"))
                hard = resource.prlimit(old.pid, resource.RLIMIT_NOFILE)[1]
                resource.prlimit(old.pid, resource.RLIMIT_NOFILE, (highest + 5, hard))
                assert old.ends() == 0, old.text()
                assert f"{CLIENTS} connections moved on, 0 ended here" in old.text()
                assert set(answers_of(clients)) == {2}
                for client in clients:
                    client.close()
