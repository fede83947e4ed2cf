"""Which socket of a group has which index: found out by packets to ourselves, since the kernel does not tell."""

from __future__ import annotations

import select
import socket

from .. import deadline
from ..errors import ListenerError, SystemCallError
from .hearing import DROPS, meminfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_ALL = 0xFFFFFFFF
_PATIENCE = 1.0  # seconds that one packet to ourselves may take
_ATTEMPTS = 5
HOPS = 1  # that a packet of ours has left


class Prober:
    """Sends one packet after another from one source to a group's address, each with the fewest hops left that it needs."""

    __slots__ = ("_family", "_sock", "_target", "_type", "source")

    def __init__(self, address: tuple[Any, ...], family: int, type: int) -> None:
        host = str(address[0])
        if host in ("0.0.0.0", "::"):  # noqa: S104 - what a listener on all addresses hears, too
            host = "127.0.0.1" if family == socket.AF_INET else "::1"
        if host.startswith("::ffff:"):  # what goes there is IPv4
            family, host, address = socket.AF_INET, host.removeprefix("::ffff:"), address[:2]
        self._family, self._type = family, type
        self._target = (host, *address[1:])
        self._sock = self._socket(0)
        self.source = (host, int(self._sock.getsockname()[1]))

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def filter(self) -> list[tuple[int, int, int, int]]:
        """Drops what comes from ``source``: the port at the start of the TCP or UDP header, and the last 32 bits of the
        address, whose place follows from the version of the packet.
        """
        family, raw = packed(self.source[0])
        return [
            (0x28, 0, 0, 0),  # load the source port
            (0x15, 0, 3, self.source[1]),
            (0x20, 0, 0, 0xFFF00000 + (12 if family == socket.AF_INET else 20)),  # SKF_NET_OFF
            (0x15, 0, 1, int.from_bytes(raw[-4:], "big")),
            (0x06, 0, 0, 0),
            (0x06, 0, 0, _ALL),
        ]

    def who(self, members: Iterable[socket.socket]) -> socket.socket:
        """The member that dropped the next packet."""
        candidates = list(members)
        for _ in range(_ATTEMPTS):
            before = [meminfo(sock)[DROPS] for sock in candidates]
            self._send()
            moment = deadline.after(_PATIENCE)
            while True:
                # A full queue drops as well: ask again until one alone has dropped every time.
                risen = [sock for sock, drops in zip(candidates, before, strict=True) if meminfo(sock)[DROPS] != drops]
                if risen or deadline.passed(moment) or self._arrived():
                    break
            if not risen:
                break
            if len(risen) == 1:
                return risen[0]
            candidates = risen
        raise ListenerError(f"{self._target[0]} port {self._target[1]}: can't find out which queue is which from here")

    def _socket(self, port: int) -> socket.socket:
        sock = socket.socket(self._family, self._type)
        try:
            sock.setblocking(False)
            if self._type == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if self._family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOPS)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOPS)
            sock.bind((self._target[0], port, *self._target[2:]))
        except OSError as error:
            sock.close()
            raise SystemCallError("bind", error.errno or 0, doing="asking which queue is which") from None
        return sock

    def _send(self) -> None:
        if self._type == socket.SOCK_DGRAM:
            self._sock.sendto(b"", self._target)
            return
        self._sock.close()  # its connection never came to be, so that its port is free
        self._sock = self._socket(self.source[1])
        self._sock.connect_ex(self._target)

    def _arrived(self) -> bool:
        """Whether somebody took the connection who is none of the members, or nobody did."""
        if self._type == socket.SOCK_DGRAM:
            return False
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        return bool(poller.poll(1))


def packed(host: str) -> tuple[int, bytes]:
    """Family and bytes of an address as its packets carry them: an IPv4-mapped one is IPv4."""
    if ":" not in host:
        return socket.AF_INET, socket.inet_pton(socket.AF_INET, host)
    raw = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if raw[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.AF_INET, raw[12:]
    return socket.AF_INET6, raw
