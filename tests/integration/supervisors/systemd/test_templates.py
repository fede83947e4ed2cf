"""Two instances of a template unit, each with a master: the new one takes everything over, the old one's connections finish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ...cli import wait_for
from ...master import RUDE
from . import Bed, Load, Question, install

if TYPE_CHECKING:
    from .conftest import Boot

WEB = ("127.0.0.1", 8000)
PATH = "/run/web/handoff.sock"


def deploy(bed: Bed, colour: str, source: str = "") -> None:
    bed.program(f"web/{colour}/bin/server", source or f"import os\nos.environ['RELEASE'] = {colour!r}\n{RUDE}")


def generation(bed: Bed) -> int:
    return int(json.loads(bed.cli("status", "--json", "--path", PATH).stdout)["generation"])


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_one_instance_after_the_other_serves_and_nothing_is_lost(boot: Boot, version: int) -> None:
    bed = boot(version)
    deploy(bed, "blue")
    install(bed, "web@.service")
    bed.systemctl("start", "web@blue")
    with Load(bed, WEB) as load:
        for old, new in (("blue", "green"), ("green", "blue"), ("blue", "green")):
            deploy(bed, new)
            slow = Question(bed, WEB, "/sleep1.5")
            bed.systemctl("start", f"web@{new}")
            assert bed.request(WEB)[0] == new
            assert slow.answer()[0] == old
            wait_for(lambda old=old: bed.show(f"web@{old}", "ActiveState") == "inactive", f"the end of {old}")
            assert bed.show(f"web@{old}", "Result") == "success"
            assert bed.processes(f"web@{old}") == []
            # An upgrade in place works as before, in whichever instance serves.
            number = generation(bed)
            bed.systemctl("reload", f"web@{new}")
            load.heard(number + 1)
    assert not load.failures
    bed.systemctl("stop", "web@green")
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""


def test_a_new_instance_that_does_not_serve_leaves_the_old_one_as_it_was(bed: Bed) -> None:
    deploy(bed, "blue")
    deploy(bed, "green", "raise SystemExit(3)")
    install(bed, "web@.service")
    bed.systemctl("start", "web@blue")
    pid = bed.main_pid("web@blue")
    with Load(bed, WEB) as load:
        assert bed.inside("systemctl", "start", "web@green", check=False).returncode != 0
        bed.systemctl("stop", "web@green")  # no more attempts
        assert (bed.show("web@blue", "ActiveState"), bed.main_pid("web@blue")) == ("active", pid)
        bed.systemctl("reload", "web@blue")
        load.heard(generation(bed))
    assert not load.failures


def _answers(bed: Bed) -> str:
    """Who does. What is in a killed server's queue is reset, and that may be this."""
    try:
        return bed.request(WEB)[0]
    except ConnectionError:
        return "nobody"


def test_a_new_master_that_is_killed_in_its_probation_gives_it_back(bed: Bed) -> None:
    deploy(bed, "blue")
    deploy(bed, "green")
    install(bed, "web@.service", quick="--settle 100ms --probation 20s")
    bed.unit("web@green.service.d/once.conf", "[Service]\nRestart=no\nKillMode=control-group\n")
    bed.reload()
    bed.systemctl("start", "web@blue")
    bed.systemctl("start", "web@green")
    assert bed.request(WEB)[0] == "green"
    bed.systemctl("kill", "-s", "KILL", "web@green")
    wait_for(lambda: _answers(bed) == "blue", "blue to have it again")
    assert bed.show("web@blue", "ActiveState") == "active"
    with Load(bed, WEB) as load:
        bed.systemctl("reload", "web@blue", check=False)
        load.heard(generation(bed))
    assert not load.failures
