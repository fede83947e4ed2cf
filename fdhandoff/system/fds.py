"""What a descriptor is, in words that two processes can compare, and the few flags that we set on one.

**Canonical address text** is what an entry carries on the wire, and what messages print:

=====================  ==========================================================================================
``127.0.0.1:80``       IPv4
``[::1]:80``           IPv6; ``[fe80::1%eth0]:80`` with a scope, by name in the socket's own network namespace, by
                       number where that has no name
``unix:/run/x.sock``   a Unix socket's path, as it was bound (which may be relative)
``unix:@name``         an abstract name, without its leading NUL
``unix:``              a Unix socket without a name
``family:38``          anything else: the family's number
=====================  ==========================================================================================

Bytes of a Unix name are UTF-8 with ``surrogateescape``; control characters and the backslash are written ``\\xNN`` and
``\\\\``, and a *path* that begins with ``@`` begins with ``\\x40``. So every name has one text and every text one name.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

from ..errors import ListenerMismatch
from .native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_HAS_SA_LEN = sys.platform == "darwin" or "bsd" in sys.platform  # sockaddr begins with its length there
_PATH_OFFSET = 2  # of sun_path in sockaddr_un, with and without sa_len
_SIOCGIFNAME = 0x8910
_TYPE_WORDS: dict[int, str] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_SEQPACKET: "seqpacket",
}
_IFREQ_SIZE = 40


class Description:
    """What the kernel says of a socket. ``address`` is canonical text. ``cookie`` names the socket across processes
    and is 0 where there is none; flags that do not apply are false.
    """

    __slots__ = ("address", "connected", "cookie", "family", "listening", "protocol", "type", "v6only")

    def __init__(
        self,
        *,
        family: int,
        type: int,
        protocol: int,
        address: str,
        listening: bool = False,
        connected: bool = False,
        v6only: bool = False,
        cookie: int = 0,
    ) -> None:
        self.family = family
        self.type = type
        self.protocol = protocol
        self.address = address
        self.listening = listening
        self.connected = connected
        self.v6only = v6only
        self.cookie = cookie

    def _key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Description) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Description({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def __str__(self) -> str:
        """``TCP listener 127.0.0.1:80``, for messages."""
        return f"{kind_word(self.family, self.type)} {'listener' if self.listening else 'socket'} {self.address}"


def kind_word(family: int, type: int) -> str:
    """``TCP``, ``UDP``, ``Unix stream``, … for messages."""
    word = _TYPE_WORDS.get(type, f"type {type}")
    if family in (socket.AF_INET, socket.AF_INET6):
        return {"stream": "TCP", "datagram": "UDP"}.get(word, f"internet {word}")
    return f"Unix {word}" if family == socket.AF_UNIX else f"family {family} {word}"


def describe(fd: int) -> Description | None:
    """What socket ``fd`` is; ``None`` when it is open but no socket. ``SystemCallError`` (EBADF) when it isn't open."""
    raw = ffi.new("struct fdh_socket *")
    result = lib.fdh_socket_describe(fd, raw)
    if result == -errno.ENOTSOCK:
        return None
    check("getsockopt", result, f"describing descriptor {fd}")
    return Description(
        family=raw.family,
        type=raw.type,
        protocol=raw.protocol,
        address=address_text(raw.family, bytes(ffi.buffer(raw.address, raw.address_size)), fd),
        listening=bool(raw.listening),
        connected=bool(raw.connected),
        v6only=bool(raw.v6only),
        cookie=raw.cookie,
    )


def listener_queue(fd: int) -> tuple[int, int] | None:
    """Connections waiting in a listening TCP socket's queue, and the backlog in force; ``None`` for other sockets."""
    waiting, backlog = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    result = lib.fdh_listener_queue(fd, waiting, backlog)
    if result in (-errno.EOPNOTSUPP, -errno.ENOSYS):
        return None
    check("getsockopt(TCP_INFO)", result, f"reading the queue of descriptor {fd}")
    return waiting[0], backlog[0]


def socket_from_fd(fd: int, description: Description | None = None) -> socket.socket:
    """A ``socket.socket`` that owns ``fd``, built with the family, type and protocol of ``description`` (asked from
    the kernel when it is not given), never guessed. ``fd`` stays the caller's when this raises: ``ListenerMismatch``
    when it is no socket, ``SystemCallError`` when it is not open.
    """
    if description is None:
        description = describe(fd)
        if description is None:
            raise ListenerMismatch(f"descriptor {fd} is not a socket", expected="a socket", got="something else")
    return socket.socket(description.family, description.type, description.protocol, fileno=fd)


# --- flags --------------------------------------------------------------------------------------------------


def close_all(fds: Iterable[int]) -> None:
    """Closes each descriptor; the negative ones are skipped. No error of one keeps the others open."""
    for fd in fds:
        lib.fdh_close(fd)


def set_cloexec(fds: Iterable[int]) -> None:
    """No program started from here on inherits these descriptors."""
    for fd in fds:
        os.set_inheritable(fd, False)


def set_inheritable(fds: Iterable[int]) -> None:
    """Programs started from here on inherit these descriptors."""
    for fd in fds:
        os.set_inheritable(fd, True)


def set_nonblocking(fds: Iterable[int]) -> None:
    """Sets O_NONBLOCK, which belongs to the open file: every process that shares it sees the change."""
    for fd in fds:
        os.set_blocking(fd, False)


def set_blocking(fds: Iterable[int]) -> None:
    """Clears O_NONBLOCK, for every process that shares the open file."""
    for fd in fds:
        os.set_blocking(fd, True)


def open_standard() -> None:
    """Opens ``/dev/null`` in place of those of descriptors 0, 1 and 2 that are closed: else the next thing that is opened, a
    listener perhaps, would be taken for standard input, output or error.
    """
    for fd in (0, 1, 2):
        if not is_open(fd):
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(opened, True)


def is_open(fd: int) -> bool:
    """Whether ``fd`` is an open descriptor of this process."""
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        raise
    return True


# --- addresses ----------------------------------------------------------------------------------------------


def address_text(family: int, raw: bytes, fd: int = -1) -> str:
    """Canonical text of a ``sockaddr`` as the kernel filled it (``raw``, without padding). ``fd`` is the socket that it
    belongs to, whose network namespace knows the interface's name; without it this process's own is asked.
    """
    if family == socket.AF_INET and len(raw) >= 8:
        return f"{socket.inet_ntop(socket.AF_INET, raw[4:8])}:{struct.unpack_from('!H', raw, 2)[0]}"
    if family == socket.AF_INET6 and len(raw) >= 24:
        host = socket.inet_ntop(socket.AF_INET6, raw[8:24])
        scope = struct.unpack_from("=I", raw, 24)[0] if len(raw) >= 28 else 0
        if scope:
            host = f"{host}%{_interface_name(scope, fd)}"
        return f"[{host}]:{struct.unpack_from('!H', raw, 2)[0]}"
    if family == socket.AF_UNIX:
        name = raw[_PATH_OFFSET:]
        if _HAS_SA_LEN and raw:
            name = raw[_PATH_OFFSET : raw[0]]
        return unix_text(name if name[:1] == b"\0" and sys.platform == "linux" else name.partition(b"\0")[0])
    return f"family:{family}"


def unix_text(name: bytes) -> str:
    """Canonical text of a Unix socket's name: a path, an abstract name with its leading NUL, or nothing."""
    prefix, rest = ("unix:@", name[1:]) if name[:1] == b"\0" else ("unix:", name)
    text = "".join(_escaped(character) for character in rest.decode("utf-8", "surrogateescape"))
    if prefix == "unix:" and text[:1] == "@":
        text = f"\\x40{text[1:]}"
    return prefix + text


def unix_name(text: str) -> bytes | None:
    """The bytes that ``unix_text`` made ``text`` of; ``None`` when it is not a Unix socket's address. ``ValueError``
    for an escape that ``unix_text`` does not make.
    """
    if not text.startswith("unix:"):
        return None
    text = text[5:]
    abstract = text[:1] == "@"
    first, *parts = text[abstract:].split("\\")
    name = first.encode("utf-8", "surrogateescape")
    following = iter(parts)
    for part in following:
        plain = part[3:]
        if part[:1] == "x" and len(part) >= 3:
            name += bytes.fromhex(part[1:3])
        else:  # two backslashes: one, and what follows them is plain
            rest = next(following, None)
            if part or rest is None:
                raise ValueError(f"{text!r} is not the canonical text of a Unix socket's name")
            plain = "\\" + rest
        name += plain.encode("utf-8", "surrogateescape")
    return b"\0" + name if abstract else name


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return f"\\x{ord(character):02x}" if ord(character) < 32 or ord(character) == 127 else character


def _interface_name(index: int, fd: int) -> str:
    if fd >= 0 and sys.platform == "linux":
        import fcntl

        try:  # netdevice(7): answered in the network namespace of the socket, not of the caller
            answer = fcntl.ioctl(fd, _SIOCGIFNAME, struct.pack("=16si20x", b"", index).ljust(_IFREQ_SIZE, b"\0"))
        except OSError:
            return str(index)
        return answer[:16].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)
