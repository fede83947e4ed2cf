"""asyncio's streams and protocols: what belongs to them alone. The rest is in test_adapters."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from fdhandoff.servers.asyncio import start_server

from ..cli import Running, environment, free_port, stopping, wait_for
from ..master import Load, request
from . import Client, KeepAlive

PROGRAM = str(Path(__file__).with_name("on_asyncio.py"))
UPGRADES = 3


class Asyncio(Running):
    def __init__(self, folder: Path, kind: str, where: object, *options: str) -> None:
        self._start([sys.executable, PROGRAM, kind, str(where), str(folder / "h.sock"), *options], env=environment())

    def serves(self, generation: int) -> None:
        self.says(f"generation {generation} serves")


def number(client: Client) -> tuple[int, int]:
    """Generation, and how many requests the connection has had."""
    client.send()
    head = client._until(b"\r\n\r\n").decode().lower()
    client.ended = "connection: close" in head
    words = client._take(int(head.partition("content-length:")[2].split()[0])).split()
    return int(words[1]), int(words[2])


@pytest.mark.parametrize("kind", ["protocol", "uvloop"])
def test_a_protocol_takes_its_state_along(tmp_path: Path, kind: str) -> None:
    if kind == "uvloop":
        pytest.importorskip("uvloop", reason="needs uvloop: pip install 'fdhandoff[test]'")
    port = free_port()
    with contextlib.ExitStack() as stack:
        old = Asyncio(tmp_path, kind, port)
        stack.callback(old.stop)
        old.serves(1)
        client = stack.enter_context(contextlib.closing(Client(("127.0.0.1", port))))
        assert number(client) == (1, 1)
        for generation in range(2, UPGRADES + 2):
            new = Asyncio(tmp_path, kind, port)
            stack.callback(new.stop)
            new.serves(generation)
            client.send(part=slice(0, 9))  # half a request: it stays until that is answered
            old.says("handed over")
            client.send(part=slice(9, None))
            assert client.receive() in (generation - 1, generation)
            assert old.ends() == 0, old.text()
            assert number(client) == (generation, 2 * generation - 1)
            old = new


def test_streams_announce_the_end_and_fail_nothing(tmp_path: Path) -> None:
    port = free_port()
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = Asyncio(tmp_path, "streams", port)
        stack.callback(old.stop)
        old.serves(1)
        with Load(address, 2) as load, KeepAlive(address) as busy, KeepAlive(address, pause=0.3) as lazy:
            for generation in range(2, UPGRADES + 2):
                new = Asyncio(tmp_path, "streams", port)
                stack.callback(new.stop)
                new.serves(generation)
                assert old.ends() == 0, old.text()
                busy.heard(generation)
                lazy.heard(generation, 1)
                load.heard(generation)
                old = new
        assert not load.failures
        assert not busy.failures
        assert not lazy.failures
        assert busy.reconnects == lazy.reconnects == 4 * UPGRADES, "once for each client and upgrade"


def test_the_end_does_not_wait_for_a_client_that_says_nothing(tmp_path: Path) -> None:
    """asyncio's own ``wait_closed`` waits for every client, without end."""
    port = free_port()
    only = Asyncio(tmp_path, "streams", port, "1")
    with stopping(only):
        only.serves(1)
        with contextlib.closing(Client(("127.0.0.1", port))) as client:
            assert number(client) == (1, 1)
            only.signal(signal.SIGTERM)
            assert only.ends() == 0
            assert "1 cut at the deadline" in only.text()


def test_a_unix_path_outlives_the_generation_that_bound_it(tmp_path: Path) -> None:
    """asyncio's own server removes it when it is closed, from Python 3.13 on."""
    path = tmp_path / "public.sock"
    old = Asyncio(tmp_path, "unix", path)
    with stopping(old):
        old.serves(1)
        inode = path.stat().st_ino
        new = Asyncio(tmp_path, "unix", path)
        with stopping(new):
            new.serves(2)
            assert old.ends() == 0
            assert path.stat().st_ino == inode
            assert ask(path) == b"app 2 1"
        assert not path.exists(), "it goes with the last one"


def ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        raw = b""
        while part := sock.recv(4096):
            raw += part
    return raw.partition(b"\r\n\r\n")[2]


def test_a_handler_that_fails_leaves_no_connection_behind(tmp_path: Path) -> None:
    port = free_port()
    only = Asyncio(tmp_path, "streams", port)
    with stopping(only):
        only.serves(1)
        with pytest.raises(OSError, match="closed"):
            request(("127.0.0.1", port), "/fail")
        only.says("the handler's own fault")
        only.signal(signal.SIGTERM)
        assert only.ends() == 0
        assert "cut at the deadline" not in only.text()
    assert os.listdir(tmp_path) == []


def test_an_option_that_is_not_known_is_refused() -> None:
    import asyncio

    with pytest.raises(TypeError, match="unknown here: reuse_port"):
        asyncio.run(start_server(lambda *_: None, "127.0.0.1", 0, reuse_port=True))


def test_the_page_has_a_program_that_runs(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "servers" / "asyncio.md"
    if not page.exists():
        pytest.skip("the documentation is not part of this copy")
    blocks = [block for block in page.read_text().split("```python\n")[1:] if "asyncio.run" in block]
    port = free_port()
    program, folder = tmp_path / "program.py", tmp_path / "run"
    folder.mkdir(0o700)
    program.write_text(blocks[0].partition("```")[0].replace("8000", str(port)))
    server = Running.__new__(Running)
    server._start([sys.executable, str(program)], env=environment(FDHANDOFF_RUNTIME_DIR=str(folder)))
    with stopping(server):
        server.says("generation 1 serves")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(b"1\n")
            assert sock.recv(100) == b"1\n"
            sock.sendall(b"41\n")
            assert wait_for(lambda: sock.recv(100)) == b"42\n"


def test_one_that_can_not_say_its_state_keeps_no_other_from_moving(tmp_path: Path) -> None:
    address = ("127.0.0.1", port := free_port())
    old = Asyncio(tmp_path, "protocol", port)
    with stopping(old), contextlib.ExitStack() as stack:
        old.says("generation 1 serves")
        clients = [stack.enter_context(contextlib.closing(Client(address))) for _ in range(10)]
        for place, client in enumerate(clients):
            assert client.ask("/bug" if place == 4 else "/") == 1
        new = Asyncio(tmp_path, "protocol", port)
        with stopping(new):
            new.serves(2)
            for place, client in enumerate(clients):
                if place != 4:
                    wait_for(lambda client=client: client.ask() == 2, "it to move")
            assert clients[4].ask() == 1
            assert clients[4].ended, "it was told"
            assert old.ends() == 0, old.text()
        assert old.text().count('KeyError: "the state\'s own fault"') == 1


def test_a_listener_that_somebody_has_shut_down_is_noticed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        inheriting = ["sh", "-c", 'LISTEN_FDS=1 LISTEN_FDNAMES=asyncio LISTEN_PID=$$ exec "$@"', "sh"]

        class Inheriting(Running):
            def __init__(self) -> None:
                words = [*inheriting, sys.executable, PROGRAM, "protocol", "0", str(tmp_path / "h.sock")]
                self._start(words, env=environment(), preexec_fn=lambda: os.dup2(fd, 3), close_fds=False)

        only = Inheriting()
        with stopping(only):
            only.says("generation 1 serves")
            with contextlib.closing(Client(listener.getsockname())) as client:
                assert client.ask() == 1
            listener.shutdown(socket.SHUT_RDWR)
            only.says("nothing can be accepted any more")
            assert only.ends() == 1
