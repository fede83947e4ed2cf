"""Each page of docs/how-to/supervisors, from its first line to its last."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sysconfig
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from ....conftest import needs, needs_that
from ...cli import free_port, wait_for
from ..containers import Container, Containers, cli
from ..systemd import CACHE, Bed, Load
from . import DOCS, blocks, follow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of this copy")


def left(bed: Bed) -> str:
    """What is left of a service: processes of it, and files in the runtime directory."""
    looks = "pgrep -af '[s]erver.py|fdhandoff.* [r]un'; find /run/fdhandoff /run/web ! -type d"
    return bed.inside("sh", "-c", looks, check=False).stdout


def test_supervisord(bed: Bed) -> None:
    needs("supervisord", "supervisor")
    bed.systemctl("start", "supervisor")  # which returns before supervisord listens
    wait_for(lambda: bed.inside("supervisorctl", "pid", check=False).returncode == 0, "supervisord")
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


def openrc(bed: Bed) -> None:
    """Laid over the throw-away root, which it did not boot: the directories that it makes then are made here."""
    tree = CACHE / "openrc"
    if not tree.is_dir():
        pytest.skip(f"OpenRC is not in {CACHE}: .ci/openrc-tree fetches it where Debian's mirror can be reached")
    shutil.copytree(tree, bed.shared / "tree", symlinks=True)
    states = "starting started stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled init.d tmp"
    bed.inside(
        "bash", "-c", f"tar -C {shlex.quote(str(bed.shared / 'tree'))} -c . | tar -C / -x --keep-directory-symlink; ldconfig; "
        f"cd /; for name in {states}; do mkdir -p /run/openrc/$name; done; touch /run/openrc/softlevel",
    )  # fmt: skip


def test_openrc(bed: Bed) -> None:
    openrc(bed)
    follow("how-to/supervisors/openrc.md", bed)
    assert left(bed) == ""


def test_openrc_starts_a_killed_master_again_and_nobody_notices(bed: Bed) -> None:
    openrc(bed)
    server = bed.program()
    bed.cli(
        "unit", "openrc", "--name", "web", "--bind", "http=127.0.0.1:8000", "--settle", "0.1", "--probation", "0.3",
        "--program", "/usr/local/bin/fdhandoff-cli", "--output", "/etc/init.d", "--", str(server),
    )  # fmt: skip
    bed.inside("rc-service", "web", "start")
    first = wait_for(lambda: status(bed).get("pid"), "the service")
    wait_for(lambda: status(bed).get("state") == "serving", "the first generation")
    with Load(bed, ("127.0.0.1", 8000), 2) as load:
        for number in range(2, 7):
            bed.inside("rc-service", "web", "reload")
            load.heard(number)
        assert status(bed)["pid"] == first
        bed.inside("kill", "-KILL", str(first))
        wait_for(lambda: status(bed).get("pid") not in (None, first), "another master")
        bed.inside("rc-service", "web", "reload")
        load.heard(7)
        load.end()
    assert not load.failures
    bed.inside("rc-service", "web", "stop")
    assert left(bed) == ""


def status(bed: Bed) -> dict[str, Any]:
    done = bed.cli("status", "--name", "web", "--json", check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


# --- where this machine is not: what is to be built or applied elsewhere is run by hand here, in real containers -------


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    made = Containers(tmp_path)
    try:
        yield made
    finally:
        made.close()


def got(port: int, path: str = "/") -> tuple[int, str]:
    """Status and text; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def start(containers: Containers, folder: Path, page: str, words: list[str], ports: dict[str, int]) -> Container:
    """``words`` as process 1 of a container that has what the page's image has. Its ports are the host's, and so others."""
    for old, new in ports.items():
        words = [word.replace(f":{old}", f":{new}") for word in words]
    runtime, site, programs = folder / "runtime", folder / "site", folder / "programs"
    for made in (runtime, site, programs):
        made.mkdir(mode=0o755)
    runtime.chmod(0o700)
    os.chown(runtime, 1000, 1000)
    (site / "server.py").write_text(next(block.text for block in blocks(page) if block.language == "python"))
    program = programs / "fdhandoff-cli"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(cli())} "$@"\n')
    program.chmod(0o755)
    return containers.start(
        "web", words,
        options=[
            "--volume", f"{runtime}:/run/fdhandoff", "--volume", f"{site}:/srv/web", "--volume", f"{programs}:/programs:ro",
            "--env", "PATH=/programs:/usr/bin:/bin", "--env", "FDHANDOFF_RUNTIME_DIR=/run/fdhandoff",
        ],
    )  # fmt: skip


def test_container(bed: Bed, containers: Containers, tmp_path: Path) -> None:
    page = "how-to/supervisors/container.md"
    follow(page, bed)
    shown = next(block.text for block in blocks(page) if block.language == "dockerfile")
    words = json.loads(next(line for line in shown.splitlines() if line.startswith("ENTRYPOINT ")).partition(" ")[2])
    port = free_port()
    web = start(containers, tmp_path, page, words, {"8000": port})
    web.says("generation 1 serves")
    assert got(port) == (200, "release one\n")
    server = tmp_path / "site" / "server.py"
    server.write_text(server.read_text().replace('"one"', '"two"'))
    assert web.run("fdhandoff-cli", "upgrade", "--name", "web").returncode == 0
    assert got(port) == (200, "release two\n")
    assert containers.do("kill", "--signal", "HUP", "web").returncode == 0
    web.says("generation 3 started")
    web.stop(45)
    assert web.ends() == 0


def test_kubernetes(bed: Bed, containers: Containers, tmp_path: Path) -> None:
    page = "how-to/supervisors/kubernetes.md"
    follow(page, bed)
    manifest = yaml.safe_load(next(block.text for block in blocks(page) if block.language == "yaml"))
    kubernetes_validate.validate(manifest, "1.30", strict=True)
    (pod,) = manifest["spec"]["template"]["spec"]["containers"]
    port, health = free_port(), free_port()
    page = "how-to/supervisors/container.md"
    web = start(containers, tmp_path, page, pod["command"], {"8000": port, "8086": health})
    path = pod["readinessProbe"]["httpGet"]["path"]
    wait_for(lambda: got(health, path)[0] == 200, "the probe's yes")
    assert got(port) == (200, "release one\n")
    hook = threading.Thread(target=web.run, args=pod["lifecycle"]["preStop"]["exec"]["command"])
    hook.start()
    wait_for(lambda: got(health, path)[0] == 503, "the probe's no")
    assert got(port) == (200, "release one\n"), "who has not heard of it yet is served"
    assert web.ends() == 0
    hook.join()
