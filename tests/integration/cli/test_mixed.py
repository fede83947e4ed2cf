"""A server that uses ``Service`` and commands that know nothing take over from each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from . import PACKAGE, Load, environment, server, status, verb, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Start

#: A blocking server with a gate, in the few lines that a handoff asks of it.
SERVICE = """
import sys, threading, {package}
service = {package}.Service("app", path=sys.argv[1], probation=0.5)
sock = service.listen("http", sys.argv[2])
def handle(connection, _):
    with connection:
        connection.settimeout(10)
        connection.recv(1000)
        connection.sendall(sys.argv[3].encode())
loop = {package}.AcceptLoop([sock], service.gate, handle, batch=1)
service.ready()
print("ready", sock.getsockname()[1], flush=True)
threading.Thread(target=loop.run, daemon=True).start()
service.wait()
service.drain()
service.close()
"""


def service(path: Path, address: str, name: str) -> subprocess.Popen[str]:
    code = SERVICE.replace("{package}", PACKAGE)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), address, name], env=environment(), stdout=subprocess.PIPE, text=True
    )


def test_a_service_a_command_and_a_service_again(path: Path, start: Start) -> None:
    first = service(path, "127.0.0.1:0", "first")
    assert first.stdout is not None
    with first:
        port = int(first.stdout.readline().split()[1])
        with Load(("127.0.0.1", port)) as load:
            load.heard("first")
            command = start("take", str(path), "--probation", "200ms", *server("command"))
            command.says("generation 2")
            assert first.wait(20) == 0
            load.heard("command")
            last = service(path, f"127.0.0.1:{port}", "last")
            with last:
                assert command.ends() == 0
                load.heard("last")
                assert verb("status", str(path)).returncode == 0
                assert (status(path)["pid"], status(path)["generation"]) == (last.pid, 3)
                load.__exit__()
                last.send_signal(signal.SIGTERM)
                assert last.wait(20) == 0
        assert load.failures == []
    wait_for(lambda: not os.path.exists(path))
