"""Binding: from ``[NAME=]ADDRESS`` to sockets that are ready to be listened on, all of them or none."""

from __future__ import annotations

import socket

BACKLOG = 2048


class BindSpec:
    """What to bind. ``kind`` is ``tcp``, ``udp``, ``unix``, ``unixgram`` or ``unixpacket``; ``name`` is the listener's name or
    ``""``; ``host`` is ``""`` for all addresses; ``path`` is a Unix socket's name (bytes, an abstract one with its leading NUL).
    """

    __slots__ = (
        "backlog", "freebind", "group", "host", "interface", "kind", "mode", "name", "nodelay", "path", "port",
        "reuseport", "v6only",
    )  # fmt: skip

    def __str__(self) -> str: ...


def parse_bind(text: str) -> BindSpec:
    """``ValueError`` with what is wrong."""
    ...


def bind(spec: BindSpec) -> list[socket.socket]:
    """Every socket of ``spec``, bound, listening where its type listens, close-on-exec and blocking."""
    ...
