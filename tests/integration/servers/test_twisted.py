"""What Twisted's adapter does beside HTTP."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from ..cli import Running, environment, free_port, stopping
from ..master import request

pytest.importorskip("twisted", reason="needs twisted: pip install 'fdhandoff[test]'")

HERE = Path(__file__).parent


class Program(Running):
    def __init__(self, script: str, port: int, path: Path, prefix: tuple[str, ...] = (), **options: object) -> None:
        self._start([*prefix, sys.executable, str(HERE / script), str(port), str(path)], env=environment(), **options)


def test_a_protocol_of_lines_says_what_its_end_is(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "h.sock"
    old = Program("on_twisted_lines.py", port, path)
    with stopping(old), contextlib.ExitStack() as stack:
        old.says("generation 1 serves")
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        lines = stack.enter_context(sock.makefile("rwb", buffering=0))
        lines.write(b"hello\r\n")
        assert lines.readline() == b"1 hello\r\n"
        new = Program("on_twisted_lines.py", port, path)
        with stopping(new):
            new.says("generation 2 serves")
            assert lines.readline() == b"come again\r\n"
            assert lines.readline() == b""
            assert old.ends() == 0, old.text()
            with socket.create_connection(("127.0.0.1", port), timeout=20) as again:
                again.sendall(b"back\r\n")
                assert again.makefile("rb").readline() == b"2 back\r\n"


def test_a_listener_that_blocks_is_no_trap(tmp_path: Path) -> None:
    """Twisted alone stands still on one after its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(True)
        fd = listener.fileno()
        inheriting = ("sh", "-c", 'LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$ exec "$@"', "sh")
        server = Program(
            "on_twisted.py", 0, tmp_path / "h.sock", inheriting, preexec_fn=lambda: os.dup2(fd, 3), close_fds=False
        )
        with stopping(server):
            server.says("generation 1 serves")
            address = listener.getsockname()
            assert [request(address)[1] for _ in range(3)] == [1, 1, 1]
