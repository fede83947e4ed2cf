"""Each page of docs/how-to/supervisors, from its first line to its last."""

from __future__ import annotations

import shutil
import sysconfig

import pytest

from ....conftest import needs, needs_that
from ..systemd import Bed
from . import DOCS, follow

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of this copy")


def left(bed: Bed) -> str:
    """What is left of a service: processes of it, and files in the runtime directory."""
    looks = "pgrep -af '[s]erver.py|fdhandoff.* [r]un'; find /run/fdhandoff /run/web ! -type d"
    return bed.inside("sh", "-c", looks, check=False).stdout


def test_supervisord(bed: Bed) -> None:
    needs("supervisord", "supervisor")
    bed.systemctl("start", "supervisor")
    follow("how-to/supervisors/supervisord.md", bed)
    assert left(bed) == ""


def test_s6(bed: Bed) -> None:
    needs("s6-svscan", "s6")
    follow("how-to/supervisors/s6.md", bed)
    assert left(bed) == ""


def test_runit(bed: Bed) -> None:
    needs("runsvdir", "runit")
    follow("how-to/supervisors/runit.md", bed)
    assert left(bed) == ""


def test_circus(bed: Bed) -> None:
    for name in ("circusd", "circusctl"):
        there = shutil.which(name, path=sysconfig.get_path("scripts"))
        needs_that(there is not None, f"{name}: pip install circus")
        bed.inside("ln", "-s", str(there), f"/usr/local/bin/{name}")
    follow("how-to/supervisors/circus.md", bed)
    assert left(bed) == ""
