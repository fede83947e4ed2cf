"""What root may do beyond being the owner of its files, and how to give that up."""

from __future__ import annotations

from .native import check, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CHOWN = 0
DAC_OVERRIDE = 1
DAC_READ_SEARCH = 2
FOWNER = 3
KILL = 5
SETGID = 6
SETUID = 7
NET_BIND_SERVICE = 10
SYS_CHROOT = 18
SYS_PTRACE = 19
SYS_RESOURCE = 24


def limit(kept: Iterable[int]) -> None:
    """Gives up all capabilities but ``kept``, for ever: this thread has none of them any more, and no program that it
    executes gets one back. Call it while there is one thread. ``SystemCallError`` (EPERM) without CAP_SETPCAP; ENOSYS elsewhere
    than on Linux.
    """
    mask = sum({1 << number for number in kept})
    check("capset", lib.fdh_capabilities_limit(mask), "giving up what is not needed")
