"""The unit of the page, followed to the letter: ``run`` under a real systemd, upgraded, stopped, killed, under load."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from ...cli import wait_for
from . import QUICK, Bed, Load, Question, install, units

if TYPE_CHECKING:
    from .conftest import Boot

WEB = ("127.0.0.1", 8000)
PATH = "/run/web/handoff.sock"


def start(bed: Bed, *more: str, quick: str = QUICK) -> int:
    """The service of the page, with these other files of the page; its pid."""
    bed.program("web/current/bin/server")
    install(bed, "web.service", *more, quick=quick)
    bed.systemctl("start", "web.service")
    assert bed.show("web", "ActiveState") == "active"
    return bed.main_pid("web")


def status(bed: Bed) -> str:
    return bed.cli("status", "--json", "--path", PATH, "--allow-uid", "www-data").stdout


def ends(bed: Bed, unit: str = "web") -> None:
    """Stopped in good order, and nothing of it is left."""
    bed.systemctl("stop", unit)
    assert bed.show(unit, "ActiveState") == "inactive"
    assert bed.show(unit, "Result") == "success"
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""
    assert bed.inside("test", "-e", PATH, check=False).returncode


def test_the_generator_prints_the_pages_unit(bed: Bed) -> None:
    printed = bed.cli(
        "unit", "systemd", "--program", "/usr/local/bin/fdhandoff-cli", "--user", "www-data", "--name", "web",
        "--bind", "http=127.0.0.1:8000", "--ready", "http:/healthz", "--", "/srv/web/current/bin/server",
    ).stdout  # fmt: skip
    page = units()["/etc/systemd/system/web.service"]
    assert printed == f"# /etc/systemd/system/web.service\n{page}"


@pytest.mark.parametrize(("version", "upgrades"), [(252, 20), (254, 3), (257, 3)])
def test_reloads_under_load_lose_nothing_and_the_pid_stays(boot: Boot, version: int, upgrades: int) -> None:
    bed = boot(version)
    pid = start(bed)
    with Load(bed, WEB) as load:
        for number in range(2, upgrades + 2):
            bed.systemctl("reload", "web")
            assert bed.show("web", "StatusText").startswith(f"Generation {number} serves")
            load.heard(number, 5)
        assert bed.main_pid("web") == pid
        assert bed.show("web", "NRestarts") == "0"
        assert bed.show("web", "ActiveState") == "active"
    assert not load.failures
    ends(bed)


def test_a_failed_upgrade_is_a_failed_reload_and_the_service_stays_active(bed: Bed) -> None:
    pid = start(bed)
    with Load(bed, WEB) as load:
        bed.program("web/current/bin/server", "raise SystemExit(3)")
        done = bed.inside("systemctl", "reload", "web", check=False)
        assert done.returncode != 0
        assert bed.show("web", "ActiveState") == "active"
        assert bed.show("web", "StatusText").startswith("Generation 1 serves; the upgrade to 2 failed: ")
        load.heard(1)
        bed.program("web/current/bin/server")
        bed.systemctl("reload", "web")
        load.heard(3)
    assert not load.failures
    assert bed.main_pid("web") == pid
    ends(bed)


def test_two_reloads_in_a_row_and_sessions_are_still_served(bed: Bed) -> None:
    start(bed)
    with Load(bed, WEB) as load:
        first = bed.start("systemctl", "reload", "web")
        second = bed.start("systemctl", "reload", "web")
        assert first.communicate() == ("", "")
        second.communicate()
        number = int(bed.show("web", "StatusText").split()[1])
        assert number in (2, 3)
        load.heard(number)
        bed.systemctl("reload", "web")
        load.heard(number + 1)
    assert not load.failures
    ends(bed)


def test_a_stop_drains_and_leaves_nothing(bed: Bed) -> None:
    start(bed, quick="--settle 100ms --probation 300ms --env SLOW=1 --env PAUSE=1.5")
    slow = Question(bed, WEB)
    wait_for(lambda: '"active": 1' in status(bed), "the slow request")
    ends(bed)
    assert slow.answer()[1] == 1


# --- crashes --------------------------------------------------------------------------------------------------


def test_a_generation_that_crashes_is_restarted_by_the_master_alone(bed: Bed) -> None:
    pid = start(bed)
    (_, _, server) = bed.request(WEB)
    bed.inside("kill", "-KILL", str(server))

    def another() -> bool:
        try:
            return bed.request(WEB)[2] != server
        except OSError:
            return False  # the one that was killed had accepted it

    wait_for(another, "another process")
    assert bed.main_pid("web") == pid
    assert bed.show("web", "NRestarts") == "0"
    wait_for(lambda: len(bed.programs("web")) == 2, "one master and one server")
    ends(bed)


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_a_killed_master_is_restarted_once_and_finds_its_generation_again_under_load(boot: Boot, version: int) -> None:
    bed = boot(version)
    pid = start(bed)
    bed.systemctl("reload", "web")
    (_, _, server) = bed.request(WEB)
    with Load(bed, WEB) as load:
        load.heard(2)
        bed.systemctl("kill", "--kill-whom=main", "-s", "KILL", "web")
        wait_for(lambda: bed.main_pid("web") not in (0, pid), "another master")
        wait_for(lambda: bed.show("web", "ActiveState") == "active", "it to be ready")
        assert bed.request(WEB)[1:] == (2, server)
        load.heard(2)
        assert bed.show("web", "NRestarts") == "1"
        wait_for(lambda: len(bed.programs("web")) == 2, "one master and one server")
        bed.systemctl("reload", "web")
        load.heard(3)
    assert not load.failures
    ends(bed)


def queued(bed: Bed, count: int) -> list[Question]:
    """Connections that nobody accepts yet, each with its request."""
    clients = [Question(bed, WEB) for _ in range(count)]
    wait_for(lambda: _waiting(bed) == count, f"{count} in the queue, not {_waiting(bed)}")
    return clients


def _waiting(bed: Bed) -> int:
    rows = bed.inside("ss", "-Hltn", "sport = :8000").stdout.splitlines()
    return sum(int(row.split()[1]) for row in rows)


@pytest.mark.parametrize(("version", "together"), [(252, False), (252, True), (254, False), (257, True)])
def test_what_waits_in_the_queues_outlives_the_death_of_everything(boot: Boot, version: int, together: bool) -> None:
    bed = boot(version)
    start(bed, *(["web.service.d/together.conf"] if together else []))
    bed.systemctl("reload", "web")
    (_, _, server) = bed.request(WEB)
    bed.freeze(server)
    clients = queued(bed, 8)
    # With KillMode=mixed the end of the master is the end of all.
    whom = "--kill-whom=main" if together else "--kill-whom=all"
    bed.systemctl("kill", whom, "-s", "KILL", "web")
    answers = [client.answer() for client in clients]
    assert {generation for _, generation, _ in answers} == {1}
    assert server not in {pid for _, _, pid in answers}
    assert bed.show("web", "NRestarts") == "1"
    wait_for(lambda: len(bed.programs("web")) == 2, "one master and one server")
    ends(bed)


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_who_connects_during_a_restart_waits_and_is_served(boot: Boot, version: int) -> None:
    bed = boot(version)
    start(bed)
    with Load(bed, WEB) as load:
        load.heard(1)
        bed.systemctl("restart", "web")
        since = time.monotonic()
        wait_for(lambda: load.generations(since).total() > 20, "answers of the new one")
        bed.systemctl("reload", "web")
        load.heard(2)
    assert not load.failures
    ends(bed)


@pytest.mark.parametrize("version", [254, 257])
def test_with_preserve_who_connects_while_it_is_stopped_is_served_by_the_next_start(boot: Boot, version: int) -> None:
    bed = boot(version)
    install(bed, "web.service")
    bed.systemctl("enable", "web")  # or it is forgotten with all that it has
    start(bed, "web.service.d/preserve.conf")
    bed.systemctl("reload", "web")
    ends(bed)
    clients = queued(bed, 8)
    bed.systemctl("start", "web")
    assert {client.answer()[1] for client in clients} == {1}
    with Load(bed, WEB) as load:
        bed.systemctl("reload", "web")
        load.heard(2)
    assert not load.failures
    ends(bed)


def test_without_it_a_stop_closes_everything(bed: Bed) -> None:
    start(bed)
    ends(bed)
    with pytest.raises(ConnectionRefusedError):
        bed.request(WEB)
