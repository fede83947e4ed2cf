"""What one socket hears: whether it was shut down, and how a listener or UDP socket is made to drop what comes, and to hear
again.
"""

from __future__ import annotations

import select
import socket
import struct

from ..errors import SystemCallError
from .native import ffi

_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO = 26, 27, 55  # asm-generic/socket.h
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73  # in.h, in6.h
_MEMINFO = struct.Struct("=9I")
DROPS = 8  # SK_MEMINFO_DROPS: its place in ``meminfo``


def meminfo(sock: socket.socket) -> tuple[int, ...]:
    """SO_MEMINFO: bytes in the receive queue and their limit first, what was dropped at ``DROPS``."""
    return _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))


def hung_up(sock: socket.socket) -> bool:
    """Whether somebody called ``shutdown()`` on this listener or unconnected socket."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return bool(poller.poll(0))


def be_deaf(sock: socket.socket, hops: int, program: list[tuple[int, int, int, int]]) -> tuple[int, int]:
    """Lets a TCP listener drop what comes with fewer ``hops`` left (what is sent to oneself has all that it had: 64, unless the
    sender said less), a UDP socket what the classic BPF ``program`` returns nothing for. Returns what ``hear`` shall restore.

    A filter would do for both, but there are kernels that let only root have one on a TCP socket.
    """
    if sock.type == socket.SOCK_STREAM:
        before = _least_hops(sock)
        _set_least_hops(sock, (max(hops, before[0]), max(hops, before[1])))
        return before
    compiled = ffi.new("struct fdh_instruction[]", program)
    request = struct.pack("@HP", len(program), int(ffi.cast("uintptr_t", compiled)))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, request)
    except OSError as error:
        raise SystemCallError("setsockopt(SO_ATTACH_FILTER)", error.errno or 0, doing="forming a group") from None
    return 0, 0


def hear(sock: socket.socket, before: tuple[int, int]) -> None:
    """As it was before ``be_deaf``, which returned ``before``."""
    if sock.type == socket.SOCK_STREAM:
        _set_least_hops(sock, before)
    else:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _least_hops(sock: socket.socket) -> tuple[int, int]:
    v6 = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT) if sock.family == socket.AF_INET6 else 0
    return sock.getsockopt(socket.IPPROTO_IP, _IP_MINTTL), v6


def _set_least_hops(sock: socket.socket, hops: tuple[int, int]) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops[0])
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops[1])
    except OSError as error:
        raise SystemCallError("setsockopt(IP_MINTTL)", error.errno or 0, doing="forming a group") from None
