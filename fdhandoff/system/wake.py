"""A descriptor that one thread makes readable to wake another that waits in ``poll``."""

from __future__ import annotations

import os


class Wake:
    """``set`` makes ``fileno()`` readable, ``clear`` unreadable. Both may be called from any thread and from a signal
    handler; ``set`` does nothing once it is closed."""

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        if self._write < 0:
            return
        try:
            os.write(self._write, (1).to_bytes(8, "little"))
        except BlockingIOError:
            return  # full, so readable already, which is all that is wanted

    def clear(self) -> None:
        try:
            while len(os.read(self._read, 4096)) == 4096:
                pass
        except BlockingIOError:
            return  # empty

    def close(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            if self._write != self._read:
                os.close(self._write)
        self._read = self._write = -1
