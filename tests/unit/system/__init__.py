"""The tests of floor 2, and what they share: a second interpreter that can import the package."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from fdhandoff.system import native

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
