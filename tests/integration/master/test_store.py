"""What the master has its manager keep: the queues that generations use, and none that has gone. (That it helps is shown with
the real systemd.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ...support.manager import Manager
from ..cli import wait_for
from . import Service, quick

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def kept(manager: Manager) -> set[str]:
    """The names under which something is stored by now."""
    names: set[str] = set()
    for _, fields in manager.heard:
        if "FDSTORE" in fields:
            assert fields["FDPOLL"] == "0"  # a listener polls as hung up when a server shut it down: ours to repair
            names.add(fields["FDNAME"])
        elif "FDSTOREREMOVE" in fields:
            names.discard(fields["FDNAME"])
    return names


def keeps(manager: Manager, *names: str) -> None:
    wait_for(lambda: kept(manager) == set(names), f"{names}, not {kept(manager)}")


def start(folder: Path, manager: Manager, *options: str, bind: str = "http=127.0.0.1:0") -> Service:
    return Service(folder, *quick(*options), bind=bind, env={"NOTIFY_SOCKET": manager.listener.address})


def test_each_queue_that_a_generation_uses_is_kept_and_no_other(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        keeps(manager, "fdhandoff.0.http")
        service.upgrade()
        service.settled(2)
        keeps(manager, "fdhandoff.1.http")
        service.upgrade()
        service.settled(3)
        keeps(manager, "fdhandoff.0.http")
        stored = [fields["FDNAME"] for _, fields in manager.heard if "FDSTORE" in fields]
        assert stored == ["fdhandoff.0.http", "fdhandoff.1.http", "fdhandoff.0.http"]
        assert service.stop() == 0
        # Whether there is a next start is the manager's to know.
        keeps(manager, "fdhandoff.0.http")


def test_a_unix_listener_whose_path_has_gone_is_not_kept(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, bind=f"web=unix:{tmp_path}/web.sock") as service:
        keeps(manager, "fdhandoff.0.web")
        assert service.stop() == 0
        keeps(manager)


def test_a_listener_that_leaves_the_configuration_leaves_the_store(tmp_path: Path, manager: Manager) -> None:
    file = tmp_path / "run.toml"
    file.write_text('bind = ["one=127.0.0.1:0", "two=127.0.0.1:0"]\n', encoding="utf-8")
    with start(tmp_path, manager, "--config", str(file), "--ready", "delay:50ms", bind="") as service:
        keeps(manager, "fdhandoff.0.one", "fdhandoff.0.two")
        file.write_text('bind = ["one=127.0.0.1:0"]\n', encoding="utf-8")
        service.upgrade()
        service.settled(2)
        keeps(manager, "fdhandoff.1.one")


def test_both_sockets_of_one_bind_are_kept(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager, bind="web=localhost:0") as service:
        count = len(service.status()["listeners"])
        wait_for(lambda: len(kept(manager)) == count, f"{count} sockets, not {kept(manager)}")


def test_an_upgrade_of_the_master_stores_nothing_anew(tmp_path: Path, manager: Manager) -> None:
    with start(tmp_path, manager) as service:
        keeps(manager, "fdhandoff.0.http")
        assert service.command("--master")[0] == 0
        service.upgrade()
        service.settled(2)
        keeps(manager, "fdhandoff.1.http")
