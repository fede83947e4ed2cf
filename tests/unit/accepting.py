"""What the tests of accepting share: clients, a way to run out of descriptors, patience."""

from __future__ import annotations

import os
import resource
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from fdhandoff.accept import CountedSocket, accept_many

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdhandoff.gate import Gate

LONG = 10.0


class Clients:
    """Connections to ``listener`` that nobody has accepted yet."""

    def __init__(self, listener: socket.socket, n: int) -> None:
        self.sockets = [socket.create_connection(listener.getsockname(), LONG) for _ in range(n)]

    def __enter__(self) -> list[socket.socket]:
        return self.sockets

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()


def accept(listener: socket.socket, gate: Gate, **options: Any) -> CountedSocket:
    assert select.select([listener], [], [], LONG)[0]
    (connection,) = accept_many(listener, gate, 1, **options)
    return connection


class FewDescriptors:
    """No further descriptor can be opened in the block."""

    def __enter__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.taken = [os.open(os.devnull, os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, self.limits[1]))
        try:
            while True:
                self.taken.append(os.dup(self.taken[0]))
        except OSError:
            pass

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        for fd in self.taken:
            os.close(fd)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up
        os.sched_yield()
