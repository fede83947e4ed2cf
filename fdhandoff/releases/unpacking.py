"""Archives from elsewhere, unpacked so that nothing gets out of its directory, and nothing gets larger than was allowed."""

from __future__ import annotations

import lzma
import os
import resource
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from . import Refused
from .limits import at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (*_TARS, ".zip")
MEMBERS_MAX = 100_000
#: A path of thousands of parts makes as many directories of one member, which then can hardly be removed.
DEPTH_MAX = 100
#: A header can be a bomb, too: what reads it may not have more memory than that.
MEMORY_MAX = 1 << 30
_PART = 1 << 18
_NAME_MAX = 200


def is_archive(name: str) -> bool:
    return name.endswith(ARCHIVES)


def stem(name: str) -> str:
    """Without what says that it is an archive, or what kind of file."""
    suffix = max((one for one in ARCHIVES if name.endswith(one)), key=len, default="")
    return name.removesuffix(suffix) if suffix else PurePosixPath(name).stem


def unpack(archive: Path, into: Path, size_max: int) -> None:
    """``Refused`` with what is wrong in it: then remove ``into``, in which there may be something. Permissions are kept but for
    set-id bits; owners are not. An archive that is one directory is that directory."""
    root = _Root(into, size_max)
    try:
        with at_most(MEMORY_MAX, resource.RLIMIT_AS):
            if archive.name.endswith(".zip"):
                _unpack_zip(archive, root)
            else:
                _unpack_tar(archive, root)
    except MemoryError:
        raise Refused(f"{archive.name} wants more memory than makes sense") from None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        ValueError,
        RuntimeError,
    ) as error:
        raise Refused(f"{archive.name} can't be read: {' '.join(str(error).split()) or type(error).__name__}") from None
    entries = list(into.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink():
        inner = entries[0].rename(into.with_name(".inner"))
        into.rmdir()
        inner.rename(into)
    root.check_links()


def _unpack_tar(archive: Path, root: _Root) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                root.directory(member.name, member.mode)
            elif member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                with file:
                    root.file(member.name, member.mode, file)
            elif member.issym():
                root.link(member.name, member.linkname)
            elif member.islnk():
                root.hard_link(member.name, member.linkname)
            else:
                raise Refused(f"{_short(member.name)} is a device or a pipe")


def _unpack_zip(archive: Path, root: _Root) -> None:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            mode = member.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if member.is_dir():
                root.directory(member.filename, mode or 0o755)
                continue
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise Refused(f"{_short(member.filename)} is a device or a pipe")
            with packed.open(member) as file:
                if kind == stat.S_IFLNK:
                    root.link(member.filename, os.fsdecode(file.read(4096)))
                else:
                    root.file(member.filename, mode or 0o644, file)


class _Root:
    """The directory that all goes into."""

    def __init__(self, path: Path, size_max: int) -> None:
        self._path = path
        self._size_max = size_max
        self._links = False
        self._size = 0
        self._count = 0
        path.mkdir(mode=0o755)

    def directory(self, name: str, mode: int) -> None:
        place = self._place(name)
        self._make(place, name)
        place.chmod(stat.S_IMODE(mode) & 0o755 | 0o700)

    def file(self, name: str, mode: int, content: IO[bytes] | Any) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._new(name), flags, 0o600), "wb") as file:
            while part := content.read(_PART):
                self._size += len(part)
                if self._size > self._size_max:
                    raise Refused(f"unpacked it has more than the {self._size_max} bytes that --fetch-max allows")
                file.write(part)
            os.fchmod(file.fileno(), stat.S_IMODE(mode) & 0o755 | 0o600)

    def link(self, name: str, target: str) -> None:
        place = self._new(name)
        if target.startswith("/") or not target:
            raise Refused(f"{_short(name)} is a link to {_short(target)}, outside of the archive")
        place.symlink_to(target)
        self._links = True

    def check_links(self) -> None:
        """None leads out, also not by way of another."""
        top = os.path.realpath(self._path)
        for folder, folders, files in os.walk(self._path) if self._links else ():
            for place in (os.path.join(folder, name) for name in (*folders, *files)):
                if os.path.islink(place) and not f"{os.path.realpath(place)}/".startswith(f"{top}/"):
                    name = os.path.relpath(place, self._path)
                    raise Refused(f"{_short(name)} is a link to {_short(os.readlink(place))}, outside of the archive")

    def hard_link(self, name: str, target: str) -> None:
        there = self._place(target)
        if there.is_symlink() or not there.is_file():
            raise Refused(f"{_short(name)} is a link to {_short(target)}, which is no file in the archive")
        os.link(there, self._new(name), follow_symlinks=False)

    def _new(self, name: str) -> Path:
        place = self._place(name)
        if os.path.lexists(place):
            raise Refused(f"{_short(name)} is there twice")
        return place

    def _place(self, name: str) -> Path:
        """Where it goes, in a directory that is one: what has been unpacked may have made a link of it."""
        self._one_more()
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise Refused(f"{_short(name)} leads out of the archive")
        if len(parts) > DEPTH_MAX:
            raise Refused(f"{_short(name)} goes deeper than {DEPTH_MAX} directories")
        place = self._path
        for part in parts[:-1]:
            place = place / part
            if place.is_symlink():
                raise Refused(f"{_short(name)} goes through a link")
            if self._make(place, name):
                self._one_more()
        return place / parts[-1] if parts else place

    @staticmethod
    def _make(place: Path, name: str) -> bool:
        """The directory, unless it is there; a link to one is none: its permissions would be those of what it leads to."""
        try:
            place.mkdir(mode=0o755)
        except FileExistsError:
            if place.is_symlink() or not place.is_dir():
                raise Refused(f"{_short(name)} is there twice, and not as a directory each time") from None
            return False
        return True

    def _one_more(self) -> None:
        self._count += 1
        if self._count > MEMBERS_MAX:
            raise Refused(f"it has more than {MEMBERS_MAX} members and directories")


def _short(name: str) -> str:
    """For a sentence: a name can be a mebibyte."""
    return repr(name if len(name) <= _NAME_MAX else f"{name[:_NAME_MAX]}…")
