"""Binding: from ``[NAME=]ADDRESS[?OPTION=VALUE&…]`` to sockets, all of them or none.

======================  ============================================================================================
``HOST:PORT``           TCP on every address that HOST resolves to; ``tcp:HOST:PORT`` is the same
``:PORT``               TCP on all addresses of both families, by one dual-stack socket (IPv4 alone where there is no
                        IPv6)
``[ADDRESS]:PORT``      TCP on one IPv6 address; ``[::]`` is IPv6 alone unless ``?v6only=0``, ``[::ffff:…]`` IPv4
``udp:…``               any of these for UDP
``unix:PATH``           a Unix stream socket; ``unixgram:`` datagrams, ``unixpacket:`` seqpacket; an absolute path alone
                        is ``unix:``
``unix:@NAME``          the same by an abstract name (Linux); ``@NAME`` alone is ``unix:``
======================  ============================================================================================

``NAME=`` in front names the listener. Port 0 lets the kernel choose; several addresses then get the same port.
Options: ``backlog`` (TCP and listening Unix sockets; 2048, the kernel clamps it to ``net.core.somaxconn``),
``v6only`` (0 or 1), ``interface`` (SO_BINDTODEVICE), ``reuseport``, ``freebind`` and ``nodelay`` (0 or 1; ``nodelay``
is 1 for TCP unless one says 0: connections inherit it), ``mode`` (octal), ``owner`` and ``group`` (of a Unix path).
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from ..errors import PathInUse, SystemCallError, Unsupported
from ..listener import check_name
from . import paths
from .access import parse_mode
from .fds import unix_text
from .process import command_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BACKLOG = 2048

_TYPES = {
    "tcp": socket.SOCK_STREAM,
    "udp": socket.SOCK_DGRAM,
    "unix": socket.SOCK_STREAM,
    "unixgram": socket.SOCK_DGRAM,
    "unixpacket": socket.SOCK_SEQPACKET,
}
_INTERNET = ("tcp", "udp")
_OPTIONS = {
    "backlog": ("tcp", "unix", "unixpacket"),
    "freebind": _INTERNET,
    "group": ("unix", "unixgram", "unixpacket"),
    "interface": _INTERNET,
    "mode": ("unix", "unixgram", "unixpacket"),
    "nodelay": ("tcp",),
    "owner": ("unix", "unixgram", "unixpacket"),
    "reuseport": _INTERNET,
    "v6only": _INTERNET,
}
_SAME_PORT_ATTEMPTS = 32
_ABSENT_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class BindSpec:
    """What to bind. ``kind`` is ``tcp``, ``udp``, ``unix``, ``unixgram`` or ``unixpacket``. ``name`` is the
    listener's, or empty. ``host`` is empty for all addresses. ``path`` is a Unix socket's name: a path, or an
    abstract name with its leading NUL. ``v6only`` and ``mode`` are ``None`` where nothing was said. ``str()`` gives
    the address without name and options.
    """

    __slots__ = (
        "backlog",
        "freebind",
        "group",
        "host",
        "interface",
        "kind",
        "mode",
        "name",
        "nodelay",
        "owner",
        "path",
        "port",
        "reuseport",
        "v6only",
    )

    def __init__(
        self,
        kind: str,
        *,
        host: str = "",
        port: int = 0,
        path: bytes = b"",
        name: str = "",
        backlog: int = BACKLOG,
        v6only: bool | None = None,
        interface: str = "",
        reuseport: bool = False,
        freebind: bool = False,
        nodelay: bool = True,
        mode: int | None = None,
        owner: str = "",
        group: str = "",
    ) -> None:
        if kind not in _TYPES:
            raise ValueError(f"{kind!r} is no kind of socket: say one of {', '.join(_TYPES)}")
        self.kind = kind
        self.host = host
        self.port = port
        self.path = path
        self.name = name
        self.backlog = backlog
        self.v6only = v6only
        self.interface = interface
        self.reuseport = reuseport
        self.freebind = freebind
        self.nodelay = nodelay
        self.mode = mode
        self.owner = owner
        self.group = group

    def __str__(self) -> str:
        if self.kind not in _INTERNET:
            return self.kind + unix_text(self.path).removeprefix("unix")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'udp:' if self.kind == 'udp' else ''}{host}:{self.port}"

    def __repr__(self) -> str:
        return f"BindSpec({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


def parse_bind(text: str) -> BindSpec:
    """What ``text`` says, as the table above has it. ``ValueError`` with one sentence when it says nothing that can be
    bound. Nothing is resolved or opened.
    """
    name, address, options = _split(text)
    kind, separator, rest = address.partition(":")
    if address[:1] in ("/", "@"):
        kind, rest = "unix", address
    elif not separator:
        raise ValueError(f"{text!r} has no port and is no path: say HOST:PORT, :PORT, unix:PATH or @NAME")
    elif kind not in _TYPES:
        kind, rest = "tcp", address
    spec = _internet_spec(text, kind, rest) if kind in _INTERNET else _unix_spec(text, kind, rest)
    spec.name = check_name(name) if name else ""
    for option, value in options:
        _set_option(spec, text, option, value)
    return spec


def _split(text: str) -> tuple[str, str, list[tuple[str, str]]]:
    address, _, query = text.partition("?")
    name, separator, rest = address.partition("=")
    if separator and not any(character in name for character in ":/@["):
        if not name:
            raise ValueError(f"{text!r} begins with '=': put the listener's name before it")
        address = rest
    else:
        name = ""
    options = []
    for part in query.split("&") if query else ():
        option, separator, value = part.partition("=")
        options.append((option, value if separator else "1"))
    return name, address, options


def _internet_spec(text: str, kind: str, rest: str) -> BindSpec:
    host, separator, port = rest.rpartition(":")
    if not separator:
        raise ValueError(f"{text!r} has no port: say HOST:PORT or :PORT")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} has the port {port!r}: say a number from 0 to 65535")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{text!r} has {host!r} in brackets, which is no IPv6 address")
    elif ":" in host:
        raise ValueError(f"{text!r} has an IPv6 address without brackets: say [{host}]:{port}")
    return BindSpec(kind, host=host, port=int(port))


def _unix_spec(text: str, kind: str, rest: str) -> BindSpec:
    raw = os.fsencode(rest)
    if raw in (b"", b"@") or b"\0" in raw:
        raise ValueError(f"{text!r} names no Unix socket: say {kind}:PATH or {kind}:@NAME")
    return BindSpec(kind, path=b"\0" + raw[1:] if raw[:1] == b"@" else raw)


def _set_option(spec: BindSpec, text: str, option: str, value: str) -> None:
    if option not in _OPTIONS:
        raise ValueError(f"{text!r} has the option {option!r}: there are {', '.join(_OPTIONS)}")
    if spec.kind not in _OPTIONS[option] or (spec.path[:1] == b"\0" and option in ("mode", "owner", "group")):
        raise ValueError(f"{text!r} has the option {option!r}, which means nothing for that address")
    if option == "backlog":
        if not (value.isascii() and value.isdigit()) or not 0 <= int(value) < 2**31:
            raise ValueError(f"{text!r} has backlog={value!r}: say a number of connections")
        spec.backlog = int(value)
    elif option == "mode":
        try:
            spec.mode = parse_mode(value)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
    elif option in ("group", "interface", "owner"):
        if not value:
            raise ValueError(f"{text!r} has an empty {option}: name one")
        setattr(spec, option, value)
    else:
        if value not in ("0", "1"):
            raise ValueError(f"{text!r} has {option}={value!r}: say 0 or 1")
        setattr(spec, option, value == "1")


# --- binding --------------------------------------------------------------------------------------------------


def bind(spec: BindSpec) -> list[socket.socket]:
    """The sockets of ``spec``: bound, listening where their type listens, close-on-exec, blocking. One for each address
    that the host resolves to, less those of a family that this machine does not have; else exactly one.

    When one fails, all are closed again and no path is left behind: ``SystemCallError`` names the address, the reason
    and, where the kernel tells, who has it (``errno`` is EADDRINUSE for a taken port and a live Unix path alike);
    ``PathError``
    for a Unix path that can't be used; ``Unsupported`` for an option that this system lacks.
    """
    if spec.kind in _INTERNET:
        return _bind_internet(spec)
    return [_bind_abstract(spec) if spec.path[:1] == b"\0" else _bind_unix(spec)]


def _bind_unix(spec: BindSpec) -> socket.socket:
    path = os.fsdecode(spec.path)
    try:
        return paths.bind_path(
            path,
            _TYPES[spec.kind],
            mode=spec.mode,
            owner=spec.owner or None,
            group=spec.group or None,
            backlog=spec.backlog,
        )
    except PathInUse as error:
        raise SystemCallError("bind", errno.EADDRINUSE, doing=str(error)) from None


def _bind_abstract(spec: BindSpec) -> socket.socket:
    if sys.platform != "linux":
        raise Unsupported(f"{spec}: abstract names exist only on Linux, use a path")
    if len(spec.path) > 108:
        raise SystemCallError("bind", errno.ENAMETOOLONG, doing=f"{spec}: an abstract name holds 107 bytes")
    sock = socket.socket(socket.AF_UNIX, _TYPES[spec.kind])
    try:
        sock.bind(spec.path)
        if spec.kind != "unixgram":
            sock.listen(spec.backlog)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            holder = _abstract_holder(spec.path, _TYPES[spec.kind]) if error.errno == errno.EADDRINUSE else ""
            raise SystemCallError("bind", error.errno or 0, doing=f"{spec}{holder}") from None
        raise
    return sock


def _bind_internet(spec: BindSpec) -> list[socket.socket]:
    addresses = _resolve(spec)
    for _ in range(_SAME_PORT_ATTEMPTS - 1):
        try:
            return _bind_all(spec, addresses)
        except SystemCallError as error:
            # Port 0 on several addresses: what is free on the first may be taken on the second. Then another one.
            if spec.port or len(addresses) == 1 or error.errno != errno.EADDRINUSE:
                raise
    return _bind_all(spec, addresses)


def _resolve(spec: BindSpec) -> list[tuple[int, str, int]]:
    """Family, host and scope of each address to bind, without doubles."""
    if not spec.host:
        return [(socket.AF_INET6, "::", 0)]
    # As bytes, where that is enough: for text Python loads the tables of all alphabets, 0.6 MiB.
    host = spec.host.encode() if spec.host.isascii() else spec.host
    try:
        found = socket.getaddrinfo(host, spec.port, 0, _TYPES[spec.kind], 0, socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise SystemCallError(
            "getaddrinfo",
            errno.EADDRNOTAVAIL,
            doing=f"{spec}: the host {spec.host!r} has no address ({error.strerror})",
        ) from None
    addresses: dict[tuple[int, str, int], None] = {}
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            numeric = str(address[0]).partition("%")[0]
            addresses[int(family), numeric, int(address[3]) if len(address) > 3 else 0] = None
    return list(addresses)


def _bind_all(spec: BindSpec, addresses: list[tuple[int, str, int]]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    absent: SystemCallError | None = None
    port = spec.port
    try:
        for family, host, scope in addresses:
            try:
                sockets.append(_bind_one(spec, family, host, port, scope))
            except SystemCallError as error:
                if error.errno not in _ABSENT_FAMILY or family != socket.AF_INET6:
                    raise
                if not spec.host:
                    sockets.append(_bind_one(spec, socket.AF_INET, "0.0.0.0", port, 0))  # noqa: S104 - asked for
                    continue
                absent = error  # localhost resolves to ::1 also where there is no IPv6
            else:
                port = sockets[0].getsockname()[1]
        if absent is not None and not sockets:
            raise absent
        # Only now, so that a failure disturbs no client: nobody could connect before.
        for sock in sockets:
            if spec.kind == "tcp":
                _listen(spec, sock)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_one(spec: BindSpec, family: int, host: str, port: int, scope: int) -> socket.socket:
    text = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    doing = f"udp:{text}" if spec.kind == "udp" else text
    try:
        sock = socket.socket(family, _TYPES[spec.kind])
    except OSError as error:
        raise SystemCallError("socket", error.errno or 0, doing=doing) from None
    try:
        for level, option, value, name in _options(spec, family):
            try:
                sock.setsockopt(level, option, value)
            except OSError as error:
                raise SystemCallError(f"setsockopt({name})", error.errno or 0, doing=doing) from None
        try:
            sock.bind((host, port, 0, scope) if family == socket.AF_INET6 else (host, port))
        except OSError as error:
            why = _why_not(spec, sock, error.errno or 0, host, port)
            raise SystemCallError("bind", error.errno or 0, doing=f"{doing}{why}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(spec: BindSpec, sock: socket.socket) -> None:
    try:
        sock.listen(spec.backlog)
    except OSError as error:  # another listener came between our bind and now
        host, port = sock.getsockname()[:2]
        why = _why_not(spec, sock, error.errno or 0, host, port)
        raise SystemCallError("listen", error.errno or 0, doing=f"{spec}{why}") from None


def _options(spec: BindSpec, family: int) -> Iterator[tuple[int, int, int | bytes, str]]:
    if spec.kind == "tcp":  # on UDP it would let two sockets have the same port at once
        yield socket.SOL_SOCKET, socket.SO_REUSEADDR, 1, "SO_REUSEADDR"
        yield socket.IPPROTO_TCP, socket.TCP_NODELAY, int(spec.nodelay), "TCP_NODELAY"
    if family == socket.AF_INET6:
        mapped = spec.host.lower().startswith("::ffff:")  # an IPv4 address in IPv6's clothes
        v6only = bool(spec.host) and not mapped if spec.v6only is None else spec.v6only
        yield socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only), "IPV6_V6ONLY"
    if spec.reuseport:
        yield socket.SOL_SOCKET, socket.SO_REUSEPORT, 1, "SO_REUSEPORT"
    if sys.platform == "linux":
        if spec.freebind:
            yield socket.IPPROTO_IP, 15, 1, "IP_FREEBIND"  # ip(7); it is for IPv6 sockets too
        if spec.interface:
            yield socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(spec.interface), "SO_BINDTODEVICE"
    elif spec.freebind or spec.interface:
        raise Unsupported(f"{spec}: the options freebind and interface exist only on Linux")


# --- reasons --------------------------------------------------------------------------------------------------


def _why_not(spec: BindSpec, sock: socket.socket, number: int, host: str, port: int) -> str:
    """What to add to the address in the message: the reason in the operator's words, and what to do."""
    if number == errno.EADDRINUSE:
        holder = holder_of_port(spec.kind, sock.family, host, port)
        return f" is taken{holder}, stop that or choose another port"
    if number == errno.EACCES:
        first = _first_unprivileged_port()
        if port < first:
            return (
                f" is a privileged port: run as root, give the program CAP_NET_BIND_SERVICE, "
                f"or choose a port from {first} on"
            )
    if number == errno.EADDRNOTAVAIL:
        return " is no address of this machine (?freebind=1 binds it all the same)"
    return ""


def _first_unprivileged_port() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024


def holder_of_port(kind: str, family: int, host: str, port: int) -> str:
    """`` by pid 7 (nginx)``, as far as the kernel lets us see: the listener (``tcp``) or socket (``udp``) whose address
    collides with this one. Empty where nothing can be seen.
    """
    wanted = socket.inet_pton(family, host)
    if family == socket.AF_INET6 and wanted[:12] == b"\0" * 10 + b"\xff\xff":
        wanted = wanted[12:]
    inodes = {
        inode for address, inode in _bound(kind, port) if not any(address) or not any(wanted) or address == wanted
    }
    return _by_whom(inodes)


def _bound(kind: str, port: int) -> Iterator[tuple[bytes, str]]:
    """Local address and inode of the listeners or UDP sockets on ``port``, from ``/proc/net``."""
    for table in (kind, f"{kind}6"):
        try:
            with open(f"/proc/net/{table}", encoding="ascii") as file:
                next(file, None)
                for line in file:
                    fields = line.split()
                    local, _, number = fields[1].partition(":")
                    if int(number, 16) == port and (kind == "udp" or fields[3] == "0A"):
                        yield _kernel_address(local), fields[9]
        except OSError:
            continue


def _kernel_address(text: str) -> bytes:
    """An address as ``/proc/net`` prints it: 32-bit words, each in the machine's byte order."""
    words = [int(text[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(text), 8)]
    raw = b"".join(words)
    return raw[12:] if raw[:12] == b"\0" * 10 + b"\xff\xff" else raw


def _abstract_holder(path: bytes, type: int) -> str:
    inodes = set()
    try:
        with open("/proc/net/unix", "rb") as file:
            for line in file:
                fields, name = line.split(), line.rstrip(b"\n").partition(b" @")[2]
                if name == path[1:].replace(b"\0", b"@") and int(fields[4], 16) == type:
                    inodes.add(fields[6].decode("ascii"))
    except (OSError, ValueError, IndexError):
        return " is taken"
    return f" is taken{_by_whom(inodes)}, stop that or choose another name"


def _by_whom(inodes: set[str]) -> str:
    """`` by pid 7 (nginx)``: the first process that holds one of these sockets, of those whose descriptors we may
    see.
    """
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in sorted(int(entry) for entry in _entries("/proc") if entry.isdigit()):
        for fd in _entries(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if target in wanted:
                name = command_name(pid)
                return f" by pid {pid}{f' ({name})' if name else ''}"
    return " by a process that we may not see"


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
