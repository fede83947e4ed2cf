"""Each kind of source as whoever releases there sees it: ``publish(name)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import point, replace, script

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Publisher:
    """``source`` is what ``--watch`` is told, ``words`` what the interpreter is, ``options`` what else ``run`` is told."""

    source = ""
    words: Sequence[str] = ("{release}",)
    options: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "published"
        self.folder.mkdir()

    def publish(self, name: str, fault: str = "") -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing of it is left running."""


class File(Publisher):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = self.folder / "server.py"
        self.source = f"file:{self.path}"

    def publish(self, name: str, fault: str = "") -> None:
        replace(self.path, script(name, fault))


class Directory(Publisher):
    words = ("{release}/server.py",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = f"file:{self.folder}"

    def publish(self, name: str, fault: str = "") -> None:
        replace(self.folder / "server.py", script(name, fault))


class Symlink(Publisher):
    """The command names the link itself, as people write it who have never heard of a place to be filled in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.link = self.folder / "current"
        self.source = f"symlink:{self.link}"
        self.words = (str(self.link / "server.py"),)
        self.options = ("--directory", str(self.link))

    def publish(self, name: str, fault: str = "") -> None:
        release = self.folder / "releases" / name
        release.mkdir(parents=True)
        (release / "server.py").write_text(script(name, fault))
        point(self.link, release)


PUBLISHERS: dict[str, type[Publisher]] = {"file": File, "directory": Directory, "symlink": Symlink}
