"""What real servers do to a listener that others depend on, each with its defence: without it these tests fail, since the
server still does it, which they see for themselves where that can be seen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from ..cli import DEADLINE, wait_for
from . import Load, Service, quick, request
from .test_servers import module

PIDFD_GETFD = 438  # on every architecture

ASGI = """
import os
BODY = f"app {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})
"""

WSGI = """
import os
def app(environ, start_response):
    body = f"app {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

#: One answer to a connection, and the path of its socket removed when it ends: from Python 3.13 on asyncio does that itself.
ASYNCIO = """
import asyncio, os, signal, socket, sys
body = f"app {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
async def serve(reader, writer):
    if await reader.readline():
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
        await writer.drain()
    writer.close()
async def main():
    listener = socket.socket(fileno=3)
    path = listener.getsockname()
    start = asyncio.start_unix_server if listener.family == socket.AF_UNIX else asyncio.start_server
    server = await start(serve, sock=listener)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    END
    server.close()
    WAIT
    if isinstance(path, str) and sys.version_info < (3, 13):
        os.unlink(path)
asyncio.run(main())
"""
#: ``wait_closed()`` waits for every client since Python 3.12.1; this does on any.
WAIT = "while len(asyncio.all_tasks()) > 1: await asyncio.sleep(0.05)"

#: What Sanic's manager of several workers does at its end.
SHUT = "listener.shutdown(socket.SHUT_RDWR)"


def server_that(end: str = "pass", wait: str = "pass") -> str:
    return ASYNCIO.replace("END", end).replace("WAIT", wait)


def gunicorn_by_number(folder: Path) -> list[str]:
    """It does not know the listener by LISTEN_FDS, and so takes it for its own."""
    (folder / "wsgi.py").write_text(WSGI)
    hidden = ["env", "-u", "LISTEN_FDS", "-u", "LISTEN_PID"]
    return [*hidden, *module("gunicorn"), "--chdir", str(folder), "--log-level", "error", "--no-control-socket",
            "-b", "fd://3", "wsgi:app"]  # fmt: skip


def asyncio_unix(folder: Path) -> list[str]:
    return [sys.executable, "-c", server_that()]


@pytest.mark.parametrize("server", [gunicorn_by_number, asyncio_unix])
def test_a_server_that_removes_the_path_when_it_ends_removes_nothing_that_others_use(
    tmp_path: Path, server: object
) -> None:
    command = server(tmp_path)  # type: ignore[operator]
    public = tmp_path / "app.sock"
    with Service(tmp_path, *quick(), bind=f"http=unix:{public}", command=command) as service:
        own = Path(f"{public}.0")  # the name that the first generation's socket is bound to
        assert own.exists()
        with Load(str(public), 2) as load:
            for number in (2, 3):
                service.upgrade()
                load.heard(number, 5)
                service.settled(number)
                if number == 2:
                    assert not own.exists(), "the trap: it has removed what it was bound to"
            load.end()
            assert not load.failures
        assert service.stop() == 0


def test_a_server_that_shuts_its_listener_down_at_the_end_shuts_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", server_that(SHUT)]
    with (
        Service(tmp_path, *quick(), command=command) as service,
        Load(service.address(), 2) as load,
    ):
        for number in (2, 3):
            service.upgrade()
            load.heard(number, 5)
            service.settled(number)
        load.end()
        assert not load.failures


@pytest.mark.parametrize("nodelay", [1, 0])
def test_connections_of_uvicorn_have_no_delay_because_their_listener_has_none(tmp_path: Path, nodelay: int) -> None:
    """uvicorn takes the descriptor for a Unix socket's, and so never sets it: an answer to a kept connection took 42 ms."""
    (tmp_path / "asgi.py").write_text(ASGI)
    command = [*module("uvicorn"), "--app-dir", str(tmp_path), "--log-level", "error", "--fd", "3", "asgi:app"]
    with Service(tmp_path, *quick(), bind=f"http=127.0.0.1:0?nodelay={nodelay}", command=command) as service:
        pid = service.generations()[1]["pids"][0]
        with socket.create_connection(service.address(), DEADLINE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            assert client.recv(4096)
            theirs = end_of(pid, client.getsockname())
            assert bool(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == bool(nodelay)
            theirs.close()


def end_of(pid: int, peer: tuple[str, int]) -> socket.socket:
    """A copy of the process's end of the connection whose other end this is."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if not os.path.realpath(f"/proc/{pid}/fd/{number}").rpartition("/")[2].startswith("socket:"):
                continue
            fd = libc.syscall(PIDFD_GETFD, pidfd, int(number), 0)
            assert fd >= 0, os.strerror(ctypes.get_errno())
            sock = socket.socket(fileno=fd)
            try:
                if sock.getpeername() == peer:
                    return sock
            except OSError:
                pass  # a listener, or one that is not connected
            sock.close()
    finally:
        os.close(pidfd)
    raise AssertionError(f"process {pid} has no connection to {peer}")


def test_a_server_that_listens_again_with_a_short_queue_gets_its_own_back(tmp_path: Path) -> None:
    """asyncio asks for 100."""
    with Service(tmp_path, *quick(), command=[sys.executable, "-c", server_that()]) as service:
        service.running.says("http: its backlog had been lowered by generation 1; repaired")
        before = service.status()["listeners"][0]["backlog"]
        assert before > 1000
        service.upgrade()
        service.running.says("http: its backlog had been lowered by generation 2; repaired")
        assert service.status()["listeners"][0]["backlog"] == before


def test_twisted_becomes_ready_on_a_listener_that_an_earlier_server_made_blocking(tmp_path: Path) -> None:
    """It would wait for ever in accept(). Here both have the same socket."""
    pytest.importorskip("twisted", reason="needs twisted: pip install 'fdhandoff[test]'")
    twisted = [sys.executable, "-m", "twisted"]
    (tmp_path / "wsgi.py").write_text(WSGI)
    other = server_that().replace("    stop = ", "    os.set_blocking(3, True)\n    stop = ")
    start = (
        "import os\n"
        "if os.environ.get('SERVER') == 'twisted':\n"
        f"    os.chdir({str(tmp_path)!r})\n"
        "    os.environ['PYTHONPATH'] = os.getcwd()\n"
        f"    words = {[*twisted, 'web', '--listen', 'systemd:domain=INET:index=0', '--wsgi', 'wsgi.app']!r}\n"
        "    os.execv(words[0], words)\n"
        f"exec({other!r})\n"
    )
    options = quick("--switch", "shared", "--ready", "delay:500ms", "--server", "none", "--ready-timeout", "30s")
    with Service(tmp_path, *options, command=[sys.executable, "-c", start]) as service:
        pid = service.generations()[1]["pids"][0]
        assert not int(flags(pid, 3), 8) & os.O_NONBLOCK, "the trap"
        service.release(SERVER="twisted")
        service.upgrade()
        service.settled(2)
        assert int(flags(service.generations()[2]["pids"][0], 3), 8) & os.O_NONBLOCK
        assert request(service.address())[1] == 2
        assert service.stop() == 0


def flags(pid: int, fd: int) -> str:
    text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text(encoding="ascii")
    return next(line.split()[1] for line in text.splitlines() if line.startswith("flags:"))


def test_a_server_that_waits_for_every_client_is_not_waited_for(tmp_path: Path) -> None:
    options = ["--settle", "0.1", "--probation", "0.1", "--grace", "0.3", "--kill-after", "0.5"]
    with (
        Service(tmp_path, *options, command=[sys.executable, "-c", server_that(wait=WAIT)]) as service,
        socket.create_connection(service.address(), DEADLINE) as client,
    ):
        client.sendall(b"and no more")  # it waits for the rest of a line
        wait_for(lambda: service.generations()[1]["active"] == 1, "the client to be inside")
        service.upgrade()
        service.running.says("generation 1 did not end within")
        service.settled(2)
        client.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert request(service.address())[1] == 2


def test_a_child_that_uvicorn_left_its_listener_to_gets_no_connection(tmp_path: Path) -> None:
    """uvicorn makes a copy of descriptor 3, and leaves 3 itself open, and inheritable, for whatever it starts."""
    child = tmp_path / "child"
    program = ASGI + (
        "import subprocess, sys\n"
        "if os.environ['FDHANDOFF_GENERATION'] == '1':\n"
        "    left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], close_fds=False,\n"
        "                            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        f"    open({str(child)!r}, 'a').write(f'{{left.pid}}\\n')\n"
    )
    (tmp_path / "asgi.py").write_text(program)
    command = [*module("uvicorn"), "--app-dir", str(tmp_path), "--log-level", "error", "--fd", "3", "asgi:app"]
    try:
        with Service(tmp_path, *quick(), command=command) as service:
            address = service.address()
            with Load(address, 2) as load:
                pid = int(child.read_text())
                assert os.readlink(f"/proc/{pid}/fd/3").startswith("socket:"), "the trap"
                service.upgrade()
                load.heard(2, 5)
                service.settled(2)
                assert {request(address)[1] for _ in range(50)} == {2}
                load.end()
                assert not load.failures
            assert service.stop() in (0, 143)
        # It still has the listener, in a queue of which nobody knows any more. The next master is not kept from the address.
        assert os.readlink(f"/proc/{pid}/fd/3").startswith("socket:")
        with Service(tmp_path, *quick(), bind=f"http={address[0]}:{address[1]}", command=command) as service:
            assert {request(address)[1] for _ in range(50)} == {1}
    finally:
        for left in child.read_text().split() if child.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(left), signal.SIGKILL)
