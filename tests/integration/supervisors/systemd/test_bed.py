"""The test bed itself: it is what it claims to be, and nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...cli import wait_for
from . import PROJECT, Bed, cgroup2, tree

if TYPE_CHECKING:
    from .conftest import Boot


@pytest.mark.parametrize("version", [252, 254, 257])
def test_each_release_boots_and_runs_the_command_line(boot: Boot, version: int) -> None:
    bed = boot(version)
    assert bed.systemctl("--version").split()[1] == str(version)
    assert bed.cli("--version").stdout
    assert bed.systemctl("list-units", "--failed", "--no-legend") == ""


def test_the_root_that_it_is_laid_over_is_not_written(bed: Bed) -> None:
    bed.inside("sh", "-c", "echo x >/etc/fdhandoff-test; echo x >/usr/fdhandoff-test; rm /etc/passwd")
    assert not Path("/etc/fdhandoff-test").exists()
    assert not Path("/usr/fdhandoff-test").exists()
    assert Path("/etc/passwd").exists()


def test_nothing_stays_of_a_system_whose_test_was_killed(tmp_path: Path) -> None:
    tree(252)
    folder = tmp_path / "bed"
    folder.mkdir()
    program = f"""
import sys, time
from pathlib import Path
from {__package__} import Bed, tree
bed = Bed(Path({str(folder)!r}), tree(252))
bed.boot()
print(bed.leader, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        leader = int(test.stdout.readline())
        assert Path(f"/proc/{leader}/comm").read_text() == "systemd\n"
        test.send_signal(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{leader}").exists(), "the end of its systemd")
    parent = cgroup2()
    assert parent is not None
    wait_for(lambda: not list(parent.glob(f"fdhandoff-test-{test.pid}-*")), "the end of its cgroup")
    assert str(folder) not in Path("/proc/self/mounts").read_text()
