"""Who waits for a listener: whether a process, or one that it started, accepts from it or polls it at this moment.

That is how a program that knows nothing of us shows that it serves. What an epoll instance watches stands in
``/proc/PID/fdinfo``; a thread that is blocked in accept, poll or select shows the call and its arguments in
``/proc/PID/task/TID/syscall``, and what they point to can be read in its memory. Both need the rights of a debugger: the
same user and a dumpable program, or CAP_SYS_PTRACE.
"""

from __future__ import annotations

import os
import struct
import sys

from .kin import parent_of
from .processes import descendants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_ACCEPT, _POLL, _SELECT, _RECEIVE = "accept", "poll", "select", "receive"

# System call numbers: /usr/include/asm/unistd_64.h and asm-generic/unistd.h. epoll_wait needs none: fdinfo tells.
_CALLS: dict[str, dict[int, str]] = {
    "x86_64": {
        43: _ACCEPT, 288: _ACCEPT, 7: _POLL, 271: _POLL, 23: _SELECT, 270: _SELECT,
        45: _RECEIVE, 47: _RECEIVE, 299: _RECEIVE,
    },
    "aarch64": {202: _ACCEPT, 242: _ACCEPT, 73: _POLL, 72: _SELECT, 207: _RECEIVE, 212: _RECEIVE, 243: _RECEIVE},
}  # fmt: skip

_POLLIN = 0x1
_POLLFD = struct.Struct("=ihh")
_DESCRIPTORS_MAX = 1 << 16


class Attention:
    """What was seen: ``inodes`` of the sockets that somebody waits for. ``blind`` says why nothing can be concluded from
    what is missing, or is empty.
    """

    __slots__ = ("blind", "inodes")

    def __init__(self, inodes: frozenset[int], blind: str = "") -> None:
        self.inodes = inodes
        self.blind = blind

    def __repr__(self) -> str:
        return f"Attention({sorted(self.inodes)}, blind={self.blind!r})"


def look(pid: int, inodes: Collection[int]) -> Attention:
    """Which of the sockets ``inodes`` (``os.fstat(fd).st_ino``) process ``pid`` or a descendant of it waits for."""
    if sys.platform != "linux" or not os.path.exists("/proc/self/fdinfo"):
        return Attention(frozenset(), "this system has no /proc that tells what a process waits for")
    seen: set[int] = set()
    machine = os.uname().machine
    blind = "" if machine in _CALLS else f"the system calls of {machine} are not known here"
    for process in [pid, *descendants(pid)]:
        try:
            mine = _process(process, frozenset(inodes))
        except FileNotFoundError:
            continue  # it has ended
        except ProcessLookupError:
            continue
        except PermissionError:
            blind = f"we may not look into process {process}: it has another user, or forbids it"
            continue
        except OSError as error:
            blind = f"process {process} can't be looked into: {error.strerror}"
            continue
        if mine is None:
            blind = blind or f"process {process} uses io_uring, which does not show what it waits for"
        else:
            seen |= mine
    return Attention(frozenset(seen), "" if seen.issuperset(inodes) else blind)


def who_waits_on(inodes: Collection[int], pids: Collection[int]) -> Attention:
    """Which of the listeners ``inodes`` (``os.fstat(fd).st_ino``) somebody among ``pids`` and their descendants accepts
    from or polls at this moment: readiness, where the listener is shared and its queue says nothing.
    """
    seen: set[int] = set()
    blind = ""
    for pid in sorted(pids):
        if parent_of(pid) not in pids:  # the others are descendants of these, whom ``look`` finds
            found = look(pid, inodes)
            seen |= found.inodes
            blind = blind or found.blind
    return Attention(frozenset(seen), "" if seen.issuperset(inodes) else blind)


def _process(pid: int, wanted: frozenset[int]) -> set[int] | None:
    """The wanted sockets that one process waits for; ``None`` when it has an io_uring and waits for none visibly."""
    seen: set[int] = set()
    sockets: dict[int, int] = {}  # its descriptor -> inode
    ring = False
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inode = int(target[8:-1])
            if inode in wanted:
                sockets[int(entry)] = inode
        elif target == "anon_inode:[eventpoll]":
            seen |= wanted.intersection(_watched(pid, entry))
        elif target == "anon_inode:[io_uring]":
            ring = True
    if sockets:
        calls = _CALLS.get(os.uname().machine, {})
        for task in os.listdir(f"/proc/{pid}/task"):
            for fd in _blocked_on(pid, task, calls):
                if fd in sockets:
                    seen.add(sockets[fd])
    return None if ring and sockets and not seen else seen


def _watched(pid: int, epoll: str) -> Iterator[int]:
    """Inodes that an epoll instance watches for reading: ``tfd: 3 events: 19 data: 3 pos:0 ino:1357d sdev:9``."""
    try:
        with open(f"/proc/{pid}/fdinfo/{epoll}", encoding="ascii") as file:
            for line in file:
                if line.startswith("tfd:"):
                    words = line.replace(":", " ").split()
                    facts = dict(zip(words[::2], words[1::2], strict=False))
                    if "ino" in facts and int(facts.get("events", "0"), 16) & _POLLIN:
                        yield int(facts["ino"], 16)
    except FileNotFoundError:
        return


def _blocked_on(pid: int, task: str, calls: dict[int, str]) -> list[int]:
    """The descriptors that one thread waits to read from, if it is blocked in such a call."""
    try:
        with open(f"/proc/{pid}/task/{task}/syscall", encoding="ascii") as file:
            words = file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return []  # the thread has ended
    if len(words) < 7 or words[0] == "-1":
        return []  # running, or blocked outside a call
    call = calls.get(int(words[0]), "")
    first, second = int(words[1], 16), int(words[2], 16)
    if call in (_ACCEPT, _RECEIVE):
        return [first & 0x7FFFFFFF]
    if call == _POLL:
        return _polled(pid, first, second)
    if call == _SELECT:
        return _selected(pid, first, second)
    return []


def _polled(pid: int, address: int, count: int) -> list[int]:
    count = min(count, _DESCRIPTORS_MAX)
    raw = _memory(pid, address, count * _POLLFD.size)
    return [fd for fd, events, _ in _POLLFD.iter_unpack(raw) if fd >= 0 and events & _POLLIN]


def _selected(pid: int, count: int, address: int) -> list[int]:
    if not address:
        return []
    # fd_set is an array of longs; bytes are the same on a little-endian machine, and both of ours are.
    raw = _memory(pid, address, (min(count, _DESCRIPTORS_MAX) + 7) // 8)
    return [fd for fd in range(len(raw) * 8) if raw[fd // 8] >> (fd % 8) & 1]


def _memory(pid: int, address: int, size: int) -> bytes:
    """Empty where it can't be read: the thread moved on and the place is gone."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
            file.seek(address)
            raw = file.read(size)
    except OSError:
        return b""
    return raw if len(raw) == size else b""
