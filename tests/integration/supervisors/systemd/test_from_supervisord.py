"""A service moves from a real supervisord to a real systemd, with what ``unit`` writes for each, while it is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ....conftest import needs
from ...cli import wait_for
from . import QUICK, Load

if TYPE_CHECKING:
    from . import Bed

WEB = ("127.0.0.1", 8000)
PATH = "/run/fdhandoff/web/handoff.sock"  # where `run --name web` answers as root


def unit(bed: Bed, kind: str, output: str, *options: str) -> None:
    bed.cli(
        "unit", kind, "--program", "/usr/local/bin/fdhandoff-cli", "--name", "web", "--bind", "http=127.0.0.1:8000",
        *QUICK.split(), *options, "--output", output, "--", str(bed.program()),
    )  # fmt: skip


def status(bed: Bed) -> dict[str, Any]:
    return dict(json.loads(bed.cli("status", "--json", "--path", PATH).stdout))


@pytest.mark.parametrize("restart", ["true", "unexpected"])
def test_a_service_goes_from_supervisord_to_systemd_and_no_request_fails(bed: Bed, restart: str) -> None:
    needs("supervisord", "supervisor")
    unit(bed, "supervisord", "/etc/supervisor/conf.d")
    bed.inside("sed", "-i", f"s/^autorestart=.*/autorestart={restart}/", "/etc/supervisor/conf.d/web.conf")
    bed.systemctl("start", "supervisor")
    wait_for(lambda: bed.cli("status", "--path", PATH, check=False).returncode == 0, "the service under supervisord")
    old = int(bed.inside("supervisorctl", "pid", "web").stdout)
    unit(bed, "systemd", str(bed.shared), "--path", PATH, "--takeover", "always")
    bed.unit("web.service", (bed.shared / "web.service").read_text())
    bed.reload()
    with Load(bed, WEB) as load:
        load.heard(1)
        bed.systemctl("start", "web")
        new = bed.main_pid("web")
        assert status(bed)["pid"] == new
        # supervisord sees a program that ends with 0; one that it starts again finds the service in other hands, and ends.
        bed.inside("sh", "-c", f"while kill -0 {old}; do sleep 0.1; done")
        ends = restart == "unexpected"
        words, says = (("status", "web"), "EXITED") if ends else (("tail", "web"), "a master (pid")
        wait_for(lambda: says in bed.inside("supervisorctl", *words, check=False).stdout, f"supervisord's {says!r}")
        number = status(bed)["generation"]
        bed.systemctl("reload", "web")
        load.heard(number + 1, 5)
        bed.inside("rm", "/etc/supervisor/conf.d/web.conf")
        bed.inside("supervisorctl", "update")
        assert "no such process" in bed.inside("supervisorctl", "status", "web", check=False).stdout
        load.heard(number + 1, 5)
        assert (bed.main_pid("web"), bed.show("web", "NRestarts")) == (new, "0")
    assert not load.failures
    bed.systemctl("stop", "web")
    assert bed.show("web", "Result") == "success"
    assert bed.inside("sh", "-c", "pgrep -af '/[s]rv/.*server|fdhandoff.* [r]un'", check=False).stdout == ""
    assert bed.inside("test", "-e", PATH, check=False).returncode
