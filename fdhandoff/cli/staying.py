"""``run`` reads its options with what every verb has, and then begins anew, in the same process, as an interpreter that has
only what a master needs: no argument parser, no ``site``, no reader of TOML, no compiler's leavings. What it must know travels
in a memfd.
"""

from __future__ import annotations

import marshal
import os
import sys
from pathlib import Path

from .outcome import PROGRAM
from .resident import HANDED, MODULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..master.config import Configuration
    from .resident import Entry

# The dotted name of the package, which need not be at the top: it may be vendored.
_PACKAGE = __name__.rpartition(".cli.")[0]


def stay(configuration: Configuration) -> None:
    """Does not return, unless this is no plain interpreter that could begin anew: then the master works here, and is bigger."""
    program = Path(__file__).with_name("resident.py")
    plain = sys.platform == "linux" and sys.executable and not getattr(sys, "frozen", False)
    if not plain or not program.is_file():
        return
    handed: dict[str, Any] = {
        "modules": _modules(),
        "package": _PACKAGE,
        "path": [os.path.abspath(entry) for entry in sys.path],
        "command": list(sys.orig_argv),
        "name": Path("/proc/self/comm").read_bytes().removesuffix(b"\n"),
        "options": (configuration.command, dict(configuration.given), configuration.file, configuration.recognised),
        "file": (configuration.reader.data, configuration.reader.values),
    }
    memory = os.memfd_create("fdhandoff-run", 0)  # it outlives the exec
    with open(memory, "wb", closefd=False) as file:
        marshal.dump(handed, file)
    os.environ[HANDED] = str(memory)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: we were started without it
        stream.flush()
    try:
        os.execv(  # noqa: S606 - no shell, on purpose
            sys.executable, [sys.executable, *_flags(), str(program), PROGRAM, *sys.argv[1:]]
        )
    except OSError:
        del os.environ[HANDED]
        os.close(memory)


def _flags() -> list[str]:
    """Those that this interpreter was given, and that it shall have no site."""
    flags = ["-S", "-s"]
    flags += ["-E"] if sys.flags.ignore_environment else []
    flags += ["-B"] if sys.flags.dont_write_bytecode else []
    flags += ["-O"] * sys.flags.optimize
    for name, value in sys._xoptions.items():
        flags += ["-X", name if value is True else f"{name}={value}"]
    for warning in sys.warnoptions:
        flags += ["-W", warning]
    return flags


def _modules() -> dict[str, Entry]:
    """The code of what stays, by full name. Passed on because reading it from one place leaves less behind than finding it
    anew; far less where there is no bytecode, and it would be compiled again."""
    from importlib.util import find_spec

    found: dict[str, Entry] = {}
    around = _PACKAGE.split(".")[:-1]
    for depth in range(len(around)):
        # What a vendored copy lies in need not run for it.
        name = ".".join(around[: depth + 1])
        found[name] = (compile("", name, "exec"), "", list(sys.modules[name].__path__))
    for part in ("", *MODULES):
        name = f"{_PACKAGE}.{part}" if part else _PACKAGE
        spec = find_spec(name)
        read = getattr(spec.loader, "get_code", None) if spec is not None else None
        code = read(name) if read is not None else None
        if spec is not None and code is not None:  # else it is found when it is asked for
            found[name] = (code, spec.origin or "", list(spec.submodule_search_locations or ()))
    return found
