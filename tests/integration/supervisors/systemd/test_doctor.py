"""``doctor --unit`` finds nothing to say of the page's units, and names what hurts in others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from . import Bed, install

if TYPE_CHECKING:
    from .conftest import Boot


def verdicts(bed: Bed, unit: str) -> dict[str, tuple[str, str]]:
    """Value and verdict of each check that is not ok."""
    facts = json.loads(bed.cli("doctor", "--json", "--unit", unit, check=False).stdout)
    return {one["name"]: (one["value"], one["verdict"]) for one in facts["checks"] if one["verdict"] != "ok"}


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_the_pages_units_are_well(boot: Boot, version: int) -> None:
    bed = boot(version)
    install(bed, "web.service", "web@.service", "app.service", quick="")
    for unit in ("web.service", "web@blue.service", "app", "web"):
        assert verdicts(bed, unit) == {}, unit
    install(bed, "web.service.d/together.conf")
    assert verdicts(bed, "web") == {}
    if version > 252:
        install(bed, "web.service.d/reload.conf")
        assert verdicts(bed, "web") == {}


def test_each_thing_that_hurts_is_named(bed: Bed) -> None:
    install(bed, "web.service", quick="")
    for text, name, value in (
        ("Type=simple", "Type", "simple"),
        ("KillMode=control-group", "KillMode", "control-group"),
        ("Restart=always", "Restart", "always"),
        ("Restart=no", "Restart", "no"),
        ("ExecReload=", "ExecReload", "none"),
        ("ExecStopPost=", "ExecStopPost", "none"),
        ("FileDescriptorStoreMax=0", "FileDescriptorStoreMax", "0"),
        ("RuntimeDirectoryPreserve=no", "RuntimeDirectoryPreserve", "no"),
    ):
        bed.unit("web.service.d/broken.conf", f"[Service]\n{text}\n")
        bed.reload()
        assert verdicts(bed, "web") == {name: (value, "warn")}, text
    bed.unit("web.service.d/broken.conf", "[Service]\nType=exec\nNotifyAccess=none\nFileDescriptorStoreMax=0\n")
    bed.reload()
    assert verdicts(bed, "web").keys() == {"Type", "NotifyAccess", "FileDescriptorStoreMax"}
    text = bed.cli("doctor", "--unit", "web").stdout
    assert "nothing that the service says is heard: NotifyAccess=main" in text


def test_a_unit_that_is_not_there_is_said(bed: Bed) -> None:
    done = bed.cli("doctor", "--unit", "nobody.service", check=False)
    assert done.returncode == 3
    assert "nobody.service is not-found" in done.stdout
    assert bed.cli("doctor", "--user", "--unit", "web", check=False).returncode == 3
