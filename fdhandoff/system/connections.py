"""Which connections there are, and whose: asked from the kernel, so it is right for servers that know nothing of us.

``sock_diag(7)`` lists the sockets of a port with state, user and inode; ``/proc/PID/fd`` says which process has which inode.
A connection is **being served** in these states:

===================  ================================================================================================
ESTABLISHED          data may go both ways
CLOSE_WAIT           the client has said its last word and may wait for ours
FIN_WAIT1, CLOSING,  the server has said its last word. While it keeps the descriptor it still reads (a lingering close),
FIN_WAIT2, LAST_ACK  and its death would reset the connection. Without a descriptor the kernel delivers the rest alone
===================  ================================================================================================

TIME_WAIT is the kernel's memory of a connection that is over. SYN_RECV is one whose client has not yet answered: no
listener can be told from it. An inode of 0 means that no process has the socket: it waits in a queue to be accepted, or it
was closed and the kernel delivers the rest.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

from ..errors import HandoffError, SystemCallError, Unsupported
from .processes import not_permitted, vanished

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

ESTABLISHED = 1
SYN_RECV = 3
FIN_WAIT1 = 4
FIN_WAIT2 = 5
CLOSE = 7
CLOSE_WAIT = 8
LAST_ACK = 9
LISTEN = 10
CLOSING = 11

SERVED = (ESTABLISHED, CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _DUMP = 0x1, 0x301  # NLM_F_REQUEST, with NLM_F_ROOT | NLM_F_MATCH
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_INET_REQUEST = struct.Struct("=BBBxI48s")  # inet_diag_req_v2: family, protocol, extensions, states, id
_ROW = struct.Struct("=BB2x36sIII4xIIII")  # inet_diag_msg: family, state, ports and addresses, interface, cookie, …
_INODE = 68  # its place in inet_diag_msg
_INODE_ONLY = struct.Struct("=I")
_UNIX_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req: family, protocol, pad, states, inode, show, cookie
_UNIX_ROW = struct.Struct("=BBBxIII")  # unix_diag_msg: family, type, state, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")
_SHOW_NAME, _SHOW_PEER, _SHOW_QUEUE = 0x1, 0x4, 0x10
_UNIX_NAME, _UNIX_PEER, _UNIX_QUEUE = 0, 2, 4
_BUFFER = 1 << 16  # the kernel writes 32 KiB at once, if there is room


class Seen:
    """One socket as the kernel lists it. ``inode`` is that of its descriptors (``os.fstat(fd).st_ino``), 0 where no
    process has one; ``cookie`` is its SO_COOKIE. ``unread`` and ``unsent`` are bytes in its two queues; for a listener,
    connections waiting and the backlog.
    """

    __slots__ = ("_ends", "cookie", "family", "inode", "interface", "state", "uid", "unread", "unsent")

    def __init__(
        self,
        *,
        family: int,
        state: int,
        ends: bytes = bytes(36),
        inode: int = 0,
        uid: int = 0,
        cookie: int = 0,
        interface: int = 0,
        unread: int = 0,
        unsent: int = 0,
    ) -> None:
        self.family = family
        self.state = state
        self._ends = ends
        self.inode = inode
        self.uid = uid
        self.cookie = cookie
        self.interface = interface
        self.unread = unread
        self.unsent = unsent

    @property
    def local(self) -> tuple[str, int]:
        """Our address and port."""
        return _host(self.family, self._ends[4:20]), int.from_bytes(self._ends[0:2], "big")

    @property
    def remote(self) -> tuple[str, int]:
        """The client's address and port."""
        return _host(self.family, self._ends[20:36]), int.from_bytes(self._ends[2:4], "big")

    def __repr__(self) -> str:
        return (
            f"Seen(local={self.local}, remote={self.remote}, state={self.state}, inode={self.inode}, uid={self.uid}, "
            f"cookie={self.cookie})"
        )


def connections(port: int, family: int = 0, states: Iterable[int] = SERVED) -> list[Seen]:
    """The TCP sockets whose own port is ``port``, in one of ``states``. ``family`` is the listener's: AF_INET, AF_INET6
    (IPv4 clients of a dual-stack listener are among these, as ``::ffff:…``), or 0 for both.
    """
    return [_seen(buffer, at) for buffer, at in _inet(port, family, socket.IPPROTO_TCP, states)]


def other_end(sock: socket.socket) -> Seen | None:
    """Of a TCP connection to this very host: its other socket, which has no inode as long as it waits to be accepted. ``None``
    when there is none any more, or only one that is bound to an interface. The kernel looks this one up: that takes
    microseconds where a list takes milliseconds, because a list is a walk through the table of all connections.
    """
    mine, theirs = sock.getsockname(), sock.getpeername()
    hosts = [socket.inet_pton(sock.family, end[0].partition("%")[0]).ljust(16, b"\0") for end in (theirs, mine)]
    ports = [end[1].to_bytes(2, "big") for end in (theirs, mine)]
    anybody = bytes(4) + b"\xff" * 8  # on any interface, with any cookie
    asked = b"".join((*ports, *hosts, anybody))
    try:
        rows = list(_ask(_INET_REQUEST.pack(sock.family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF, asked), _REQUEST))
    except SystemCallError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    found = [_seen(buffer, at) for buffer, at, _ in rows]
    return found[0] if found and found[0].state != LISTEN else None


def established(port: int, family: int = 0) -> list[Seen]:
    """The connections of ``port`` that are still being served, by a process or from a queue to one. What the kernel
    delivers alone counts while there is data that the client has not got.
    """
    alone = (FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK)
    return [
        seen
        for seen in connections(port, family)
        if seen.inode or seen.state not in alone or (seen.unsent > 1 and seen.state != FIN_WAIT2)  # a FIN counts one
    ]


def connections_of(port: int, pids: Collection[int], family: int = 0) -> list[Seen]:
    """The connections of ``port`` that these processes have. Name all of a generation's (``processes.members``): its
    children hold connections as well.

    What waits in a queue belongs to nobody here. When a generation's queue was empty before this is asked, then all that
    it was ever given is listed; none listed is therefore the end, if no connection can reach it any more.
    ``SystemCallError`` (EACCES) when we may not look at a process's descriptors.
    """
    rows = [seen for seen in connections(port, family) if seen.inode]
    if not rows:
        return []
    held = inodes_of(pids)
    found = [seen for seen in rows if seen.inode in held]
    if not found:
        # A descriptor that moved to a lower number during the walk was not met.
        held = inodes_of(pids)
        found = [seen for seen in rows if seen.inode in held]
    return found


def clients_of(listeners: Iterable[socket.socket], pids: Collection[int]) -> list[str]:
    """The addresses of the TCP clients that these processes have from these listeners, for people; none where that can't be
    known."""
    found: dict[str, None] = {}
    try:
        for one in listeners:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                for seen in connections_of(one.getsockname()[1], pids, one.family):
                    host, port = seen.remote
                    found[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"] = None
    except (HandoffError, OSError):
        return []
    return list(found)


def count(port: int, pids: Collection[int], family: int = 0) -> int:
    """How many ``connections_of`` would list, without making the list."""
    get = _INODE_ONLY.unpack_from
    inodes = {get(buffer, at + _INODE)[0] for buffer, at in _inet(port, family, socket.IPPROTO_TCP, SERVED)}
    inodes.discard(0)
    if not inodes:
        return 0
    return len(inodes & inodes_of(pids)) or len(inodes & inodes_of(pids))  # twice, as above


def remaining(port: int, inodes: Collection[int], family: int = 0) -> int:
    """How many of the connections ``inodes`` (from ``connections_of``) are still being served by somebody: four times as
    fast as ``count``, for a generation that is given no new ones. One that was handed over to another process remains.
    """
    get = _INODE_ONLY.unpack_from
    rows = _inet(port, family, socket.IPPROTO_TCP, SERVED)
    return len({get(buffer, at + _INODE)[0] for buffer, at in rows}.intersection(inodes))


def half_open(port: int, family: int = 0) -> frozenset[int]:
    """Cookies of the connections of ``port`` whose client has not yet answered (SYN_RECV). They are promised to a
    listener, and nobody can say which; those that were there at a switch are gone when the two sets share nothing.
    """
    return frozenset(seen.cookie for seen in connections(port, family, (SYN_RECV,)))


def bound(port: int, type: int, family: int = 0) -> list[Seen]:
    """The listeners (SOCK_STREAM) or unconnected UDP sockets (SOCK_DGRAM) of ``port`` in our network namespace."""
    if type == socket.SOCK_STREAM:
        return connections(port, family, (LISTEN,))
    return [_seen(buffer, at) for buffer, at in _inet(port, family, socket.IPPROTO_UDP, (CLOSE,))]


def listen(pids: Collection[int]) -> bool:
    """Whether one of these processes has a listening TCP or Unix socket of our network namespace open."""
    inodes = inodes_of(pids)
    if not inodes:
        return False
    get = _INODE_ONLY.unpack_from
    if any(get(buffer, at + _INODE)[0] in inodes for buffer, at in _inet(0, 0, socket.IPPROTO_TCP, (LISTEN,))):
        return True
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _mask((LISTEN,)), 0, 0, 0, 0)
    return any(_seen_unix(buffer, at, end).inode in inodes for buffer, at, end in _ask(request, _DUMP))


def inodes_of(pids: Iterable[int]) -> set[int]:
    """Inodes of the sockets that these processes have open. What closes during the walk may be in it or not; processes
    that have ended have none.

    ``SystemCallError`` (EACCES) says what would allow to look at a process's descriptors.
    """
    inodes: set[int] = set()
    for pid in pids:
        try:
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if vanished(pid, error):
                continue
            raise not_permitted("open", error, f"looking at the descriptors of process {pid}") from None
        try:
            _collect(directory, inodes)
        except OSError as error:
            if not vanished(pid, error):
                raise not_permitted("readlink", error, f"looking at the descriptors of process {pid}") from None
        finally:
            os.close(directory)
    return inodes


def _collect(directory: int, inodes: set[int]) -> None:
    readlink = os.readlink
    for entry in os.listdir(directory):
        try:
            target = readlink(entry, dir_fd=directory)
        except FileNotFoundError:
            continue  # closed since
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))


# --- Unix sockets ---------------------------------------------------------------------------------------------


class SeenUnix:
    """One Unix socket as the kernel lists it. ``name`` is that of the listener for what it accepted, too: a path, or an
    abstract name with its leading NUL. ``peer`` is the other end's inode, 0 where there is none. ``waiting`` is what its
    queue holds: connections for a listener (``backlog`` is its limit), bytes otherwise.
    """

    __slots__ = ("backlog", "inode", "name", "peer", "state", "type", "waiting")

    def __init__(
        self, *, type: int, state: int, inode: int, name: bytes = b"", peer: int = 0, waiting: int = 0, backlog: int = 0
    ) -> None:
        self.type = type
        self.state = state
        self.inode = inode
        self.name = name
        self.peer = peer
        self.waiting = waiting
        self.backlog = backlog

    def __repr__(self) -> str:
        return f"SeenUnix({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


def unix_queue(sock: socket.socket) -> tuple[int, int]:
    """Connections waiting in a listening Unix socket's queue, and its backlog."""
    inode = os.fstat(sock.fileno()).st_ino
    anybody = 0xFFFFFFFF
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _SHOW_QUEUE, anybody, anybody)
    for buffer, at, end in _ask(request, _REQUEST):
        seen = _seen_unix(buffer, at, end)
        return seen.waiting, seen.backlog
    return 0, 0


def unix_accepted(sock: socket.socket) -> bool:
    """Whether a process has the other end of ``sock``, which is connected: then it is in no queue any more."""
    inode = os.fstat(sock.fileno()).st_ino
    anybody = 0xFFFFFFFF
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _SHOW_PEER, anybody, anybody)
    return any(_seen_unix(buffer, at, end).peer for buffer, at, end in _ask(request, _REQUEST))


def unix_connections(name: bytes, states: Iterable[int] = (ESTABLISHED,)) -> list[SeenUnix]:
    """The Unix sockets of this name: of what a listener accepted, with ``(LISTEN,)`` the listener itself. One that waits to
    be accepted has no name, and an inode of 0 is not told from others: ask ``unix_queue``.
    """
    show = _SHOW_NAME | _SHOW_PEER | _SHOW_QUEUE
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _mask(states), 0, show, 0, 0)
    rows = (_seen_unix(buffer, at, end) for buffer, at, end in _ask(request, _DUMP))
    return [seen for seen in rows if seen.name == name]


def unix_connections_of(name: bytes, pids: Collection[int]) -> list[SeenUnix]:
    """The connections to the listener called ``name`` that these processes have, as ``connections_of`` for TCP."""
    rows = unix_connections(name)
    if not rows:
        return []
    held = inodes_of(pids)
    found = [seen for seen in rows if seen.inode in held]
    if not found:
        held = inodes_of(pids)
        found = [seen for seen in rows if seen.inode in held]
    return found


def _seen_unix(buffer: bytearray, at: int, end: int) -> SeenUnix:
    _, type, state, inode, _, _ = _UNIX_ROW.unpack_from(buffer, at)
    seen = SeenUnix(type=type, state=state, inode=inode)
    at += _UNIX_ROW.size
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(buffer, at)
        if length < _ATTRIBUTE.size:
            break
        value = bytes(buffer[at + _ATTRIBUTE.size : at + length])
        if kind == _UNIX_NAME:
            seen.name = value if value[:1] == b"\0" else value.rstrip(b"\0")
        elif kind == _UNIX_PEER:
            seen.peer = struct.unpack("=I", value)[0]
        elif kind == _UNIX_QUEUE:
            seen.waiting, seen.backlog = struct.unpack("=II", value)
        at += (length + 3) & ~3
    return seen


# --- sock_diag ------------------------------------------------------------------------------------------------


def _inet(port: int, family: int, protocol: int, states: Iterable[int]) -> Iterator[tuple[bytearray, int]]:
    """Where in the buffer each ``inet_diag_msg`` begins. The kernel itself leaves out what has another port or state: a
    port in the request's id is compared in every dump, so no filter program is needed.
    """
    wanted = port.to_bytes(2, "big") + bytes(46)
    mask = _mask(states)
    for each in (family,) if family else (socket.AF_INET, socket.AF_INET6):
        try:
            for buffer, at, _ in _ask(_INET_REQUEST.pack(each, protocol, 0, mask, wanted), _DUMP):
                yield buffer, at
        except Unsupported:
            if family or each == socket.AF_INET:
                raise  # a kernel without IPv6 has none of its sockets


def _ask(request: bytes, flags: int) -> Iterator[tuple[bytearray, int, int]]:
    """Sends a request; for each row of the answer the buffer, and where in it the row begins and ends. The buffer is used
    again for the rows that follow.
    """
    if sys.platform != "linux":
        raise Unsupported("this system has no sock_diag, by which Linux lists its sockets")
    doing = "listing sockets"
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            raise Unsupported("this kernel has no sock_diag: it lacks the module netlink_diag or sock_diag") from None
        raise SystemCallError("socket(NETLINK_SOCK_DIAG)", error.errno or 0, doing=doing) from None
    with netlink:
        try:
            netlink.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request)
            yield from _answer(netlink, flags)
        except OSError as error:
            if isinstance(error, SystemCallError):
                raise
            raise SystemCallError("recv(NETLINK_SOCK_DIAG)", error.errno or 0, doing=doing) from None


def _answer(netlink: socket.socket, flags: int) -> Iterator[tuple[bytearray, int, int]]:
    buffer = bytearray(_BUFFER)
    header = _HEADER.unpack_from
    while True:
        size = netlink.recv_into(buffer)
        at = 0
        while at + _HEADER.size <= size:
            length, kind, _, _, _ = header(buffer, at)
            if kind == _SOCK_DIAG_BY_FAMILY:
                yield buffer, at + 16, at + length
            elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
                number = -struct.unpack_from("=i", buffer, at + 16)[0] if length >= 20 else 0
                if number == errno.ENOENT and flags == _DUMP:
                    raise Unsupported("this kernel can't list these sockets: it lacks inet_diag, tcp_diag or unix_diag")
                if number:
                    raise SystemCallError("sock_diag", number, doing="listing sockets")
                return
            at += (length + 3) & ~3
        if flags == _REQUEST:
            return


def _seen(buffer: bytearray, at: int) -> Seen:
    family, state, ends, interface, low, high, unread, unsent, uid, inode = _ROW.unpack_from(buffer, at)
    seen = Seen.__new__(Seen)  # 10,000 of them: no keyword arguments
    seen.family = family
    seen.state = state
    seen._ends = ends
    seen.interface = interface
    seen.cookie = high << 32 | low
    seen.unread = unread
    seen.unsent = unsent
    seen.uid = uid
    seen.inode = inode
    return seen


def _mask(states: Iterable[int]) -> int:
    return sum(1 << state for state in set(states))


def _host(family: int, raw: bytes) -> str:
    return socket.inet_ntop(family, raw[:4] if family == socket.AF_INET else raw)
