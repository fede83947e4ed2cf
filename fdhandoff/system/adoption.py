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
