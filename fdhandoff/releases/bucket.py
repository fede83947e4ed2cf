"""``s3://BUCKET/KEY``, and one file wherever else fsspec gets at: ``gs://``, ``az://``, ``sftp://``, ``ftp://``, …"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import tempfile
import time
from importlib import import_module
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from . import Found, Settings, Source, SourceError
from .artefact import artefact_tag, finish, verification_of
from .file import STABLE_SECONDS
from .limits import at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

#: What does not come is tried again for so long; a library that has tried for longer itself has tried enough.
PATIENCE_SECONDS = 10.0
BACKOFF_SECONDS = 0.5  # before the second try, and doubled before each further one
_PART = 1 << 20
_BESIDE_MAX = 1 << 20
_PROGRESS_SECONDS = 10.0
# What file systems call that by which a release is known, in small letters and without "_". Of the first ones each stands for
# the content, and changes with the whole of it; the others are dates, which change while a file is being written, too.
_MARKS = ("etag", "versionid", "generation", "md5hash", "contentmd5", "crc32c", "checksum", "sha256", "sha")
_DATES = ("lastmodified", "mtime", "modified", "updated", "modify", "created", "ino")
# It would be the same the next time.
_LAST = (FileNotFoundError, PermissionError, IsADirectoryError, TypeError, ValueError)
# Of this machine's disk, not of what is far away.
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")


class BucketSource(Source):
    def __init__(self, where: str, settings: Settings) -> None:
        super().__init__(where, settings)
        self.word = where.partition("://")[0]
        try:
            secret = urlsplit(where).password
        except ValueError as error:
            raise SourceError(f"{where!r} is no URL: {error}") from None
        if secret:
            raise SourceError(
                f"a password in a URL is seen by everybody: leave it to where the library for {self.word}:// looks for it"
            )
        self._verification = verification_of(settings)
        self._fs, self._path = self._open(where)
        self.name = PurePosixPath(self._path).name
        if not self.name or self.name in (".", ".."):
            raise SourceError(f"{where!r} names no file")

    def look(self, state: Mapping[str, Any]) -> Found:
        facts = self._facts(self._path)
        marks, dates = _chosen(facts, _MARKS), _chosen(facts, _DATES)
        if not marks and not dates:
            return self._found(self._content())
        identity = f"validator:{_digest(self.where, facts.get('size'), marks or dates)}"
        if not marks and identity != state.get("identity"):  # it may be half a file as yet
            time.sleep(STABLE_SECONDS)
            if self._facts(self._path) != facts:
                raise SourceError(f"{self.where} is still being written")
        return self._found(identity)

    def _found(self, identity: str) -> Found:
        return Found(identity, artefact_tag(self.name, identity.partition(":")[2]), {"identity": identity})

    def _content(self) -> str:
        """Where nothing else tells one release from the next."""

        def read() -> str:
            whole, size = hashlib.sha256(), 0
            with self._fs.open(self._path, "rb") as file:
                while part := file.read(_PART):
                    whole.update(part)
                    size += len(part)
                    if size > self.settings.size_max:
                        raise self._too_much(self._path, self.settings.size_max)
            return whole.hexdigest()

        return f"content:{self._tried(self.where, read)}"

    def fetch(self, found: Found, into: Path) -> Path:
        artefact = into / self.name
        digest = self._get(self._path, str(artefact), self.settings.size_max)
        now = f"content:{digest}" if found.identity.startswith("content:") else self.look(found.state).identity
        if now != found.identity:
            raise SourceError(f"{self.where} changed while it was fetched")

        def beside(name: str, suffix: str) -> bytes:
            path = str(PurePosixPath(self._path).with_name(name)) if name else self._path + suffix
            place = os.path.join(tempfile.mkdtemp(dir=into), "beside")
            self._get(path, place, _BESIDE_MAX)
            with open(place, "rb") as file:
                return file.read()

        return finish(artefact, self._verification, beside, self.settings)

    # --- the library's part -------------------------------------------------------------------------------------

    def _open(self, url: str) -> tuple[Any, str]:
        """The file system, and the path in it. It takes what it needs from its own variables and files."""
        try:
            self._fsspec: Any = import_module("fsspec")
            if self.word not in {*self._fsspec.available_protocols(), *self._fsspec.registry}:
                raise SourceError(f"there is no source {self.word!r}, nor does fsspec know it")
            opened: tuple[Any, str] = self._tried(url, lambda: self._fsspec.url_to_fs(url, skip_instance_cache=True))
        except ImportError as error:
            extra = "s3" if self.word in ("s3", "s3a") else "fsspec"
            more = "" if extra == "s3" or error.name == "fsspec" else f" ({error})"
            raise SourceError(
                f"to watch {self.word}:// a package is needed: pip install 'fdhandoff[{extra}]'{more}"
            ) from None
        return opened

    def _facts(self, path: str) -> dict[str, Any]:
        """Of the file, as they are now."""

        def ask() -> dict[str, Any]:
            self._fs.invalidate_cache()
            facts: dict[str, Any] = self._fs.info(path)
            return facts

        facts: dict[str, Any] = self._tried(self._name_of(path), ask)
        if facts.get("type") == "directory":
            raise SourceError(f"{self._name_of(path)} is a directory, and not a file")
        return facts

    def _get(self, path: str, local: str, size_max: int) -> str:
        """Its content's digest; ``local`` holds that then."""
        size = self._facts(path).get("size")
        if isinstance(size, int) and size > size_max:
            raise self._too_much(path, size_max)
        try:
            # So that no library writes more, whatever it was told of the size (Python ignores SIGXFSZ).
            with at_most(size_max, resource.RLIMIT_FSIZE):
                self._tried(self._name_of(path), lambda: self._fs.get_file(path, local, callback=self._progress()))
        except OSError as error:
            raise self._too_much(path, size_max) if error.errno == errno.EFBIG else error from None
        with open(local, "rb") as file:
            whole = hashlib.sha256()
            while part := file.read(_PART):
                whole.update(part)
            there = file.tell()
        if isinstance(size, int) and there != size:
            raise SourceError(f"{self._name_of(path)} broke off after {there} bytes of {size}")
        return whole.hexdigest()

    def _progress(self) -> Any:
        said = time.monotonic()

        def say(size: int | None, value: int, **_: Any) -> None:
            nonlocal said
            if time.monotonic() - said > _PROGRESS_SECONDS:
                said = time.monotonic()
                self.settings.say(f"{value} bytes of {size or 'unknown'} fetched")

        return self._fsspec.Callback(hooks={"say": say})

    def _tried(self, name: str, what: Callable[[], Any]) -> Any:
        """Again where that may help, with one sentence at the end."""
        began, pause = time.monotonic(), BACKOFF_SECONDS
        while True:
            try:
                return what()
            except (ImportError, SourceError):
                raise
            except Exception as error:  # each library has its own
                if isinstance(error, OSError) and error.errno in _OURS:
                    raise
                if isinstance(error, _LAST) or time.monotonic() + pause - began > PATIENCE_SECONDS:
                    raise SourceError(f"{name} can't be had: {_in_words(error)}") from None
            time.sleep(pause)
            pause *= 2

    def _too_much(self, path: str, size_max: int) -> SourceError:
        return SourceError(f"{self._name_of(path)} has more than the {size_max} bytes that --fetch-max allows")

    def _name_of(self, path: str) -> str:
        return self.where if path == self._path else str(self._fs.unstrip_protocol(path))


def _chosen(facts: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, str]]:
    small = {name.lower().replace("_", ""): value for name, value in facts.items()}
    return [(name, str(small[name])) for name in names if small.get(name)]


def _digest(*what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _in_words(error: Exception) -> str:
    """One sentence, without what a signed URL has behind its question mark."""
    kind = type(error).__name__
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error) or kind
    return _QUERY.sub(r"\1?…", reason)


SOURCE = BucketSource
