"""The pidfile: the number that others look for, locked by who lives, replaced in one step, removed by its owner alone.

Its content is the pid and a newline, complete at every moment: a new file is written beside it and renamed into place.
Each owner holds an ``flock`` on *its own* file, so a successor can put its file there while the predecessor lives; the
predecessor then finds that the path is no longer its own and leaves it alone. All of it happens under ``PATH.lock``.

Whether a number found there still means somebody: a process that exists, ours to signal or not (EPERM), and did not
start after the file was written. A lock alone is no proof, since a forked worker inherits it and may outlive its
parent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time

from ..errors import HandoffError, PathError, PidfileLocked, SystemCallError
from .paths import Lock, identity
from .process import command_name, lives, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

_READ_MAX = 64
_CLOCK_SLACK = 2.0  # seconds by which wall clock and boot clock may disagree


class Pidfile:
    """A pidfile at ``path``, which is resolved now, so that a later ``chdir`` changes nothing. Nothing is opened before
    ``claim`` or ``take_over``. A forked child's copy does nothing: the file is its parent's.
    """

    __slots__ = ("_fd", "_owner", "path")

    def __init__(self, path: Path) -> None:
        self.path = os.path.abspath(path)
        self._fd = -1
        self._owner = 0

    def check(self) -> None:
        """Raises what ``claim`` would, as far as it is the file's fault, and changes nothing."""
        self._refuse_a_live_holder()

    def claim(self, pid: int | None = None) -> None:
        """Writes ``pid`` (default: ours). ``PidfileLocked`` when another live process has the file; ``PathError`` when
        something else is at the path, or its directory is missing or not ours to write. A dead process's file, an empty
        one and garbage are replaced. Claiming again rewrites it.
        """
        with Lock(self.path):
            self._refuse_a_live_holder()
            self._replace(os.getpid() if pid is None else pid)

    def take_over(self, pid: int | None = None) -> None:
        """As ``claim``, for a successor: the predecessor may live and hold its file, and will see that the path is
        ours.
        """
        with Lock(self.path):
            self._refuse_other_things()
            self._replace(os.getpid() if pid is None else pid)

    def release(self) -> bool:
        """Removes the file if it is still ours, and gives the lock back; whether it removed. Idempotent."""
        if self._fd < 0 or self._owner != os.getpid():
            return False
        removed = False
        try:
            if identity(self.path) == _identity_of(
                self._fd
            ):  # without the lock first: nothing to lock, nothing to make
                with Lock(self.path):
                    if identity(self.path) == _identity_of(self._fd):
                        os.unlink(self.path)
                        removed = True
        except HandoffError:
            raise
        except OSError as error:
            raise SystemCallError("unlink", error.errno or 0, doing=f"removing the pidfile {self.path}") from None
        finally:
            os.close(self._fd)
            self._fd = -1
        return removed

    def forget_in_child(self) -> None:
        """After fork, in the child: its copy of the lock, which would outlive its parent's, is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def owned(self) -> bool:
        """Whether the file at the path is the one that this process wrote."""
        return self._fd >= 0 and self._owner == os.getpid() and identity(self.path) == _identity_of(self._fd)

    def __repr__(self) -> str:
        return f"Pidfile({self.path!r})"

    def _refuse_other_things(self) -> os.stat_result | None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise PathError(
                f"the pidfile {self.path} exists and is no regular file; it was not touched: remove it, or choose another path",
                path=self.path,
            )
        return found

    def _refuse_a_live_holder(self) -> None:
        found = self._refuse_other_things()
        if found is None or self.owned:
            return
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError as error:
            raise PathError(
                f"the pidfile {self.path} can't be read ({os.strerror(error.errno or 0)}): it belongs to uid {found.st_uid}",
                path=self.path,
            ) from None
        try:
            pid = _parse(os.read(fd, _READ_MAX))
            locked = not _lock(fd)
        finally:
            os.close(fd)
        if pid == os.getpid():
            return
        if pid is None:
            if locked:
                raise PidfileLocked(f"the pidfile {self.path} is locked by a live process: stop it first", pid=None)
            return
        if lives(pid) and not _started_after(pid, found.st_mtime):
            name = command_name(pid)
            raise PidfileLocked(
                f"the pidfile {self.path} belongs to pid {pid}{f' ({name})' if name else ''}, which lives: stop it first, "
                "or choose another path",
                pid=pid,
            )

    def _replace(self, pid: int) -> None:
        temporary = f"{self.path}.{os.getpid()}.new"  # under the lock nobody else writes it
        fd = -1
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            os.fchmod(fd, 0o644)
            os.write(fd, b"%d\n" % pid)
            _lock(fd)
            os.rename(temporary, self.path)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
                try:
                    os.unlink(temporary)
                except FileNotFoundError:
                    pass
            if isinstance(error, OSError):
                raise SystemCallError("open", error.errno or 0, doing=f"writing the pidfile {self.path}") from None
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._owner = fd, os.getpid()


def read(path: Path) -> int | None:
    """The pid in the file; ``None`` when there is no file, or no number in it. ``PathError`` when it can't be read."""
    path = os.fspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PathError(f"the pidfile {path} can't be read: {os.strerror(error.errno or 0)}", path=path) from None
    try:
        return _parse(os.read(fd, _READ_MAX))
    except OSError as error:
        raise PathError(f"the pidfile {path} can't be read: {os.strerror(error.errno or 0)}", path=path) from None
    finally:
        os.close(fd)


def alive(path: Path) -> int | None:
    """The pid in the file if that process lives and is the one that was meant (it did not start after the file was
    written); else ``None``. A process that is not ours to signal lives too.
    """
    pid = read(path)
    if pid is None or not lives(pid):
        return None
    try:
        written = os.stat(path).st_mtime
    except FileNotFoundError:
        return None
    return None if _started_after(pid, written) else pid


def _parse(content: bytes) -> int | None:
    """The first line's number. A file without the newline may be half written, and counts all the same: others write
    theirs without it.
    """
    words = content.split(b"\n", 1)[0].split()
    if len(words) != 1 or not words[0].isdigit() or not 0 < int(words[0]) < 2**31:
        return None
    return int(words[0])


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return True  # a file system without locks: the number decides
        raise
    return True


def _started_after(pid: int, moment: float) -> bool:
    """Whether ``pid`` began its life after ``moment`` (wall clock): then somebody before it had its number."""
    ticks = start_time(pid)
    if not ticks or sys.platform != "linux":
        return False
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age > moment + _CLOCK_SLACK


def _identity_of(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
