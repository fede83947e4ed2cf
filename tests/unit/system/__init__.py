"""The tests of floor 2, and what they share: a second interpreter that can import the package."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.system import native

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = native.__name__.rpartition(".system")[0]


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A real process that runs ``code``, in which ``{package}`` is the package's name; its standard input and output are
    pipes of text."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True, **options}
    command = [sys.executable, "-c", code.replace("{package}", PACKAGE), *arguments]
    return subprocess.Popen(command, **options)


def finish(process: subprocess.Popen[str], timeout: float = 20) -> str:
    """What the process printed, once it has ended well."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, (process.returncode, output)
    return output


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


linux = pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this kernel has no IPv6")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def as_nobody(function: Callable[[], object], uid: int = 65534) -> str:
    """What ``function`` returns or raises, as text, in a forked child without privileges."""
    with tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if not pid:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(uid, uid, uid)
                text = str(function())
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(answer.fileno(), text.encode())
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        answer.seek(0)
        return answer.read().decode()
