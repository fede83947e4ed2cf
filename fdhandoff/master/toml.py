"""The values in a TOML file: read here, or by a process of its own, so that one that stays keeps nothing of the reader. Numbers
with a point stay as they were written.
"""

from __future__ import annotations

import os
import sys

from ..deadline import after
from ..notation import loads
from ..system.process import spawn
from .options import settings_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Parse = Callable[[str, bytes], dict[str, Any]]

_SECONDS = 10.0

# Its words are where modules lie. What JSON has no word for becomes something that no option takes.
_PROGRAM = """
import json, sys
sys.path[:] = sys.argv[1:]
try:
    import tomllib
except ImportError:
    import tomli as tomllib
try:
    answer = {"values": tomllib.loads(sys.stdin.buffer.read().decode(), parse_float=str)}
except ValueError as error:
    answer = {"wrong": str(error)}
json.dump(answer, sys.stdout, default=lambda value: {"value": str(value)})
"""


class Reader:
    """Called with a path: the values there, which are parsed again when the file has changed. ``data`` and ``values``: what is
    known already. ``ValueError`` and ``OSError`` say what is wrong with it."""

    def __init__(self, parse: Parse, data: bytes | None = None, values: dict[str, Any] | None = None) -> None:
        self._parse = parse
        self.data = data
        self.values = values if values is not None else {}

    def __call__(self, path: str) -> dict[str, Any]:
        data = settings_in(path)
        if data != self.data:
            self.values = self._parse(path, data)
            self.data = data
        return self.values


def parse(path: str, data: bytes) -> dict[str, Any]:
    """``data``, as found at ``path``, in this process."""
    from importlib import import_module  # late, here and below: none of it is for a process that stays

    try:
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise ValueError(
            f"{path} can't be read: TOML on Python 3.10 needs the package tomli (pip install 'fdhandoff[config]')"
        ) from None
    try:
        values: dict[str, Any] = toml.loads(data.decode(), parse_float=str)
    except ValueError as error:
        raise _wrong(path, error) from None
    return values


def parse_elsewhere(path: str, data: bytes) -> dict[str, Any]:
    """The same in a process of its own: 0.9 MiB that this one need not carry, for some 50 ms when the file has changed."""
    asked, answered = os.memfd_create("fdhandoff-toml"), os.memfd_create("fdhandoff-toml")
    with open(asked, "wb") as question, open(answered, "rb") as answer:
        question.write(data)
        question.seek(0)
        process = spawn([sys.executable, "-S", "-s", "-c", _PROGRAM, *sys.path], fds={0: asked, 1: answered, 2: 2})
        with process:
            how = process.wait(after(_SECONDS))
            if how is None:
                process.signal(9)
                process.wait(after(_SECONDS))
                raise ValueError(f"{path} was not read within {_SECONDS:g} s")
        answer.seek(0)  # whoever wrote has moved it
        text = answer.read()
    if not text:
        raise ValueError(f"{path} could not be read: who should read it {how}")
    found: dict[str, Any] = loads(text)
    if "wrong" in found:
        raise _wrong(path, found["wrong"])
    values: dict[str, Any] = found["values"]
    return values


def _wrong(path: str, what: object) -> ValueError:
    return ValueError(f"{path} is not TOML: {what}")
