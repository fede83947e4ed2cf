"""Generations that stay for a rollback, and upgrades that nobody asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cli import verb, wait_for
from ..cli.schema import check
from . import Load, Service, quick

if TYPE_CHECKING:
    from pathlib import Path


def test_a_kept_generation_takes_the_service_back_without_a_failed_request(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--keep-old", "60s")) as service, Load(service.address(), 2) as load:
        service.upgrade()
        load.heard(2)
        assert set(service.generations()) == {1, 2}
        done = verb("rollback", str(service.path))
        assert done.returncode == 0, done.stderr
        load.heard(1)
        service.settled(1)
        load.end()
        assert not load.failures
        facts = service.status()
        assert facts["last_upgrade"]["result"] == "rolled back"
        check("master", facts)


def test_a_kept_generation_goes_when_the_next_one_comes_or_its_time_is_over(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--keep-old", "2s")) as service:
        service.upgrade()
        service.upgrade()
        wait_for(lambda: set(service.generations()) == {2, 3}, "generation 1 to go")
        service.settled(3)


def test_it_is_upgraded_every_so_often(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--restart-every", "500ms")) as service, Load(service.address(), 2) as load:
        load.heard(4)
        load.end()
        assert not load.failures
