"""A descriptor that a signal makes readable, whichever thread it came to and whatever the main thread was about to do.

Python runs a signal's handler in the main thread, between two instructions. One that comes in the instant before that thread
waits in the kernel, or that the kernel gives to another thread, is only noted: the wait goes on. Who waits for this as well is
woken.
"""

from __future__ import annotations

import os
import signal
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


class SignalPipe:
    """For the main thread, which puts it in place. It hears every signal that has a handler in Python."""

    __slots__ = ("_before", "_read", "_write")

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = -1

    def install(self) -> None:
        self._before = self._set(self._write)

    def in_place(self) -> bool:
        """Whether the signal for which a handler runs was heard here. If it was not because somebody else's descriptor had our
        place and left it empty, the next will be; if it still has that place, it keeps it."""
        at_present = self._set(self._write)
        if at_present not in (self._write, -1):
            self._set(at_present)
        return at_present == self._write

    def restore(self) -> None:
        """Gives the place back to whom it had before, unless somebody took it since."""
        at_present = self._set(self._before)
        if at_present != self._write:
            self._set(at_present)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        """Makes it readable without a signal; ``take`` returns 0 then. From any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            return  # full, so readable already

    def take(self) -> bytes:
        """The numbers of what came since, in order; empty when nothing did."""
        try:
            return os.read(self._read, 65536)
        except BlockingIOError:
            return b""

    def bequeath(self, yes: bool = True) -> int:
        """What nobody takes here is for the program that this process becomes, which gives the number to ``raise_again``;
        unless ``yes`` is false."""
        os.set_inheritable(self._read, yes)
        return self._read

    def close(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            os.close(self._write)
        self._read = self._write = -1

    @staticmethod
    def raise_again(fd: int, among: Container[int]) -> None:
        """In the program that this process has become: each signal ``among`` these that waits in ``fd`` comes to this thread,
        and ``fd`` is closed. Nothing where that is no pipe."""
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                return
            os.set_blocking(fd, False)
            heard = os.read(fd, 65536)
        except BlockingIOError:
            heard = b""
        except OSError:
            return  # nobody left us this one
        os.close(fd)
        for number in heard:
            if number in among:
                signal.raise_signal(number)

    @staticmethod
    def _set(fd: int) -> int:
        try:
            return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        except ValueError:
            # What was there before has been closed since, without a word.
            return signal.set_wakeup_fd(-1)
