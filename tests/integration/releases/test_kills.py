"""SIGKILL of the master, and of its fetcher, at every edge of a release's way: while it is looked for, fetched, verified,
unpacked and named, remembered, tried and switched to; under clients that retry nothing. What serves goes on serving, and the
same command, or the next look, finishes what was begun, and leaves nothing half made on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ...conftest import needs_that
from ...support.trapped_source import TrappedSource
from ...support.traps import Traps
from ..cli import DEADLINE, wait_for
from ..master import Load, kill
from ..master.test_kills import descriptors, numbered
from . import Watched, plugged, script
from .publishers import Http, packed

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In the fetcher, from its start to its end, of an archive with two files: where each thing begins.
FETCH = ("tidy", "look", "looked", "half", "verify", "unpack", "unpack", "name", "name", "name", "sync", "named")
#: In the master, with the upgrade's own edges before and after the switch.
MOVE = (
    "asked", "history",  # it is here
    "history",  # it is tried
    "enter switch", "enter settle",
    "history", "point", "history",  # it serves
)  # fmt: skip
#: At which a fetcher alone is killed: what it leaves is the same.
SOME = (("half", 1), ("unpack", 2), ("name", 3), ("named", 1))


class Trapped(Http):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = f"trapped:{self.source}"

    def publish(self, name: str, fault: str = "") -> None:
        self.web.put(self.name, packed({"app/server.py": script(name, fault).encode(), "app/data": os.urandom(4096)}))


class Scene:
    def __init__(self, folder: Path, traps: Traps) -> None:
        self.folder = folder
        self.traps = traps
        self.site = Trapped(folder)
        self.running = contextlib.ExitStack()
        self.published: list[str] = []

    def publish(self) -> str:
        self.published.append(f"release-{len(self.published)}")
        self.site.publish(self.published[-1])
        return self.published[-1]

    def run(self, *options: str) -> Watched:
        """The same command each time."""
        options = (*self.site.options, "--keep-releases", "100", *options)
        how = self.traps.options()
        return self.running.enter_context(
            Watched(self.folder, self.site.source, *options, words=tuple(self.site.words), **how)
        )

    def fetchers(self) -> set[int]:
        """All that a fetcher is, and has started."""
        mark, found = f"TRAP={self.traps.path}".encode(), set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words, variables = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
                if b"releases.fetcher" in words and mark in variables.split(b"\0"):
                    found.add(int(pid))
        return found

    @staticmethod
    def idle(service: Watched) -> None:
        """Until it has looked, and waits for the next time."""
        wait_for(lambda: (watch := service.status()["releases"])["looked"] and watch["next_look"], "an idle watcher")

    def all_is_well(self, service: Watched) -> None:
        """The last release serves, every other did, and there is nothing else in their directory."""
        name = self.published[-1]
        service.comes(name)
        service.settled()
        wait_for(lambda: service.fates() == ["serving", *["served"] * (len(service.fates()) - 1)], str(service.fates()))
        self.idle(service)
        places = {Path(one["place"]).parent.name for one in service.releases().values()}
        there = {".lock", "current", "releases.json", *places}
        wait_for(lambda: set(os.listdir(service.store)) == there, f"{there} alone, not {os.listdir(service.store)}")
        assert os.path.realpath(service.store / "current") in {
            os.path.realpath(one["place"]) for one in service.releases().values() if one["fate"] == "serving"
        }


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    needs_that(Path("/proc/self/environ").exists(), "/proc")
    where = f"{TrappedSource.__module__}:{TrappedSource.__name__}"
    with plugged(tmp_path, "trapped", where), Traps(tmp_path / "trap") as traps:
        scene = Scene(tmp_path, traps)
        try:
            with scene.running:
                scene.publish()
                yield scene
        finally:
            traps.go()
            scene.site.close()


def looked_for(service: Watched) -> threading.Thread:
    """Somebody asks for a look, and hears of its end, or of the master's."""

    def look() -> None:
        with contextlib.suppress(HandoffError):
            ask(service.path, "releases", {"look": True}, timeout=DEADLINE)

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_the_matrix_has_every_edge_of_a_releases_way(scene: Scene) -> None:
    service = scene.run("--every", "1h")
    scene.idle(service)
    scene.publish()
    scene.traps.begin()
    looked_for(service).join()
    seen = scene.traps.seen
    assert [edge for edge in seen if edge in FETCH] == list(FETCH)
    assert [edge for edge in seen if edge in MOVE] == list(MOVE)
    assert seen.index("asked") < seen.index("tidy")
    assert seen.index("named") < seen.index("history"), "it has its name when it is remembered"


@pytest.mark.parametrize("edges", [FETCH, MOVE], ids=["fetch", "move"])
def test_a_master_that_is_killed_is_followed_by_one_that_serves_the_last_good_release_and_finishes(
    scene: Scene, edges: tuple[str, ...]
) -> None:
    service = scene.run("--every", "1h")
    with Load(service.address(), 2) as load:
        for edge in numbered(edges):
            scene.idle(service)
            scene.traps.begin(*edge)
            scene.publish()
            asked = looked_for(service)
            scene.traps.reached(DEADLINE)
            kill(service.pid)
            wait_for(lambda: not scene.fetchers(), f"the end of {scene.fetchers()} at {edge}")
            scene.traps.go()
            asked.join()
            before = len(load.answers)
            wait_for(lambda before=before: len(load.answers) >= before + 20, "answers while there is no master")
            scene.traps.begin()
            service = scene.run("--every", "1h")
            scene.all_is_well(service)
        assert not load.failures
    assert service.stop() == 0


def test_a_fetcher_that_is_killed_is_followed_by_another(scene: Scene) -> None:
    service = scene.run("--every", "0.5")
    before = descriptors(service.pid)
    with Load(service.address(), 2) as load:
        for edge in SOME:
            scene.traps.begin(*edge)
            scene.publish()
            scene.traps.reached(DEADLINE)
            for pid in scene.fetchers():
                if os.getpgid(pid) == pid:
                    os.kill(pid, signal.SIGKILL)
            scene.traps.go()
            scene.traps.begin()
            scene.all_is_well(service)
        assert not load.failures
    assert service.said("was killed by signal 9, and said nothing") == len(SOME)
    # No more than then: a fetcher may have been there.
    wait_for(lambda: not descriptors(service.pid) - before, f"{before}, not {descriptors(service.pid)}")
