"""At most so many at once, over all processes that share a file: each has the lock on one byte of it.

The kernel holds the locks (open file description locks, Linux 3.15), so that whoever dies, of whatever, gives them back in
that moment, and no count is left behind that somebody would have to settle.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from _thread import allocate_lock

from ..errors import SystemCallError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

# type, whence, start, length, pid: as fcntl(2) has it, padding as the compiler's
_FLOCK = struct.Struct("@hhqqi0q")


class Slots:
    """``count`` slots, numbered from 0, of the file ``path``, which is made where it does not exist (0600) and stays; without a
    ``path``, of this object alone.

    Threads share the object. A forked child has none of the slots, and can't take any. ``SystemCallError`` where the file can't
    be opened; ``Unsupported`` where the system has no such locks.
    """

    def __init__(self, path: Path | None, count: int) -> None:
        if path is not None and not hasattr(fcntl, "F_OFD_SETLK"):
            raise Unsupported(
                "a limit over several processes needs open file description locks, which Linux has since 3.15"
            )
        self.path = None if path is None else os.fspath(path)
        self.count = count
        self._held: set[int] = set()
        self._lock = allocate_lock()
        self._pid = os.getpid()
        self._closed = False
        self._fd = -1
        if self.path is None:
            return
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SystemCallError("open", error.errno or 0, doing=f"opening {self.path}, which counts jobs") from None

    def acquire(self) -> int:
        """A slot that nobody has, or -1. Does not wait."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return -1
            for slot in range(self.count):
                if slot not in self._held and self._set(slot, fcntl.F_WRLCK):
                    self._held.add(slot)
                    return slot
        return -1

    def release(self, slot: int) -> None:
        """Gives a slot back."""
        with self._lock:
            if slot in self._held and os.getpid() == self._pid:
                self._held.discard(slot)
                self._set(slot, fcntl.F_UNLCK)

    def close(self) -> None:
        """Gives back all that this object has. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            self._closed = True
            self._held.clear()

    def close_in_child(self) -> None:
        """After fork, in the child: the locks go with the last descriptor, and the child's must not be it."""
        self._lock = allocate_lock()  # somebody in the parent may have had it
        self.close()

    def _set(self, slot: int, kind: int) -> bool:
        if self._fd < 0:
            return True
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, slot, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise SystemCallError(
                "fcntl(F_OFD_SETLK)", error.errno or 0, doing=f"locking a slot of {self.path}"
            ) from None
        return True
