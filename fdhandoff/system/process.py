"""Processes: who one is, whether it lives, how it ended, how to start one with exactly the descriptors that it shall have."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Exit:
    """How a process ended: ``status`` or ``signal``; both ``None`` for a process that is not our child."""

    __slots__ = ("signal", "status")
    status: int | None
    signal: int | None


class Peer:
    """Who is at the other end of a Unix socket. ``pid`` is 0 when invisible (another pid namespace), -1 when unknown."""

    __slots__ = ("gid", "pid", "uid")
    pid: int
    uid: int
    gid: int


class Identity:
    """Whom a child shall become."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: Sequence[int] = ()) -> None: ...


class Process:
    """One process, named so that a recycled pid can't be taken for it: by a pidfd, else by pid and start time."""

    __slots__ = ("_exit", "pid", "pidfd", "started")
    pid: int
    started: int
    pidfd: int

    @classmethod
    def from_pid(cls, pid: int, started: int = 0) -> Process: ...
    @classmethod
    def from_pidfd(cls, pidfd: int) -> Process:
        """Takes ``pidfd``."""
        ...

    def alive(self) -> bool: ...
    def wait(self, deadline: int) -> Exit | None:
        """How it ended; ``None`` when it lives still at ``deadline``. A child is reaped."""
        ...

    def signal(self, number: int) -> bool:
        """False when it has ended already."""
        ...

    def fileno(self) -> int:
        """The pidfd, which is readable once the process has ended. ``Unsupported`` where there are none."""
        ...

    def id(self) -> int:
        """The kernel's number for it (Linux 6.9); 0 where there is none."""
        ...

    def close(self) -> None: ...


def start_time(pid: int) -> int:
    """Clock ticks since boot at which ``pid`` started; 0 when unknown or gone."""
    ...


def peer(sock: socket.socket) -> Peer: ...


def peer_process(sock: socket.socket) -> Process | None:
    """The peer as a process; ``None`` when it has ended already and left no trace, or can't be named from here."""
    ...


def spawn(
    argv: Sequence[str],
    *,
    fds: Mapping[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    blocked_signals: Iterable[int] = (),
    own_group: int = 0,
    death_signal: int = 0,
    identity: Identity | None = None,
) -> Process: ...
