"""Each kind of source as whoever releases there sees it: ``publish(name)``."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import urllib.request
import uuid
from typing import TYPE_CHECKING

from ...conftest import needs
from . import point, replace, script
from .github import GitHub
from .gits import SERVERS
from .index import Index, wheel
from .web import Web

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SECRET = "a-secret-that-nobody-may-see"


class Publisher:
    """``source`` is what ``--watch`` is told, ``words`` what the interpreter is, ``options`` what else ``run`` is told, ``env``
    what it finds in its environment."""

    source = ""
    words: Sequence[str] = ("{release}",)
    options: Sequence[str] = ()
    env: Mapping[str, str] = {}

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


class SignedGit(Git):
    """The same, with commits that somebody has signed, behind a server of the kind ``by``."""

    def __init__(self, folder: Path, by: str = "http") -> None:
        super().__init__(folder)
        needs("ssh-keygen", "openssh-client")
        key = folder / "key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        self.signers = folder / "signers"
        self.signers.write_text(f"somebody@example {key.with_suffix('.pub').read_text()}")
        self.signed = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}", "-c", "commit.gpgSign=true")
        self.server = SERVERS[by](folder)
        self.url = f"{self.server.url}/{self.folder.name}"
        self.source = f"git:{self.url}#main"
        self.options = ("--verify", f"signers:{self.signers}")

    def publish(self, name: str, fault: str = "", *how: str) -> None:
        super().publish(name, fault, *(how or self.signed))

    def close(self) -> None:
        self.server.close()


PUBLISHERS.update({"git": Git, "git-remote": SignedGit})


class S3(Publisher):
    """An archive in a bucket of a server that speaks as S3 does, with its checksum beside it."""

    words = ("{release}/server.py",)
    options = ("--verify", "checksum")
    name = "app.tar.gz"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from moto.server import ThreadedMotoServer  # late: it is large

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.env = {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET,
        }  # fmt: skip
        self.bucket = f"releases-{uuid.uuid4().hex}"  # what one server of this process has, the next has too
        self._ask("PUT", "")
        self.source = f"s3://{self.bucket}/{self.name}"

    def put(self, name: str, data: bytes) -> None:
        self._ask("PUT", f"/{name}", data)

    def delete(self, name: str) -> None:
        self._ask("DELETE", f"/{name}")

    def _ask(self, method: str, path: str, data: bytes | None = None) -> None:
        who = "AWS4-HMAC-SHA256 Credential=somebody/20200101/us-east-1/s3/aws4_request"
        headers = {"Authorization": who, "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    def publish(self, name: str, fault: str = "") -> None:
        data = packed({"app/server.py": script(name, fault).encode()})
        self.put(f"{self.name}.sha256", f"{hashlib.sha256(data).hexdigest()}  {self.name}\n".encode())
        self.put(self.name, data)

    def close(self) -> None:
        self._server.stop()


PUBLISHERS["s3"] = S3


class Github(Publisher):
    """An archive among a release's assets, whose digest the API tells."""

    words = ("{release}/server.py",)
    options = ("--verify", "checksum")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.github = GitHub()
        self.source = f"github:{self.github.repository}?asset=app-*.tar.gz&api={self.github.url}"

    def publish(self, name: str, fault: str = "") -> None:
        data = packed({"app/server.py": script(name, fault).encode()})
        self.github.release(f"v-{name}", {f"app-{name}.tar.gz": data, "notes.txt": b"new"})

    def close(self) -> None:
        self.github.close()


PUBLISHERS["github"] = Github


class Pypi(Publisher):
    """A package of an index. What it needs takes pip another second of a processor's time, and has tests of its own."""

    words = ("-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", "{release}/bin/web")
    options = ("--verify", "checksum")
    env: Mapping[str, str] = {"PIP_NO_CACHE_DIR": "1"}  # a port that is used again would be remembered

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.index = Index()
        self.source = f"pypi:web?index={self.index.simple}"
        self.version = 0

    def publish(self, name: str, fault: str = "", needs: Sequence[str] = ()) -> None:
        self.version += 1
        files = {
            "web/__init__.py": f"def main():\n    import {', '.join([*needs, 'web.server'])}\n",
            "web/server.py": script(name, fault),
        }
        data = wheel("web", f"{self.version}.0", files, needs, "web:main")
        self.index.add(f"web-{self.version}.0-py3-none-any.whl", data)

    def close(self) -> None:
        self.index.close()


PUBLISHERS["pypi"] = Pypi
