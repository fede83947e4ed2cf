"""Takes listeners out of the epoll sets of this very process, for a server whose code accepts by itself and can't be told not
to. Its threads then wait for everything else as before, and the queue is left to whoever shares it."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Entry = tuple[int, int, int]


def take_out(inodes: Collection[int]) -> set[Entry]:
    """The sockets with these inodes (``os.fstat(fd).st_ino``) out of every set: the set, descriptor and events of each, for
    ``put_back``. A thread that was woken before may accept once more."""
    taken = set()
    for epoll, fd, events in _entries(inodes):
        with select.epoll.fromfd(os.dup(epoll)) as poller:
            try:
                poller.unregister(fd)
            except OSError:
                continue  # its owner was quicker, or has closed it
        taken.add((epoll, fd, events))
    return taken


def put_back(taken: Collection[Entry]) -> None:
    """What ``take_out`` took, for an owner that knows each by its descriptor."""
    for epoll, fd, events in taken:
        try:
            with select.epoll.fromfd(os.dup(epoll)) as poller:
                poller.register(fd, events)
        except OSError:
            continue  # a thread that has ended meanwhile had it


def _entries(inodes: Collection[int]) -> Iterator[Entry]:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{name}", encoding="ascii") as file:
                lines = file.readlines()
        except OSError:
            continue  # closed since
        for line in lines:
            words = line.split()
            if words[:1] != ["tfd:"]:
                continue
            fd, events = int(words[1]), int(words[3], 16)
            try:
                if os.fstat(fd).st_ino in inodes:
                    yield int(name), fd, events
            except OSError:
                continue
