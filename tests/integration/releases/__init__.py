"""Services that move by themselves to what a source has: real sources, and releases that say their own name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from fdhandoff.client import ask

from ..cli import DEADLINE, wait_for
from ..master import RUDE, Service, quick, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What makes the release named in a script a broken one.
BROKEN = "exit3"


def script(name: str, fault: str = "") -> str:
    """A server that answers with ``name``, whatever its environment says."""
    return f"import os\nos.environ['RELEASE'], os.environ['FAULT'] = {name!r}, {fault!r}\n{RUDE}"


def replace(path: Path, text: str, mode: int = 0o644) -> None:
    """As a careful deployment does it: in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(mode)
    os.replace(new, path)


def point(link: Path, target: Path) -> None:
    new = link.with_name(f".{link.name}.new")
    new.symlink_to(target)
    os.replace(new, link)


@contextlib.contextmanager
def plugged(folder: Path, name: str, source: str) -> Iterator[Path]:
    """A package that adds the source ``name`` is installed in the directory that it gives. ``source``: ``module:class``."""
    installed = folder / "installed"
    facts = installed / f"{name}-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(f"[fdhandoff.releases]\n{name} = {source}\n")
    sys.path.insert(0, str(installed))  # Running passes it on
    try:
        yield installed
    finally:
        sys.path.remove(str(installed))


class Watched(Service):
    """``run --watch``, whose command is ``words`` behind the interpreter (the release itself, unless said otherwise)."""

    def __init__(
        self, folder: Path, source: str, *options: str, words: tuple[str, ...] = ("{release}",), **run: Any
    ) -> None:
        self.store = folder / "store"
        super().__init__(
            folder, *quick("--watch", source, "--every", "0.3", "--releases", str(self.store), "--name", "watched"), *options,
            command=[sys.executable, *words], **run,
        )  # fmt: skip

    def releases(self, **body: Any) -> dict[str, dict[str, Any]]:
        """By tag; the newest first."""
        answer = ask(self.path, "releases", body, timeout=DEADLINE)
        return {one["tag"]: one for one in answer["releases"]}

    def fates(self) -> list[str]:
        """The newest first."""
        return [one["fate"] for one in self.releases().values()]

    def answers(self) -> str:
        """The name of the release that serves."""
        return request(self.address())[0]

    def comes(self, name: str) -> None:
        """Until release ``name`` serves, and its upgrade is decided."""
        wait_for(lambda: self.answers() == name and self.decided(), f"release {name}: {self.running.text()}")

    def decided(self) -> bool:
        status = self.status()
        return status["state"] == "serving" and (status["last_upgrade"] or {"result": "done"})["result"] != "under way"

    def says(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.said(text) >= times, f"{text!r}: {self.running.text()}")

    def said(self, text: str) -> int:
        return sum(text in line for line in self.running.err)

    def kill_all(self) -> None:
        """The master and all of its generations, at once, as a machine that loses its power."""
        family = [pid for one in self.generations().values() for pid in one["pids"]]
        os.kill(self.pid, signal.SIGKILL)
        for pid in family:
            os.killpg(pid, signal.SIGKILL)
        self.running.ends()
