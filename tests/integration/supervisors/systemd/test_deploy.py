"""``deploy --systemd``: one line that starts or upgrades, with the unit that ``unit`` prints and a real systemd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ...cli import wait_for
from . import Bed, Load

if TYPE_CHECKING:
    import subprocess

ADDRESS = ("127.0.0.1", 8080)


@pytest.fixture
def web(bed: Bed) -> Bed:
    """``web.service`` is known, and not started."""
    install(bed)
    return bed


def install(bed: Bed, *options: str) -> None:
    release(bed, RELEASE="one")
    bed.cli(
        "unit", "systemd", "--name", "web", "--program", "/usr/local/bin/fdhandoff-cli", "--bind", "http=127.0.0.1:8080",
        "--settle", "0.1", "--probation", "0.3", "--env-file", str(bed.shared / "env"),
        *options, "--output", "/etc/systemd/system", "--", str(bed.program()),
    )  # fmt: skip
    bed.reload()


def release(bed: Bed, **variables: str) -> None:
    (bed.shared / "env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def deploy(bed: Bed, *words: str) -> subprocess.CompletedProcess[str]:
    return bed.cli("deploy", "--systemd", "web", *words, check=False)


def answer(bed: Bed, *words: str) -> dict[str, Any]:
    done = deploy(bed, "--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_the_first_deployment_starts_and_the_next_ones_upgrade(web: Bed) -> None:
    first = answer(web, "--release", "v1")
    assert (first["result"], first["generation"], first["release"]) == ("started", 1, "v1")
    assert first["pid"] == web.main_pid("web.service")
    with Load(web, ADDRESS, 2) as load:
        for number in range(2, 6):
            done = answer(web, "--release", f"v{number}")
            assert (done["result"], done["generation"], done["release"]) == ("upgraded", number, f"v{number}")
            load.heard(number)
        load.end()
    assert not load.failures
    assert web.main_pid("web.service") == first["pid"]
    assert web.show("web.service", "NRestarts") == "0"
    assert answer(web, "--release", "v5")["result"] == "unchanged"


def test_a_bad_release_is_refused_and_a_bad_first_start_says_why(web: Bed) -> None:
    release(web, FAULT="exit3")
    done = deploy(web)
    assert done.returncode == 4, done.stderr
    assert "systemd could not start web.service" in done.stderr
    assert "exited with status 3" in done.stderr
    release(web, RELEASE="one")
    wait_for(lambda: web.show("web.service", "ActiveState") == "active", "systemd's own next attempt")
    release(web, FAULT="exit3")
    done = deploy(web)
    assert (done.returncode, "exited with status 3" in done.stderr) == (1, True)
    assert web.request(ADDRESS)[0] == "one"


def test_what_systemd_does_not_know_is_said(web: Bed) -> None:
    done = web.cli("deploy", "--systemd", "nothing", check=False)
    assert done.returncode == 1
    assert "systemd can't start nothing.service (not-found): systemctl daemon-reload" in done.stderr
    web.unit("plain.service", "[Service]\nExecStart=/bin/sleep 1000\n")
    web.reload()
    web.systemctl("start", "plain")
    done = web.cli("deploy", "--systemd", "plain", check=False)
    assert done.returncode == 1
    assert "answers no handoff path" in done.stderr
    for name in ("web.socket", "-x", "a b", ""):
        assert web.cli("deploy", f"--systemd={name}", check=False).returncode == 2


def test_root_deploys_a_service_of_another_user(bed: Bed) -> None:
    """Who answers is believed: systemd has named the process, and the kernel says whose it is."""
    install(bed, "--user", "www-data")
    first = answer(bed, "--release", "v1")
    owner = bed.inside("stat", "--format", "%U", f"/proc/{first['pid']}").stdout.strip()
    assert (first["result"], first["release"], owner) == ("started", "v1", "www-data")
    assert answer(bed, "--release", "v2")["result"] == "upgraded"


def test_what_systemd_binds_has_the_switch_also_for_servers_of_another_user(bed: Bed) -> None:
    install(bed, "--user", "www-data", "--socket")
    bed.systemctl("start", "web.socket")
    first = answer(bed)
    with Load(bed, ADDRESS, 2) as load:
        for number in range(2, 6):
            assert answer(bed)["generation"] == number
            load.heard(number)
        load.end()
    assert not load.failures
    facts = json.loads(bed.cli("status", "--path", "/run/web/handoff.sock", "--json").stdout)
    assert [(one["name"], one["switch"]) for one in facts["listeners"]] == [("http", "kernel")]
    (serving,) = [one for one in facts["generations"] if one["number"] == 5]
    owners = [
        bed.inside("stat", "--format", "%U", f"/proc/{pid}").stdout.strip() for pid in (first["pid"], *serving["pids"])
    ]
    assert owners == ["root", "www-data"]
