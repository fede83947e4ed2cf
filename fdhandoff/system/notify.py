"""The service manager's notification socket, both ends: what ``sd_notify(3)`` says, and who hears a child say it.

A message is one datagram of ``KEY=value`` lines to the socket that ``NOTIFY_SOCKET`` names; the kernel tells the
receiver who sent it, and descriptors may travel with it. A ``BARRIER=1`` carries one end of a pipe: the receiver
closes it when it has dealt with everything before, so that a sender may exit without being forgotten.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import time

from ..deadline import FOREVER, after, passed, remaining
from ..errors import DeadlineExceeded, EnvironmentInvalid, SystemCallError, Unsupported
from ..listener import check_name
from .fds import close_all
from .native import FDH_FDS_MAX
from .process import pidfd_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

NOTIFY_SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"

SEND_SECONDS = 5.0
"""The longest wait for room in the manager's queue, where the caller names no deadline."""
MESSAGE_MAX = 64 * 1024

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_INT = struct.calcsize("i")


class Notifier:
    """Speaks to the service manager. Without an address it is false, and every method does nothing.

    Each method sends one message at once. What may go wrong: ``SystemCallError`` (the manager is gone, or its socket
    is not ours to write to) and ``DeadlineExceeded`` (its queue stayed full until ``deadline``, by default for five
    seconds). ``watchdog_interval`` is how often, in seconds, ``watchdog`` must be called, or ``None``.
    """

    __slots__ = ("address", "watchdog_interval")

    def __init__(self, address: str | None, *, watchdog_interval: float | None = None) -> None:
        """``address`` as in ``NOTIFY_SOCKET``: an absolute path, or ``@`` and an abstract name.
        ``EnvironmentInvalid`` for anything else; ``Unsupported`` for a ``vsock:`` address.
        """
        if address is not None:
            _parse_address(address)
        self.address = address
        self.watchdog_interval = watchdog_interval

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], *, unset: bool = True) -> Notifier:
        """The one that the environment names, or a false one. With ``unset`` the variables are removed, so that no
        child speaks in our place. A watchdog meant for another process (``WATCHDOG_PID``) is ignored.
        """
        found = {name: environ.get(name) for name in (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID)}
        if unset:
            for name in found:
                environ.pop(name, None)
        return cls(found[NOTIFY_SOCKET] or None, watchdog_interval=_watchdog(found[WATCHDOG_USEC], found[WATCHDOG_PID]))

    def __bool__(self) -> bool:
        return self.address is not None

    def __repr__(self) -> str:
        return f"Notifier({self.address!r})"

    def send(self, *lines: str, fds: Sequence[int] = (), pid: int | None = None, deadline: int | None = None) -> None:
        """One message of ``KEY=value`` lines. ``fds`` travel with it and stay the caller's. ``pid`` speaks for another
        process, which needs CAP_SYS_ADMIN.
        """
        if self.address is None:
            return
        for line in lines:
            if "\n" in line or "=" not in line:
                raise ValueError(f"{line!r} is not a KEY=value line")
        if not lines or len(fds) > FDH_FDS_MAX:
            raise ValueError(f"a message has one line at least and {FDH_FDS_MAX} descriptors at most")
        ancillary: list[tuple[int, int, bytes]] = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds)))
        if pid is not None:
            if sys.platform != "linux":
                raise Unsupported("speaking for another process needs SCM_CREDENTIALS, which only Linux has")
            credentials = _CREDENTIALS.pack(pid, os.getuid(), os.getgid())
            ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials))
        payload = "\n".join(lines).encode("utf-8", "surrogateescape")
        _send(self.address, payload, ancillary, after(SEND_SECONDS) if deadline is None else deadline)

    def ready(self, status: str = "") -> None:
        """The service serves: at start, and at the end of every reload."""
        self.send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """A reload begins now; ``ready`` ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """The *service* ends. Never said by a generation whose successor serves."""
        self.send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for people, which ``systemctl status`` shows."""
        self.send(f"STATUS={_one_line(text)}")

    def main_pid(self, pid: int, pidfd: int | None = None, *, ready: bool = False, status: str = "") -> None:
        """From here on ``pid`` is the service's main process. Given its ``pidfd`` the message also has the number that
        can't be reused, where the kernel has those (Linux 6.9). With ``ready`` the same message says so.
        """
        lines = [f"MAINPID={pid}"]
        number = pidfd_id(pidfd) if self and pidfd is not None else 0
        if number:
            lines.append(f"MAINPIDFDID={number}")
        if ready:
            lines.append("READY=1")
        self.send(*lines, *_status(status))

    def watchdog(self) -> None:
        """Still alive: at least every ``watchdog_interval`` seconds, better twice as often."""
        self.send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Starting, reloading or stopping takes up to ``seconds`` more, counted from now."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def barrier(self, deadline: int = FOREVER) -> None:
        """Returns when the manager has dealt with everything that was said before. ``DeadlineExceeded`` otherwise."""
        if not self:
            return
        ours, theirs = os.pipe()
        try:
            try:
                self.send("BARRIER=1", fds=[theirs], deadline=deadline)
            finally:
                os.close(theirs)
            poller = select.poll()
            poller.register(ours, 0)  # hang-up is always reported
            while not poller.poll(_milliseconds(deadline)):
                if passed(deadline):
                    raise DeadlineExceeded(
                        f"the service manager at {self.address} did not acknowledge BARRIER=1 in time"
                    )
        finally:
            os.close(ours)

    def fdstore(self, name: str, fds: Sequence[int], *, poll: bool = True) -> None:
        """The manager keeps copies of ``fds`` under ``name`` for the next start, also after a crash. Without ``poll``
        it keeps them although they report an error or hang-up. ``ValueError`` for a name that can't name a listener.
        """
        lines = ["FDSTORE=1", f"FDNAME={check_name(name)}"] + ([] if poll else ["FDPOLL=0"])
        for start in range(0, len(fds), FDH_FDS_MAX):
            self.send(*lines, fds=fds[start : start + FDH_FDS_MAX])

    def fdstore_remove(self, name: str) -> None:
        """The manager closes all that it keeps under ``name``."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={check_name(name)}")


class NotifyMessage:
    """One message: who sent it, as the kernel says (-1 where it does not); ``fields``, of which a repeated key has
    the last value; and the descriptors that came with it, close-on-exec. ``truncated`` when the kernel could not
    deliver all of it (too long, or this process is out of descriptors): its descriptors are gone then.
    """

    __slots__ = ("fds", "fields", "gid", "pid", "truncated", "uid")

    def __init__(
        self, fields: dict[str, str], fds: list[int], *, pid: int, uid: int, gid: int, truncated: bool = False
    ) -> None:
        self.fields = fields
        self.fds = fds
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.truncated = truncated

    def __repr__(self) -> str:
        return f"NotifyMessage({self.fields}, fds={self.fds}, pid={self.pid}, uid={self.uid})"

    def claim(self) -> list[int]:
        """The descriptors, which are the caller's from here on."""
        claimed, self.fds = self.fds, []
        return claimed

    def close(self) -> None:
        """Closes what was not claimed; for a ``BARRIER=1`` that is the acknowledgement. Idempotent."""
        close_all(self.claim())


class NotifyListener:
    """The receiving end, for whoever supervises a child. ``address`` is the value of the child's ``NOTIFY_SOCKET``; the
    descriptor is close-on-exec. ``close`` it, or use it as a context manager.
    """

    __slots__ = ("_path", "_socket", "address")

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Binds at ``path``, which must not exist yet, 0600; or, on Linux, at an abstract name that the kernel
        chooses: any process in the network namespace can then write to it, so judge a message by its ``pid`` and
        ``uid``.
        """
        self._path = None if path is None else os.path.abspath(path)
        if self._path is None and sys.platform != "linux":
            raise Unsupported("a notification socket without a path needs abstract names, which only Linux has")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            if sys.platform == "linux":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                os.fchmod(self._socket.fileno(), 0o600)
            if self._path is None:
                self._socket.bind(b"")
                self.address = "@" + self._socket.getsockname()[1:].decode("ascii")
            else:
                self._socket.bind(self._path)
                self.address = self._path
        except OSError as error:
            self._socket.close()
            raise SystemCallError("bind", error.errno or errno.EINVAL, doing=f"listening at {self._path}") from None

    def fileno(self) -> int:
        """Readable when a message is there."""
        return self._socket.fileno()

    def receive(self) -> Iterator[NotifyMessage]:
        """The messages that are there, without waiting, in order: ``for message in listener.receive(): …``.

        What the loop's body does not claim is closed when it asks for the next message or ends: a barrier is thereby
        acknowledged after everything before it was dealt with, and nothing leaks.
        """
        while True:
            message = self._receive_one()
            if message is None:
                return
            try:
                yield message
            finally:
                message.close()

    def close(self) -> None:
        """Closes the socket and removes its path. Idempotent."""
        if self._socket.fileno() >= 0 and self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
        self._socket.close()

    def __enter__(self) -> NotifyListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive_one(self) -> NotifyMessage | None:
        room = socket.CMSG_SPACE((FDH_FDS_MAX + 1) * _INT) + socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_MAX, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except BlockingIOError:
            return None
        except OSError as error:
            raise SystemCallError("recvmsg", error.errno or 0, doing=f"receiving at {self.address}") from None
        fds: list[int] = []
        pid = uid = gid = -1
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                usable = len(content) - len(content) % _INT
                fds.extend(struct.unpack(f"{usable // _INT}i", content[:usable]))
            elif level == socket.SOL_SOCKET and len(content) == _CREDENTIALS.size:
                pid, uid, gid = _CREDENTIALS.unpack(content)
        truncated = bool(flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC))
        if truncated:
            close_all(fds)
            fds = []
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        fields = {key: value for key, separator, value in (line.partition("=") for line in lines) if separator}
        return NotifyMessage(fields, fds, pid=pid, uid=uid, gid=gid, truncated=truncated)


def _send(address: str, payload: bytes, ancillary: list[tuple[int, int, bytes]], deadline: int) -> None:
    doing = f"notifying the service manager at {address}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            # Connected, the socket can be polled for room in the receiver's queue.
            sock.connect(_parse_address(address))
        except OSError as error:
            raise SystemCallError("connect", error.errno or errno.EINVAL, doing=doing) from None
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        while True:
            try:
                sock.sendmsg([payload], ancillary, getattr(socket, "MSG_NOSIGNAL", 0))
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise SystemCallError("sendmsg", error.errno or 0, doing=doing) from None
                full = error.errno == errno.EAGAIN
            if passed(deadline):
                raise DeadlineExceeded(f"the service manager at {address} took no message in time: its queue is full")
            if full:
                poller.poll(_milliseconds(deadline))
            else:  # out of memory for sockets: there is no event for its end
                time.sleep(0.01)


def _parse_address(address: str) -> bytes:
    if address.startswith("vsock"):
        raise Unsupported(f"{NOTIFY_SOCKET}={address!r}: notification over vsock is not spoken here, use a Unix socket")
    raw = os.fsencode(address)
    if raw[:1] not in (b"/", b"@") or len(raw) < 2 or b"\0" in raw:
        raise EnvironmentInvalid(
            f"{NOTIFY_SOCKET}={address!r} is not an absolute path or an @name: correct it, or unset it"
        )
    if len(raw) > 107:
        raise EnvironmentInvalid(f"{NOTIFY_SOCKET}={address!r} has {len(raw)} bytes, but a socket's address holds 107")
    return b"\0" + raw[1:] if raw[:1] == b"@" else raw


def _watchdog(microseconds: str | None, pid: str | None) -> float | None:
    if not microseconds or (pid and pid != str(os.getpid())):
        return None
    if not (microseconds.isascii() and microseconds.isdigit()) or int(microseconds) == 0:
        raise EnvironmentInvalid(
            f"{WATCHDOG_USEC}={microseconds!r} is not a number of microseconds: correct it, or unset it"
        )
    return int(microseconds) / 1_000_000


def _status(text: str) -> list[str]:
    return [f"STATUS={_one_line(text)}"] if text else []


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _milliseconds(deadline: int) -> int | None:
    left = remaining(deadline)
    return None if left is None else min(int(left * 1000) + 1, 2**31 - 1)
