"""Processes that no signal to our process group reaches, and that do not outlive us all the same.

Each is started in a session of its own and with a mark in its environment, which whatever it starts inherits. Whoever wants
them ended finds them by the mark, and those of their sessions with them. While there may be any, a guard waits for the end of
the process that they work for: this very file, run by an interpreter with nothing but the standard library's core, so it
imports nothing of the package.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "FDHANDOFF_JOB"
_LOOK_SECONDS = 0.02
_LOOKS = 25
# A process that forks without end must not keep the guard for ever.
_END_SECONDS = 30.0


def find(mark: str, own_session: int) -> list[int]:
    """The living processes that have ``mark``, and those of the sessions in which such are. Of session ``own_session``, which
    is that of the process they work for, only those with the mark: not everybody there is ours."""
    marked: list[int] = []
    others: list[int] = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if entry.isdigit() and int(entry) != os.getpid():
            (marked if _has(int(entry), mark) else others).append(int(entry))
    sessions = {_session(pid) for pid in marked} - {own_session, 0}
    return marked + [pid for pid in others if _session(pid) in sessions]


def tell(mark: str, own_session: int, number: int) -> int:
    """Sends signal ``number`` to each of them: to how many."""
    found = find(mark, own_session)
    sessions = {_session(pid) for pid in found} - {own_session, 0}
    return sum(_signal(pid, number, lambda pid: _has(pid, mark) or _session(pid) in sessions) for pid in found)


def end(mark: str, own_session: int, patience: float) -> int:
    """Ends them: TERM, and KILL for those that live ``patience`` seconds later. Returns when none is left (30 s later at most):
    how many there were in the beginning."""
    count = tell(mark, own_session, signal.SIGTERM) if patience else 0
    now = time.monotonic()
    until, give_up = now + patience, now + patience + _END_SECONDS
    while left := find(mark, own_session):
        now = time.monotonic()
        count = count or len(left)
        if now >= give_up:
            break
        if now >= until:
            tell(mark, own_session, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
    return count


def _signal(pid: int, number: int, is_meant: Callable[[int], bool]) -> bool:
    """The number may be somebody else's by now: what it is is asked again once a pidfd holds it."""
    try:
        pidfd = os.pidfd_open(pid)
    except AttributeError:
        pidfd = -1
    except OSError:
        return False
    try:
        if not is_meant(pid):
            return False
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)
    except OSError:
        return False  # it ended by itself, or runs as somebody else
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return True


def _has(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _session(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, _, session = file.read().rpartition(b")")[2].split()[:4]
            return 0 if state in (b"Z", b"X") else int(session)
    except (OSError, ValueError):
        return 0


def guard(channel: int, mark: str, own_session: int) -> None:
    """Waits for the end of the process that ``channel`` tells of (its pidfd, or a pipe of which it has the other end), and then
    kills what it left. One that it was starting at that moment has the mark a little later."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.poll()
    for _ in range(_LOOKS):
        end(mark, own_session, 0.0)
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    guard(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
