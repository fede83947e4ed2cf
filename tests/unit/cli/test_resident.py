"""The interpreter in which a master stays has what it needs, and nothing else: each module counts for the life of a service."""

from __future__ import annotations

import subprocess
import sys

from fdhandoff.cli import resident

PACKAGE = resident.__name__.rpartition(".cli.")[0]

#: Beyond what every interpreter begins with. To add one is a decision: docs/decisions/0015-the-master-begins-anew.md says what
#: some cost. In particular none of argparse, contextlib, dataclasses, importlib, json, logging, re, shlex, subprocess,
#: threading, tomllib, traceback, typing.
ALLOWED = {
    *("__future__", "abc", "os", "os.path", "stat", "posixpath", "genericpath", "ntpath", "_stat", "_abc", "_collections_abc"),
    *("collections", "collections.abc", "_collections", "enum", "functools", "_functools", "itertools", "keyword", "operator"),
    *("_operator", "reprlib", "types"),
    *("array", "errno", "fcntl", "math", "select", "selectors", "signal", "socket", "_socket", "struct", "_struct"),
    *("_cffi_backend", "_json", "atexit", "gc"),
}  # fmt: skip


def imported(program: str) -> set[str]:
    """The modules that ``program`` brings into a bare interpreter."""
    paths = [entry for entry in sys.path if entry]
    begin = f"import sys; sys.path[:] = {paths!r}; before = {{*sys.modules}}"
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-c", f"{begin}\n{program}\nprint(*({{*sys.modules}} - before))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_a_master_imports_only_what_is_listed() -> None:
    found = imported(f"import {PACKAGE}.cli.serving, {PACKAGE}.master.master")
    parents = {PACKAGE[:end] for end in range(len(PACKAGE)) if PACKAGE[end] == "."}
    own = {name for name in found if name == PACKAGE or name.startswith(f"{PACKAGE}.")}
    assert found - own - parents - ALLOWED == set(), "the resident master grew: import it late, or decide that it may"
    compiled = {f"{PACKAGE}._native", f"{PACKAGE}._native.lib"}
    assert own - compiled - {PACKAGE} == {f"{PACKAGE}.{name}" for name in resident.MODULES}, (
        "MODULES lists what is handed over"
    )


def test_a_handed_module_is_as_if_it_had_been_found() -> None:
    program = f"""
import marshal
from {PACKAGE}.cli.resident import Handed
modules = {{
    "pack": (compile("here = __file__, __path__", "/pack/__init__.py", "exec"), "/pack/__init__.py", ["/pack"]),
    "pack.one": (
        compile("from . import here; what = __name__, __package__, __file__", "/pack/one.py", "exec"), "/pack/one.py", []
    ),
}}
sys.meta_path.insert(0, Handed(modules))
import pack.one
assert pack.here == ("/pack/__init__.py", ["/pack"]), pack.here
assert pack.one.what == ("pack.one", "pack", "/pack/one.py"), pack.one.what
assert not hasattr(pack.one, "__path__")
assert modules == {{}}, "what has run is not kept"
try:
    import pack.two
except ModuleNotFoundError:
    print("as it should be")
"""
    assert "pack.one" in imported(program)
