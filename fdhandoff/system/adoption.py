"""Sockets out of processes that know nothing of us: by ``pidfd_getfd``, where the kernel lets us."""

from __future__ import annotations

import errno
import os
import socket

from ..errors import SystemCallError, Unsupported
from .fds import describe, socket_from_fd
from .native import ffi, lib
from .process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


def sockets_of(process: Process, cookies: Collection[int]) -> dict[int, socket.socket]:
    """Duplicates of those sockets of ``process`` whose SO_COOKIE is among ``cookies``, by cookie; the caller's to close. A
    busy process opens and closes others meanwhile: what is gone when we come to it is not ours.

    ``Unsupported`` before Linux 5.6; ``SystemCallError`` (EPERM) where the kernel would not let us trace it: another user's,
    one that is not dumpable, or not our descendant under a strict yama/ptrace_scope.
    """
    found: dict[int, socket.socket] = {}
    try:
        for fd in _numbers(process.pid):
            copy = _copy(process, fd)
            if copy < 0:
                continue
            description = describe(copy)
            if description is not None and description.cookie in cookies and description.cookie not in found:
                found[description.cookie] = socket_from_fd(copy)
            else:
                lib.fdh_close(copy)
    except BaseException:
        for sock in found.values():
            sock.close()
        raise
    return found


def listeners_of(process: Process, known: Collection[int] = ()) -> list[tuple[int, socket.socket]]:
    """The listening and the unconnected, bound datagram sockets of ``process``, with their inodes, in the order of
    its descriptors, as duplicates for the caller to close. Those with an inode in ``known`` are left out.

    Errors as of ``sockets_of``; the sentence says who would be let.
    """
    found: dict[int, socket.socket] = {}
    try:
        for fd in sorted(_numbers(process.pid)):
            copy = _copy(process, fd)
            if copy < 0:
                continue
            inode = os.fstat(copy).st_ino
            description = describe(copy)
            bound = description is not None and (
                description.listening
                or (
                    description.type == socket.SOCK_DGRAM
                    and not description.connected
                    and _has_port(description.address)
                )
            )
            if bound and inode not in known and inode not in found:
                found[inode] = socket_from_fd(copy)
            else:
                lib.fdh_close(copy)
    except BaseException as error:
        for sock in found.values():
            sock.close()
        if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES):
            raise _not_allowed(process.pid, error) from None
        raise
    return list(found.items())


def _has_port(address: str) -> bool:
    return not address.startswith("unix:") and not address.endswith(":0")


def _not_allowed(pid: int, error: OSError) -> SystemCallError:
    """Who, why, and what would allow it."""
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        owner = -1
    what = f"taking the listeners of process {pid}"
    if owner >= 0:
        what += f", which runs as uid {owner}"
    allowed = f"the kernel wants uid {owner} and a program that can be dumped, or CAP_SYS_PTRACE (root has it)"
    scope = _yama()
    if scope >= 1:
        allowed += f"; and kernel.yama.ptrace_scope is {scope}, so that only " + (
            "ancestors of it or CAP_SYS_PTRACE will do"
            if scope == 1
            else "CAP_SYS_PTRACE will do"
            if scope == 2
            else "nobody may until the next boot"
        )
    return SystemCallError("pidfd_getfd", error.errno or errno.EPERM, doing=f"{what} ({allowed})")


def _yama() -> int:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _numbers(pid: int) -> list[int]:
    """The descriptors of ``pid`` that are sockets at this moment."""
    numbers = []
    directory = f"/proc/{pid}/fd"
    for entry in os.listdir(directory):
        try:
            if os.readlink(f"{directory}/{entry}").startswith("socket:"):
                numbers.append(int(entry))
        except OSError:
            continue  # closed meanwhile
    return numbers


def _copy(process: Process, fd: int) -> int:
    copy = ffi.new("int *", -1)
    result = lib.fdh_pidfd_getfd(process.fileno(), fd, copy)
    if result == 0:
        return int(copy[0])
    if result == -errno.ENOSYS:
        raise Unsupported("taking a listener out of a running process needs pidfd_getfd (Linux 5.6)")
    if result in (-errno.EBADF, -errno.ESRCH):
        return -1  # closed, or ended, meanwhile
    raise SystemCallError("pidfd_getfd", -result, doing=f"taking the listeners of process {process.pid}")
