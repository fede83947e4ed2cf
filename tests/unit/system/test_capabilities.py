"""What root gives up is gone, for this process and for what it executes."""

from __future__ import annotations

import os

import pytest

from fdhandoff.errors import SystemCallError
from fdhandoff.system import capabilities

from . import as_nobody, finish, linux, python, root

pytestmark = linux

GIVE_UP = """
import os, sys
from {package}.system import capabilities
capabilities.limit({capabilities.KILL, capabilities.SETUID})
os.execv("/bin/grep", ["grep", "-E", "^Cap(Inh|Prm|Eff|Bnd|Amb):", "/proc/self/status"])
"""


@root
def test_a_program_that_is_executed_gets_nothing_back() -> None:
    mask = f"{1 << capabilities.KILL | 1 << capabilities.SETUID:016x}"
    nothing = f"{0:016x}"
    found = dict(line.split(":\t") for line in finish(python(GIVE_UP)).splitlines())
    assert found == {"CapInh": nothing, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": nothing}


def test_who_may_not_is_told() -> None:
    if os.geteuid() == 0:
        assert "capset failed: Operation not permitted" in as_nobody(lambda: capabilities.limit({capabilities.KILL}))
    else:
        with pytest.raises(SystemCallError):
            capabilities.limit({capabilities.KILL})
