"""The ``LISTEN_FDS`` convention in both directions, and the variables of our own.

A parent that passes descriptors opens them from 3 on in its child and says how many there are (``LISTEN_FDS``), for
which process (``LISTEN_PID``; on newer systemd also ``LISTEN_PIDFDID``, a pidfd's inode number) and what they are
called (``LISTEN_FDNAMES``, separated by colons). The variables are for one process and one reading: ``take`` removes
them, whatever it finds in them.
"""

from __future__ import annotations

import os

from ..errors import EnvironmentInvalid, ListenerError
from ..listener import check_name
from .fds import close_all, describe, is_open, set_cloexec, socket_from_fd
from .native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, MutableMapping

LISTEN_FDS = "LISTEN_FDS"
LISTEN_PID = "LISTEN_PID"
LISTEN_FDNAMES = "LISTEN_FDNAMES"
LISTEN_PIDFDID = "LISTEN_PIDFDID"

PATH = "FDHANDOFF_PATH"
GENERATION = "FDHANDOFF_GENERATION"
INTERIM = "FDHANDOFF_INTERIM"
HEARD = "FDHANDOFF_HEARD"
CONNECTIONS = "FDHANDOFF_CONNECTIONS"
HEALTH = "FDHANDOFF_HEALTH"
HEALTH_FILE = "FDHANDOFF_HEALTH_FILE"
RUNTIME_DIR = "FDHANDOFF_RUNTIME_DIR"

FIRST_FD = 3

#: The fetcher's: what a web server is sent as ``Authorization``, or the file in which that is.
WATCH_AUTHORIZATION = "FDHANDOFF_WATCH_AUTHORIZATION"
WATCH_AUTHORIZATION_FILE = "FDHANDOFF_WATCH_AUTHORIZATION_FILE"

#: The webhooks': with what they are signed.
WEBHOOK_SECRET = "FDHANDOFF_WEBHOOK_SECRET"  # noqa: S105 - the name of one

#: What a command around an upgrade is told.
RELEASE = "FDHANDOFF_RELEASE"
RESULT = "FDHANDOFF_RESULT"
REASON = "FDHANDOFF_REASON"
ASKED = "FDHANDOFF_ASKED"
SERVING = "FDHANDOFF_SERVING"
SERVING_RELEASE = "FDHANDOFF_SERVING_RELEASE"

LISTEN = (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, LISTEN_PIDFDID)
#: What is meant for one process. ``FDHANDOFF_RUNTIME_DIR`` is not among them: it is a setting, like ``TMPDIR``.
FOR_ONE_PROCESS = (
    *LISTEN, PATH, GENERATION, INTERIM, HEARD, CONNECTIONS, HEALTH, HEALTH_FILE, WATCH_AUTHORIZATION,
    WATCH_AUTHORIZATION_FILE, WEBHOOK_SECRET, RELEASE, RESULT, REASON, ASKED, SERVING, SERVING_RELEASE,
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE", "MAINPID"
)  # fmt: skip


def take(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, int]]:
    """The descriptors that the parent passed to process ``pid``: name and number, in the order of ``LISTEN_FDNAMES``.

    The variables are removed from ``environ`` in every case. Nothing came: an empty list; so too when ``LISTEN_PID``
    is absent or names another process, or ``LISTEN_PIDFDID`` does: those descriptors are for somebody else. What came
    without a name is called ``listener0``, ``listener1``, … by its position. All are close-on-exec afterwards, and
    the caller's.

    ``EnvironmentInvalid`` when a variable makes no sense; no descriptor is touched then.
    """
    found = {name: environ.pop(name, None) for name in LISTEN}
    count_text, pid_text = found[LISTEN_FDS], found[LISTEN_PID]
    if count_text is None or pid_text is None:
        return []
    if not _is_number(pid_text) or int(pid_text) == 0:
        raise EnvironmentInvalid(f"{LISTEN_PID}={pid_text!r} is not a process id: whoever starts us set it wrongly")
    if int(pid_text) != pid or not _is_ours(found[LISTEN_PIDFDID], pid):
        return []
    if not _is_number(count_text) or int(count_text) == 0:
        raise EnvironmentInvalid(
            f"{LISTEN_FDS}={count_text!r} is not a number from 1 on: set it to how many descriptors are passed"
        )
    count = int(count_text)
    closed = _first_closed(count)
    if closed is not None:
        raise EnvironmentInvalid(
            f"{LISTEN_FDS}={count_text!r} promises descriptors {FIRST_FD} to {FIRST_FD + count - 1}, "
            f"but {closed} is not open: pass them all, or correct the number"
        )
    names = _names(found[LISTEN_FDNAMES], count)
    fds = range(FIRST_FD, FIRST_FD + count)
    set_cloexec(fds)
    return list(zip(names, fds, strict=True))


def take_sockets(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, socket.socket]]:
    """``take``, for who expects sockets and nothing else. ``ListenerError`` when something else came; all is closed then."""
    came = take(environ, pid)
    for name, fd in came:
        if describe(fd) is None:
            close_all([fd for _, fd in came])
            raise ListenerError(f"{LISTEN_FDS} passes descriptor {fd} as {name!r}, which is no socket")
    return [(name, socket_from_fd(fd)) for name, fd in came]


def addressee(environ: MutableMapping[str, str]) -> int | None:
    """The process id in ``LISTEN_PID``, when descriptors were passed to one; ``None`` otherwise. Removes nothing.

    When it is neither ours nor absent, a wrapper that forks (a shell, ``uv run``) stands between the parent and us.
    """
    text = environ.get(LISTEN_PID, "")
    return int(text) if LISTEN_FDS in environ and _is_number(text) else None


def compose(names: Iterable[str]) -> dict[str, str]:
    """The variables for a child that finds these listeners, in this order, from descriptor 3 on; empty when there are
    none.

    ``LISTEN_PID`` is a placeholder: ``process.spawn`` lets the child's own number take its place.
    ``ValueError`` for a name that can't name a listener.
    """
    names = [check_name(name) for name in names]
    if not names:
        return {}
    return {LISTEN_FDS: str(len(names)), LISTEN_PID: "0", LISTEN_FDNAMES: ":".join(names)}


def connections_of(path: str) -> str:
    """Where the generations of the service at the handoff path ``path`` meet to move connections."""
    return f"{path}.connections"


def default_name(position: int) -> str:
    """The name of the listener at ``position`` (from 0) that nobody named."""
    return f"listener{position}"


def strip(environ: MutableMapping[str, str]) -> None:
    """Removes what is meant for one process, so that a child does not take it for its own."""
    for name in FOR_ONE_PROCESS:
        environ.pop(name, None)


def own_pidfd_id() -> int:
    """The number by which the kernel names this process for ever; 0 where it has none (before Linux 6.9)."""
    pidfd, number = ffi.new("int *", -1), ffi.new("uint64_t *")
    if lib.fdh_pidfd_open(os.getpid(), pidfd) < 0:
        return 0
    result = lib.fdh_pidfd_id(pidfd[0], number)
    lib.fdh_close(pidfd[0])
    return int(number[0]) if result == 0 else 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


def _is_ours(pidfd_id: str | None, pid: int) -> bool:
    """Whether ``LISTEN_PIDFDID`` allows us to take: absent, unknowable on this kernel, or our own number."""
    if pidfd_id is None or pid != os.getpid():
        return True
    if not _is_number(pidfd_id):
        raise EnvironmentInvalid(f"{LISTEN_PIDFDID}={pidfd_id!r} is not a number: whoever starts us set it wrongly")
    own = own_pidfd_id()
    return own == 0 or own == int(pidfd_id)


def _first_closed(count: int) -> int | None:
    for fd in range(FIRST_FD, FIRST_FD + count):  # ends at the first gap, so a huge count costs nothing
        if not is_open(fd):
            return fd
    return None


def _names(text: str | None, count: int) -> list[str]:
    if text is None:
        return [default_name(position) for position in range(count)]
    names = text.split(":")
    if len(names) != count:
        raise EnvironmentInvalid(
            f"{LISTEN_FDNAMES}={text!r} has {len(names)} names, "
            f"but {LISTEN_FDS} is {count}: give one name for each descriptor"
        )
    try:
        return [check_name(name) if name else default_name(position) for position, name in enumerate(names)]
    except ValueError as error:
        raise EnvironmentInvalid(f"{LISTEN_FDNAMES}={text!r}: {error}") from None
