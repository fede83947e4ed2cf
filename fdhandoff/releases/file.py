"""``file:PATH``: a script, zipapp, pex or binary, or a directory of them, that somebody copies to the same place again and
again. What is run is a copy: the next one may be written over it at any moment."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from pathlib import Path

from . import Found, Source, SourceError, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

#: So long nothing may have changed, before it is taken for whole. Longer than the clock by which files are dated ticks.
STABLE_SECONDS = 1.0
#: So long it is waited for that: a slow copy is found whole at a later look.
PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_PART = 1 << 20
_TAG_LETTERS = 12


class FileSource(Source):
    remote = False

    def __init__(self, where: str, settings: Any) -> None:
        super().__init__(where, settings)
        self.path = Path(os.path.abspath(where))

    def look(self, state: Mapping[str, Any]) -> Found:
        seen = self._signature()
        if state.get("seen") != seen or not state.get("digest"):
            seen = self._await_rest(seen)
            digest = digest_of(self.path)
            if self._signature() != seen:
                raise SourceError(f"{self.path} changes while it is read")
        else:
            digest = state["digest"]
        quiet = () if self.path.is_dir() else (str(self.path),)
        tag = tag_of(f"{self.path.stem}-{digest[:_TAG_LETTERS]}")
        return Found(digest, tag, {"seen": seen, "digest": digest}, quiet=quiet)

    def fetch(self, found: Found, into: Path) -> Path:
        copy = into / self.path.name
        try:
            if self.path.is_dir():
                shutil.copytree(self.path, copy, symlinks=True)
            else:
                shutil.copyfile(self.path, copy)
                copy.chmod(stat.S_IMODE(self.path.stat().st_mode) & 0o777)
        except shutil.Error as error:
            raise SourceError(f"{self.path} can't be copied: {error.args[0][0][2]}") from None
        if digest_of(copy) != found.identity:
            raise SourceError(f"{self.path} changed while it was copied")
        return copy

    def _await_rest(self, seen: str) -> str:
        """Until nothing has changed for a while, and nobody has it open to write in it. By the monotonic clock: the other one
        may be set meanwhile."""
        began = since = time.monotonic()
        while (now := time.monotonic()) - since < STABLE_SECONDS or any(map(is_written_to, self._files())):
            if now - began > PATIENCE_SECONDS:
                raise SourceError(f"{self.path} is still being written")
            time.sleep(_LOOK_SECONDS)
            last, seen = seen, self._signature()
            if seen != last:
                since = time.monotonic()
        return seen

    def _files(self) -> Iterator[Path]:
        if not self.path.is_dir():
            yield self.path
            return
        for path in members_of(self.path):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path

    def _signature(self) -> str:
        """Another whenever something was written."""
        whole = hashlib.sha256()
        size = 0
        try:
            for path in [self.path, *(members_of(self.path) if self.path.is_dir() else ())]:
                facts = path.stat() if path == self.path else path.lstat()
                size += facts.st_size
                name = os.fsencode(path)
                numbers = (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
                whole.update(name + b"\0" + repr(numbers).encode())
        except OSError as error:
            raise SourceError(f"{error.filename} can't be read: {error.strerror}") from None
        if size > self.settings.size_max:
            raise SourceError(f"{self.path} has {size} bytes, more than --fetch-max allows")
        return whole.hexdigest()


def members_of(directory: Path) -> Iterator[Path]:
    """All that is below, in one order everywhere."""
    for entry in sorted(directory.iterdir()):
        yield entry
        if entry.is_dir() and not entry.is_symlink():
            yield from members_of(entry)


def digest_of(path: Path) -> str:
    """Of names, contents, link targets and permissions. ``SourceError`` for what is no file, directory or link."""
    if not path.is_dir():
        return _digest_of_file(path, path.stat())
    whole = hashlib.sha256(b"directory\0")
    for member in members_of(path):
        facts = member.lstat()
        whole.update(os.fsencode(member.relative_to(path)) + b"\0")
        if stat.S_ISLNK(facts.st_mode):
            whole.update(b"link\0" + os.fsencode(os.readlink(member)) + b"\0")
        elif stat.S_ISDIR(facts.st_mode):
            whole.update(b"directory\0")
        else:
            whole.update(_digest_of_file(member, facts).encode())
    return whole.hexdigest()


def _digest_of_file(path: Path, facts: os.stat_result) -> str:
    if not stat.S_ISREG(facts.st_mode):
        raise SourceError(f"{path} is neither a file nor a directory: it can't be a release, or a part of one")
    whole = hashlib.sha256(f"{stat.S_IMODE(facts.st_mode) & 0o777:o}\0".encode())
    with path.open("rb") as file:
        while part := file.read(_PART):
            whole.update(part)
    return whole.hexdigest()


def is_written_to(path: Path) -> bool:
    """Whether somebody has the file open to write in it, as far as the system tells us: a lease to read is refused then. It is
    given back at once (SIGIO, which comes with a writer in between, is ignored in this process); another user's file, and some
    file systems, have none."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False  # it can't be read, which is found out where it is to be
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False


SOURCE = FileSource
