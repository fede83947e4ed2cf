"""The master stays small: with everything on it holds only the modules that it was decided to hold, upgrades included."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from ...conftest import needs_that
from ...unit.cli.test_resident import ALLOWED
from ..cli import PACKAGE
from . import Service, quick, rude

if TYPE_CHECKING:
    from pathlib import Path

# Whatever an interpreter does by itself when it begins.
BEGINNING = {"encodings", "codecs", "io", "time", "zipimport", "marshal", "posix"}


def imported(lines: list[str]) -> set[str]:
    """What ``-X importtime`` said of the last interpreter that began."""
    rows = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    begun = len(rows) - rows[::-1].index("imported package")
    return set(rows[begun:])


def test_a_master_with_everything_on_imports_nothing_unforeseen(tmp_path: Path) -> None:
    needs_that(sys.version_info >= (3, 11) or importlib.util.find_spec("tomli") is not None, "tomli: pip install tomli")
    config = tmp_path / "run.toml"
    config.write_text('workers = 2\nready = "http:/"\ncheck = "true \'with words\'"\n')
    binds = ["--bind", "udp:127.0.0.1:0", "--bind", f"unix:{tmp_path}/u", "--health", "127.0.0.1:0", "--env", "SLOW=0"]
    with Service(
        tmp_path, *quick("--config", str(config)), *binds, command=rude("{fd:http}"), prefix=("-X", "importtime", "-m")
    ) as service:
        service.upgrade()
        config.write_text(config.read_text().replace("2\n", "1\n") + 'grace = "9s"\n')
        service.upgrade()
        service.settled(3)
        assert len(service.generations()[3]["pids"]) == 1, "the file was read again"
        assert service.stop() == 0
    found = imported(service.running.err)
    strange = {name for name in found if not name.startswith((f"{PACKAGE}.", "_")) and name != PACKAGE}
    assert {name for name in strange if name.partition(".")[0] not in BEGINNING} - ALLOWED == set()
    assert f"{PACKAGE}.master.recognition" not in found, "the command is the one of the start"
    assert f"{PACKAGE}.cli.arguments" not in found, "that is for who reads the command line"
