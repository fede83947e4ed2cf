"""Each kind of source as whoever releases there sees it: ``publish(name)``."""

from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING

from ...conftest import needs
from . import point, replace, script
from .web import Web

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


class Http(Publisher):
    """An archive with its checksum beside it."""

    words = ("{release}/server.py",)
    options = ("--verify", "checksum")
    name = "app.tar.gz"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.web = Web()
        self.source = f"{self.web.url}/{self.name}"

    def publish(self, name: str, fault: str = "") -> None:
        self.web.put(self.name, packed({"app/server.py": script(name, fault).encode()}))

    def close(self) -> None:
        self.web.close()


class HttpWithoutValidators(Http):
    """A file as it is, from a server that says nothing about it, signed."""

    words = ("{release}",)
    name = "server.py"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.web.validators = "none"
        self.key = folder / "key"
        needs("minisign")
        run("minisign", "-G", "-W", "-p", f"{self.key}.pub", "-s", str(self.key))
        self.options = ("--verify", f"minisign:{self.key}.pub")

    def publish(self, name: str, fault: str = "") -> None:
        self.put(script(name, fault).encode())

    def put(self, data: bytes) -> None:
        file = self.folder / self.name
        file.write_bytes(data)
        run("minisign", "-S", "-W", "-m", str(file), "-s", str(self.key))
        self.web.files[f"/{self.name}.minisig"] = file.with_name(f"{self.name}.minisig").read_bytes()
        self.web.files[f"/{self.name}"] = data


def packed(files: dict[str, bytes]) -> bytes:
    """A .tar.gz."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


PUBLISHERS.update({"http": Http, "http-signed": HttpWithoutValidators})


class Git(Publisher):
    """A branch of a repository on this machine."""

    words = ("{release}/server.py",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        needs("git")
        self.git("init", "--quiet", "--initial-branch=main")
        self.source = f"git:{self.folder}#main"

    def git(self, *words: str) -> None:
        identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example")
        run("git", "-C", str(self.folder), *identity, *words)

    def publish(self, name: str, fault: str = "", *how: str) -> None:
        (self.folder / "server.py").write_text(script(name, fault))
        self.git("add", "server.py")
        self.git(*how, "commit", "--quiet", "-m", name)


PUBLISHERS["git"] = Git
