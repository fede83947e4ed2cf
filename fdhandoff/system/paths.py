"""A Unix socket's path: where ours lives, who may bind it, and when it may be removed.

Everything that changes what a path points to happens under a lock file beside it, ``PATH.lock``, so that of two
newcomers who both find a dead owner's socket one removes and binds, and the other then finds the winner alive. The
lock file is removed by its holder; whoever locked a file that is no longer at its path starts again, so removing it
opens no gap.

A socket is recognised by its inode. The kernel tells which one a socket is bound to (``sock_diag(7)``), also after a
rename, and does not give the number to another file while the socket is open. So the path is removed only while it is
still this very socket's, whoever re-bound it meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import time

from ..deadline import after, passed, remaining
from ..errors import DeadlineExceeded, HandoffError, PathError, PathInUse, SystemCallError
from .access import parse_group, parse_user
from .process import command_name, peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Path = str | os.PathLike[str]

CONTROL_NAME = "handoff.sock"
SYSTEM_DIRECTORY = "/run/fdhandoff"
STATE_DIRECTORY = "/var/lib/fdhandoff"
PATH_MAX = 107 if sys.platform == "linux" else 103
"""Bytes in a Unix socket's path: what ``sun_path`` holds, less the final NUL."""
BACKLOG = 128
LOCK_SECONDS = 5.0
"""The longest wait for the lock file. It is held for the time of a bind; only a stopped process holds it longer."""

ABSENT = "absent"
STALE = "stale"

_LOCK_POLL = 0.002
_CONNECT_SLICE = 3600.0


# --- where ours lives -----------------------------------------------------------------------------------------


def default_path(name: str, environ: Mapping[str, str], *, create: bool = True) -> str:
    """``NAME/handoff.sock`` below the first of these that there is: ``$FDHANDOFF_RUNTIME_DIR``; the first directory in
    ``$RUNTIME_DIRECTORY`` (systemd's); for root ``/run/fdhandoff``; ``$XDG_RUNTIME_DIR/fdhandoff``.

    With ``create`` our own directories are made, 0700, and checked. ``PathError`` when there is no such place, or it
    can't be trusted; ``ValueError`` when ``name`` can't be a directory's.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} can't name a service: it becomes a directory")
    base, ours, named = _runtime_directory(name, environ)
    directory = os.path.join(base, name)
    path = os.path.join(directory, CONTROL_NAME)
    _check_length(path)
    if create:
        if ours:
            _make_directory(base)
        check_directory(base, explicit=named)
        _make_directory(directory)
        check_directory(directory)
    return path


def state_directory(name: str, environ: Mapping[str, str]) -> str:
    """For what outlives a service: the first directory in ``$STATE_DIRECTORY`` (systemd's), else ``NAME`` below
    ``/var/lib/fdhandoff`` for root, ``$XDG_STATE_HOME/fdhandoff`` or ``~/.local/state/fdhandoff`` for others."""
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return given
    if os.geteuid() == 0:
        return os.path.join(STATE_DIRECTORY, name)
    base = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "fdhandoff", name)


def check_directory(directory: Path, *, explicit: bool = False) -> None:
    """``PathError`` unless ``directory`` can hold a handoff path: nobody else can replace what is in it.

    One that the user named (``explicit``) is refused only where everybody can write without the sticky bit. Else it
    must also be ours or root's, and its group must not write in it either.
    """
    directory = os.fspath(directory) or "."
    try:
        found = os.stat(directory)
    except OSError as error:
        raise _unusable(directory, error, missing=directory) from None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        raise PathError(f"{directory} is {_kind(found)}, not a directory: choose another place", path=directory)
    sticky = bool(mode & stat.S_ISVTX)
    if mode & stat.S_IWOTH and not sticky:
        raise PathError(
            f"{directory} is writable by everybody (mode {mode:04o}), who could put another socket in our place: "
            f"chmod o-w {directory}, or choose another directory",
            path=directory,
        )
    if explicit:
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise PathError(
            f"{directory} belongs to uid {found.st_uid}, not to us (uid {os.geteuid()}) or root: choose another directory",
            path=directory,
        )
    if mode & stat.S_IWGRP and not sticky:
        raise PathError(
            f"{directory} is writable by its group (mode {mode:04o}): chmod g-w {directory}, or name the path explicitly",
            path=directory,
        )


def _runtime_directory(name: str, environ: Mapping[str, str]) -> tuple[str, bool, bool]:
    """The directory that ``NAME`` goes into, whether we may make it, and whether the user named it."""
    variable, directory, ours = "FDHANDOFF_RUNTIME_DIR", environ.get("FDHANDOFF_RUNTIME_DIR", ""), True
    if not directory:
        variable, directory, ours = "RUNTIME_DIRECTORY", environ.get("RUNTIME_DIRECTORY", "").partition(":")[0], False
    if not directory and os.geteuid() == 0:
        return SYSTEM_DIRECTORY, True, False
    if not directory and environ.get("XDG_RUNTIME_DIR"):
        variable, directory, ours = "XDG_RUNTIME_DIR", os.path.join(environ["XDG_RUNTIME_DIR"], "fdhandoff"), True
    if not directory:
        raise PathError(
            f"there is no runtime directory for {name!r}: set FDHANDOFF_RUNTIME_DIR, or name the path explicitly",
            path=name,
        )
    if not os.path.isabs(directory):
        raise PathError(f"{variable}={environ[variable]!r} is not an absolute path: correct it", path=directory)
    return directory, ours, variable != "XDG_RUNTIME_DIR"


def _make_directory(directory: str) -> None:
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise _unusable(directory, error) from None


# --- binding --------------------------------------------------------------------------------------------------


def bind_control(path: Path, mode: int = 0o600, group: int | str | None = None) -> socket.socket:
    """A listening control socket at ``path``, close-on-exec, readable and writable by whom ``mode`` and ``group`` allow
    from the first moment. A dead owner's socket is replaced.

    ``PathInUse`` when somebody answers there; ``PathError`` when the path can't be used (something else is there, which
    is left alone; its directory is missing or not writable; it is too long); ``DeadlineExceeded`` when somebody sits on
    the lock file.
    """
    return bind_path(path, socket.SOCK_STREAM, mode=mode, group=group, backlog=BACKLOG)


def bind_path(
    path: Path,
    type: int = socket.SOCK_STREAM,
    *,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
    backlog: int = BACKLOG,
) -> socket.socket:
    """As ``bind_control``, for a Unix socket of any type. ``mode`` None leaves the permissions to the umask. ``owner`` is
    another user (a number or a name) to whom the path shall belong, which takes CAP_CHOWN. Datagram sockets are bound, the
    others listen.
    """
    path = os.fspath(path)
    _check_length(path)
    uid, gid = _number_of(owner, parse_user, path), _number_of(group, parse_group, path)
    with Lock(path):
        _make_room(path, type, uid)
        sock = socket.socket(socket.AF_UNIX, type)
        try:
            _bind_in_room(sock, path, mode, uid, gid)
            try:
                if type != socket.SOCK_DGRAM:
                    sock.listen(backlog)
            except BaseException:
                os.unlink(path)
                raise
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:  # by somebody who knows nothing of the lock
                raise PathInUse(
                    f"{path} is in use since just now: stop that, or choose another path", path=path
                ) from None
            raise _unusable(path, error, "bind") from None
        except BaseException:
            sock.close()
            raise
    return sock


def _bind_in_room(sock: socket.socket, path: str, mode: int | None, uid: int, gid: int) -> None:
    if mode is not None and sys.platform == "linux":
        # The new inode's mode is the socket's own, less the umask: nobody can connect before the group is right.
        os.fchmod(sock.fileno(), mode & 0o700)
    sock.bind(path)
    try:
        if gid >= 0:
            _give(path, -1, gid)
        if mode is not None:
            os.chmod(path, mode)
        if uid >= 0:
            _give(path, uid, -1)  # last: what is another's we may change no more
    except BaseException:
        os.unlink(path)
        raise


def _give(path: str, uid: int, gid: int) -> None:
    try:
        os.chown(path, uid, gid, follow_symlinks=False)
    except PermissionError:
        whom = f"uid {uid}" if uid >= 0 else f"the group {gid}"
        member = "" if uid >= 0 else ", or membership in it"
        raise PathError(
            f"{path} can't be given to {whom}: that takes root, or CAP_CHOWN{member}; do without, or run as such",
            path=path,
        ) from None


def _make_room(path: str, type: int, uid: int = -1) -> None:
    """Under the lock: removes a dead owner's socket, and refuses everything else that may be at ``path``. One that belongs
    to ``uid`` is as good as ours: it was given away."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error) from None
    if not stat.S_ISSOCK(found.st_mode):
        raise PathError(
            f"{path} is {_kind(found)}, not a socket, and was not touched: remove it, or choose another path", path=path
        )
    with socket.socket(socket.AF_UNIX, type) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            pass
        except PermissionError:
            raise PathError(
                f"{path} belongs to uid {found.st_uid}, who does not let us connect, and was not touched: "
                "choose another path, or run as that user",
                path=path,
            ) from None
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE, errno.EPERM):
                raise _unusable(path, error, "connect") from None
            raise PathInUse(f"{path} is in use by a live process: stop it, or choose another path", path=path) from None
        else:
            raise PathInUse(f"{path} is in use{_by_whom(probe)}: stop it, or choose another path", path=path)
    if found.st_uid not in (os.geteuid(), uid):
        raise PathError(
            f"{path} is a dead socket of uid {found.st_uid}, not ours (uid {os.geteuid()}), and was not touched: "
            "remove it, or choose another path",
            path=path,
        )
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unusable(path, error, "unlink") from None


# --- connecting -----------------------------------------------------------------------------------------------


class Connection:
    """How an attempt ended: ``sock``, connected and blocking, when somebody answers; else ``None``, and ``why``:
    ``ABSENT`` (nothing at the path) or ``STALE`` (a socket whose owner is dead).
    """

    __slots__ = ("sock", "why")

    def __init__(self, sock: socket.socket | None, why: str = "") -> None:
        self.sock = sock
        self.why = why

    def __repr__(self) -> str:
        return f"Connection({self.sock!r}, {self.why!r})"


def connect_control(path: Path, deadline: int) -> Connection:
    """One attempt to reach the owner. A full backlog is waited for.

    ``DeadlineExceeded`` when it stays full until ``deadline``; ``PathError`` when we may not connect, or something
    other than a stream socket is at the path, or it is too long.
    """
    path = os.fspath(path)
    _check_length(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return Connection(None, ABSENT)
    except OSError as error:
        raise _unusable(path, error) from None
    if not stat.S_ISSOCK(found.st_mode):  # connect would say "refused", as of a dead owner
        raise PathError(f"{path} is {_kind(found)}, not a socket: choose another path", path=path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(sock, path, deadline)
    except FileNotFoundError:
        sock.close()
        return Connection(None, ABSENT)
    except ConnectionRefusedError:
        sock.close()
        return Connection(None, STALE)
    except PermissionError:
        sock.close()
        raise PathError(
            f"{path} belongs to uid {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}, which does not let us "
            f"(uid {os.geteuid()}) connect: run as that user, or let its owner open it",
            path=path,
        ) from None
    except DeadlineExceeded:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        if error.errno == errno.EPROTOTYPE:
            raise PathError(f"{path} is a socket, but no stream socket: choose another path", path=path) from None
        raise _unusable(path, error, "connect") from None
    except BaseException:
        sock.close()
        raise
    return Connection(sock)


def _connect(sock: socket.socket, path: str, deadline: int) -> None:
    """A non-blocking connect says EAGAIN to a full backlog, and nothing tells when there is room; a blocking one waits
    in the kernel for as long as SO_SNDTIMEO says.
    """
    while True:
        left = remaining(deadline)
        left = _CONNECT_SLICE if left is None else min(left, _CONNECT_SLICE)
        microseconds = max(int(left * 1e6), 1)  # 0 would mean for ever
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(microseconds, 1_000_000)))
        try:
            sock.connect(path)
            # After a signal CPython takes a Unix socket for "connecting", waits for it, and finds no error.
            sock.getpeername()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))
            return
        if passed(deadline):
            raise DeadlineExceeded(
                f"{path}: its owner accepted no connection in time (its queue is full): look at that process"
            )


# --- removing -------------------------------------------------------------------------------------------------


def unlink_control(path: Path, sock: socket.socket, recorded: tuple[int, int] | None = None) -> bool:
    """Removes ``path`` if it still is the Unix socket ``sock``; whether it did. For the final owner, before it closes
    ``sock``. Works for a Unix socket of any type.

    Where the kernel does not tell what ``sock`` is bound to (another system, another network namespace), the path
    must be what ``recorded`` says, an earlier answer of ``identity``; without it the path stays.
    """
    path = os.fspath(path)
    if identity(path) is None:
        return False
    try:
        with Lock(path):
            if not is_bound_at(path, sock, recorded):
                return False
            os.unlink(path)
    except HandoffError:
        raise
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, error, "unlink") from None
    return True


def is_bound_at(path: Path, sock: socket.socket, recorded: tuple[int, int] | None = None) -> bool:
    """Whether what is at ``path`` now is the Unix socket ``sock``, as ``unlink_control`` judges it."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        return False
    bound = _bound_inode(sock)
    if bound is not None:
        return bound == found.st_ino & 0xFFFFFFFF
    return recorded is not None and recorded == (found.st_dev, found.st_ino)


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at ``path`` (a link itself, not its target); ``None`` when nothing is."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _bound_inode(sock: socket.socket) -> int | None:
    """The low 32 bits of the inode number of the path that ``sock`` is bound to, from the kernel's own books (Linux
    3.3); ``None`` when it doesn't tell.
    """
    if sys.platform != "linux":
        return None
    show_vfs, any_cookie = 2, 0xFFFFFFFF
    # struct nlmsghdr, then struct unix_diag_req: sock_diag(7)
    wanted = struct.pack(
        "=BBHIIIII", socket.AF_UNIX, 0, 0, any_cookie, os.fstat(sock.fileno()).st_ino & 0xFFFFFFFF, show_vfs,
        any_cookie, any_cookie,
    )  # fmt: skip
    header = struct.pack("=IHHII", 16 + len(wanted), 20, 1, 1, 0)  # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:  # NETLINK_SOCK_DIAG
            netlink.settimeout(1.0)
            netlink.send(header + wanted)
            answer = netlink.recv(8192)
    except OSError:
        return None
    size, kind = struct.unpack_from("=IH", answer) if len(answer) >= 16 else (0, 0)
    if kind != 20:
        return None
    offset = 16 + 16  # after the header and struct unix_diag_msg come the attributes
    while offset + 4 <= min(size, len(answer)):
        length, attribute = struct.unpack_from("=HH", answer, offset)
        if attribute == 1 and length >= 12:  # UNIX_DIAG_VFS: inode, device
            return int(struct.unpack_from("=I", answer, offset + 4)[0])
        offset += (max(length, 4) + 3) & ~3
    return None


# --- the lock -------------------------------------------------------------------------------------------------


class Lock:
    """Holds ``PATH.lock`` exclusively, as a context manager. The file is 0600 and gone afterwards; a crash leaves an
    unlocked one, which is used again. ``DeadlineExceeded`` after ``LOCK_SECONDS``, ``PathError`` when it can't be made.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self, path: Path) -> None:
        self._path = f"{os.fspath(path)}.lock"
        self._fd = -1

    def __enter__(self) -> Lock:
        deadline = after(LOCK_SECONDS)
        while True:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it between our open and our lock; then it guards nothing.
                if identity(self._path) == _identity_of(fd):
                    self._fd = fd
                    return self
            except BlockingIOError:
                if passed(deadline):
                    raise DeadlineExceeded(
                        f"{self._path} has been locked for {LOCK_SECONDS:g} s: find who holds it (fuser {self._path})"
                    ) from None
                time.sleep(_LOCK_POLL)
            except OSError as error:
                raise SystemCallError("flock", error.errno or 0, doing=f"locking {self._path}") from None
            finally:
                if self._fd < 0:
                    os.close(fd)

    def __exit__(self, *_: object) -> None:
        try:
            os.unlink(self._path)  # while locked: whoever waits for this file finds out and starts again
        except OSError:
            pass  # a file that stays behind is only locked again
        os.close(self._fd)
        self._fd = -1

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise _unusable(self._path, error) from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (os.geteuid() != 0 and found.st_uid != os.geteuid()):
            os.close(fd)
            raise PathError(
                f"{self._path} is {_kind(found)} of uid {found.st_uid}, which can't be our lock, and was not touched: "
                "remove it, or choose another path",
                path=self._path,
            )
        return fd


# --- words ----------------------------------------------------------------------------------------------------


def _check_length(path: str) -> None:
    raw = os.fsencode(path)
    if not raw or b"\0" in raw:
        raise PathError(f"{path!r} can't be a socket's path: name a file", path=path)
    if len(raw) > PATH_MAX:
        raise PathError(
            f"{path} has {len(raw)} bytes, but a Unix socket's path holds {PATH_MAX}: choose a shorter one", path=path
        )


def _number_of(whom: int | str | None, read: Callable[[str], int], path: str) -> int:
    """A user or group as its number; -1 for none."""
    if whom is None:
        return -1
    try:
        return read(str(whom))
    except ValueError as error:
        raise PathError(f"{path} can't be given away: {error}; create it, or name another", path=path) from None


def _identity_of(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _by_whom(probe: socket.socket) -> str:
    try:
        owner = peer(probe)
    except SystemCallError:
        return " by a live process"
    if owner.pid <= 0:
        return f" by a process of uid {owner.uid}"
    name = command_name(owner.pid)
    return f" by pid {owner.pid}{f' ({name})' if name else ''} of uid {owner.uid}"


def _kind(found: os.stat_result) -> str:
    for test, word in (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(found.st_mode):
            return word
    return "a device"


def _unusable(path: str, error: OSError, call: str = "open", missing: str = "") -> PathError | SystemCallError:
    """What the kernel said of ``path``, in the words of who has to mend it."""
    directory = os.path.dirname(path) or "."
    if error.errno == errno.ENOENT:
        return PathError(f"{path} can't be used: there is no directory {missing or directory}, create it", path=path)
    if error.errno == errno.ENOTDIR:
        return PathError(f"{path} can't be used: {directory} is not a directory", path=path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PathError(
            f"{path} can't be used: uid {os.geteuid()} has no permission there (mode and owner of {directory})",
            path=path,
        )
    if error.errno in (errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO):
        return PathError(f"{path} can't be used: {os.strerror(error.errno)}", path=path)
    return SystemCallError(call, error.errno or 0, doing=f"using {path}")
