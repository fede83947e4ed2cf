"""Processes: who one is, whether it lives, how it ended, and how to start one with exactly the descriptors it shall
have.

A pid alone is no name: the kernel gives it to somebody else once the process was reaped. Where there are pidfds
(Linux 5.3) a ``Process`` holds one; elsewhere it is the pid *and* its start time, compared before every use, which
leaves a gap of microseconds between the comparison and the signal.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time

from ..deadline import passed, remaining
from ..errors import SystemCallError, Unsupported
from .native import FDH_AGAIN, check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, Sequence

_POLL_FIRST = 0.001  # seconds between two looks at a process without a pidfd, doubled up to the last
_POLL_LAST = 0.05


class Exit:
    """How a process ended: its exit ``status``, or the ``signal`` that killed it; both ``None`` where that is not
    known (a process that is not our child, or one that somebody else reaped).
    """

    __slots__ = ("signal", "status")

    def __init__(self, status: int | None = None, signal: int | None = None) -> None:
        self.status = status
        self.signal = signal

    def __repr__(self) -> str:
        return f"Exit(status={self.status}, signal={self.signal})"

    def __str__(self) -> str:
        """``exited with status 1``, ``was killed by signal 9``, ``ended``: to follow ``the new generation``."""
        if self.signal:
            return f"was killed by signal {self.signal}"
        return f"exited with status {self.status}" if self.status is not None else "ended"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exit):
            return NotImplemented
        return (self.status, self.signal) == (other.status, other.signal)

    def __hash__(self) -> int:
        return hash((self.status, self.signal))


class Peer:
    """Who is at the other end of a Unix socket, as the kernel recorded it at ``connect`` (seen by who accepts) or at
    the last ``listen`` (seen by who connects). ``pid`` is 0 where the peer is invisible (another pid namespace), -1
    where unknown.
    """

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid

    def __repr__(self) -> str:
        return f"Peer(pid={self.pid}, uid={self.uid}, gid={self.gid})"

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}" if self.pid > 0 else f"uid {self.uid}"


class Identity:
    """Whom a child shall become before the exec: uid, gid and the supplementary groups (none but these)."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: Sequence[int] = ()) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = tuple(groups)

    def __repr__(self) -> str:
        return f"Identity(uid={self.uid}, gid={self.gid}, groups={self.groups})"


class Process:
    """One process. ``pid`` is 0 where its number can't be seen from here; ``started`` is clock ticks since boot, 0
    where unknown; ``pidfd`` is the descriptor held, or -1. ``close`` it, or use it as a context manager; neither ends
    the process.
    """

    __slots__ = ("_exit", "pid", "pidfd", "started")

    def __init__(self, pid: int, started: int, pidfd: int) -> None:
        """Takes ``pidfd``. Use ``from_pid`` or ``from_pidfd``."""
        self.pid = pid
        self.started = started
        self.pidfd = pidfd
        self._exit: Exit | None = None

    @classmethod
    def from_pid(cls, pid: int, started: int = 0) -> Process:
        """The process that has the number ``pid`` now, and, when ``started`` is given, started then. It may have ended,
        if nobody has reaped it. ``SystemCallError`` (ESRCH) when there is none, or another has the number meanwhile.
        """
        doing = f"looking for process {pid}"
        if pid <= 0:
            raise SystemCallError("pidfd_open", errno.ESRCH, doing=doing)
        pidfd = ffi.new("int *", -1)
        result = lib.fdh_pidfd_open(pid, pidfd)
        if result != -errno.ENOSYS:
            check("pidfd_open", result, doing)
        process = cls(pid, start_time(pid), pidfd[0])
        # In this order: who is not reaped after its start time was read had the number while it was read.
        if process._reaped() or (started and process.started and started != process.started):
            process.close()
            raise SystemCallError("pidfd_open", errno.ESRCH, doing=doing)
        return process

    @classmethod
    def from_pidfd(cls, pidfd: int) -> Process:
        """The process that ``pidfd`` names. Takes the descriptor. It may have ended already."""
        process = cls(0, 0, pidfd)
        try:
            process.pid = _pid_of(pidfd)
        except BaseException:
            process.close()
            raise
        process.started = start_time(process.pid) if process.pid > 0 else 0
        if not process.alive():
            process.started = 0  # read too late: the number may be somebody else's
        return process

    def __repr__(self) -> str:
        return f"Process(pid={self.pid}, started={self.started}, pidfd={self.pidfd})"

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The pidfd: readable once the process has ended. ``Unsupported`` where there is none."""
        if self.pidfd < 0:
            raise Unsupported("no pidfd to watch the process by, which needs Linux 5.3: call wait() instead")
        return self.pidfd

    def alive(self) -> bool:
        """Whether it has not ended. A zombie has. Reaps nothing."""
        if self._exit is not None:
            return False
        if self.pidfd >= 0:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            return not poller.poll(0)
        state, started = _stat(self.pid)
        if started:
            return state not in "ZX" and self.started in (0, started)
        return exists(self.pid) and not sys.platform.startswith("linux")

    def wait(self, deadline: int) -> Exit | None:
        """How it ended, as often as it is asked; ``None`` when it still lives at ``deadline``. Our own child is
        reaped.
        """
        if self._exit is None:
            self._exit = self._wait_pidfd(deadline) if self.pidfd >= 0 else self._wait_pid(deadline)
        return self._exit

    def signal(self, number: int) -> bool:
        """Sends signal ``number`` (0 only asks). False when the process has ended and been reaped;
        ``SystemCallError`` (EPERM) when it is not ours to signal.
        """
        doing = f"sending signal {number} to process {self.pid}"
        if self.pidfd >= 0:
            result = lib.fdh_pidfd_signal(self.pidfd, number)
            if result == -errno.ESRCH:
                return False
            check("pidfd_send_signal", result, doing)
            return True
        if self._exit is not None or not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise SystemCallError("kill", error.errno or 0, doing=doing) from None
        return True

    def id(self) -> int:
        """The number by which the kernel names it for as long as the system runs (Linux 6.9); 0 where there is none."""
        return pidfd_id(self.pidfd) if self.pidfd >= 0 else 0

    def close(self) -> None:
        """Closes the pidfd. Idempotent. A child that was not waited for stays to be reaped."""
        self.pidfd = lib.fdh_close(self.pidfd)

    def _reaped(self) -> bool:
        if self.pidfd < 0:
            return not exists(self.pid)
        return lib.fdh_pidfd_signal(self.pidfd, 0) == -errno.ESRCH

    def _wait_pidfd(self, deadline: int) -> Exit | None:
        how = ffi.new("struct fdh_exit *")
        result = lib.fdh_pidfd_wait(self.pidfd, deadline, how)
        if check("waitid", result, f"waiting for process {self.pid}") == FDH_AGAIN:
            return None
        if not how.known:
            return Exit()
        return Exit(signal=how.signal) if how.signal else Exit(status=how.status)

    def _wait_pid(self, deadline: int) -> Exit | None:
        pause = _POLL_FIRST
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                if not self.alive():
                    return Exit()
            else:
                if pid:
                    code = os.waitstatus_to_exitcode(status)
                    return Exit(status=code) if code >= 0 else Exit(signal=-code)
            if passed(deadline):
                return None
            left = remaining(deadline)
            time.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 2, _POLL_LAST)


def pidfd_id(pidfd: int) -> int:
    """The kernel's own number for the process of ``pidfd`` (Linux 6.9); 0 where there is none."""
    number = ffi.new("uint64_t *")
    return int(number[0]) if lib.fdh_pidfd_id(pidfd, number) == 0 else 0


def is_pidfd(fd: int) -> bool:
    """Whether descriptor ``fd`` names a process; true where the system does not tell."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            return any(line.startswith(b"Pid:") for line in file)
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.exists("/proc/self"):
            return True
        raise SystemCallError("open", error.errno or 0, doing=f"reading what descriptor {fd} is") from None


def start_time(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot; 0 when it is gone or the system does not say."""
    return _stat(pid)[1]


def exists(pid: int) -> bool:
    """Whether some process, zombies included, has the number ``pid``: one that is not ours to signal (EPERM) exists
    too.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        return False
    return True


def lives(pid: int) -> bool:
    """The same, of one that has not ended: a zombie, whom nobody has waited for yet, does nothing any more."""
    return exists(pid) and _stat(pid)[0] not in ("Z", "X")


def command_name(pid: int) -> str:
    """The program's short name, for messages: ``nginx``; empty where the system does not say."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def group_members(group: int) -> list[int]:
    """The processes of a process group that have not ended. Empty where the system has no /proc to look into."""
    members = []
    for entry in os.listdir("/proc") if os.path.exists("/proc/self/stat") else ():
        if entry.isdigit():
            fields = _fields(int(entry))
            if len(fields) > 2 and int(fields[2]) == group and fields[0] not in (b"Z", b"X"):
                members.append(int(entry))
    return members


def peer(sock: socket.socket) -> Peer:
    """Who is at the other end of this Unix socket. ``SystemCallError`` when it is not connected."""
    found = ffi.new("struct fdh_peer *")
    check("getsockopt(SO_PEERCRED)", lib.fdh_peer_credentials(sock.fileno(), found), "asking who the peer is")
    return Peer(found.pid, found.uid, found.gid)


def peer_process(sock: socket.socket) -> Process | None:
    """The peer as a process, which proves later whether it lives. ``None`` when the kernel has no trace of it any
    more, or when it lives in another pid namespace on a kernel without SO_PEERPIDFD (before Linux 6.5).
    """
    pidfd = ffi.new("int *", -1)
    result = lib.fdh_peer_pidfd(sock.fileno(), pidfd)
    if result == 0:
        return Process.from_pidfd(pidfd[0])
    if result in (-errno.ENODATA, -errno.ESRCH):
        return None
    if result != -errno.ENOSYS:
        check("getsockopt(SO_PEERPIDFD)", result, "asking which process the peer is")
    try:
        return Process.from_pid(peer(sock).pid)
    except SystemCallError as error:
        if error.errno == errno.ESRCH:
            return None
        raise


# --- starting one ---------------------------------------------------------------------------------------------


def find_program(name: str, environ: Mapping[str, str], cwd: str | None = None, root: str = "") -> str:
    """The file that the child's ``PATH`` and working directory make of ``name``, as a path that holds in ``cwd``, and
    in ``root`` if it has one of its own; links are not followed, so that the next generation looks afresh.
    ``SystemCallError``: ENOENT when there is none, EACCES when what there is can't be executed.
    """
    directory = cwd or ("/" if root else "")
    searched = environ.get("PATH", os.defpath)
    candidates = [name] if "/" in name else [os.path.join(entry or ".", name) for entry in searched.split(os.pathsep)]
    refused = ""
    for candidate in candidates if name else ():
        where = root + os.path.join(directory, candidate)
        if os.path.isfile(where):
            if os.access(where, os.X_OK):
                return candidate
            refused = refused or candidate
        elif "/" in name and os.path.exists(where):
            refused = candidate
    if refused:
        raise SystemCallError("execve", errno.EACCES, doing=f"starting {name!r}: {refused} is not an executable file")
    where = f" in {os.path.abspath(directory)}" if cwd else ""
    what = f"no such file{where}" if "/" in name else f"not found in PATH={searched}"
    raise SystemCallError("execve", errno.ENOENT, doing=f"starting {name!r}: {what}")


def spawn(
    argv: Sequence[str],
    *,
    fds: Mapping[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    blocked_signals: Iterable[int] = (),
    own_group: int = 0,
    death_signal: int = 0,
    identity: Identity | None = None,
    limits: Mapping[int, tuple[int, int]] | None = None,
    root: str = "",
    umask: int | None = None,
    no_new_privileges: bool = False,
) -> Process:
    """Starts ``argv`` and returns once the program runs.

    - ``fds``: child descriptor → ours; nothing else is open in it (default: 0, 1 and 2 as they are).
    - ``env``: all of its environment (default: ours). ``LISTEN_PID`` in it, whatever its value, becomes the child's own.
    - ``cwd``: its working directory (default: ours). ``argv[0]`` is looked up in *its* ``PATH``, from *its* directory.
    - ``blocked_signals``: its signal mask.
    - ``own_group``: 1 a process group of its own, 2 a session of its own, 0 ours.
    - ``death_signal``: sent to it when the thread that called this ends (0: none; Linux).
    - ``identity``: whom it becomes (default: us).
    - ``limits``: resource (``RLIMIT_NOFILE``) → soft and hard limit, -1 for none.
    - ``root``: its root directory, in which the program and ``cwd`` are looked up (default: ours).
    - ``umask``: its file mode creation mask (default: ours).
    - ``no_new_privileges``: no program that it executes, set-uid ones included, gives it any privilege (Linux).

    ``SystemCallError`` says which step failed, and leaves no child.
    """
    if not argv:
        raise ValueError("argv is empty: name the program to start")
    environ = os.environ if env is None else env
    program = argv[0] if identity is not None and "/" in argv[0] else find_program(argv[0], environ, cwd, root)
    table = {0: 0, 1: 1, 2: 2} if fds is None else fds
    if any(fd < 0 for fd in table):
        raise ValueError(f"a child's descriptors are numbered from 0: {sorted(table)}")
    numbers = [table.get(child, -1) for child in range(max(table, default=-1) + 1)]

    keep: list[object] = []  # cffi's buffers live as long as somebody refers to them

    def text(value: str) -> object:
        raw = os.fsencode(value)
        if b"\0" in raw:
            raise ValueError(f"{value!r} has an embedded NUL: no program can be given that")
        keep.append(ffi.new("char[]", raw))
        return keep[-1]

    def variable(name: str, value: str) -> object:
        if name != "LISTEN_PID":
            return text(f"{name}={value}")
        keep.append(ffi.new(f"char[{lib.FDH_LISTEN_PID_ROOM}]", b"LISTEN_PID=0"))
        return keep[-1]

    def array(kind: str, items: Sequence[object]) -> object:
        keep.append(ffi.new(kind, list(items)))
        return keep[-1]

    order = ffi.new("struct fdh_spawn *")
    order.file = text(program)
    order.argv = array("char *[]", [*map(text, argv), ffi.NULL])
    order.envp = array("char *[]", [*(variable(name, value) for name, value in environ.items()), ffi.NULL])
    order.fds = array("int[]", numbers)
    order.n_fds = len(numbers)
    order.directory = ffi.NULL if cwd is None else text(cwd)
    order.blocked_signals = sum({1 << (number - 1) for number in blocked_signals})
    order.own_group = own_group
    order.death_signal = death_signal
    if identity is not None:
        order.set_identity = 1
        order.uid = identity.uid
        order.gid = identity.gid
        order.groups = array("uint32_t[]", identity.groups)
        order.n_groups = len(identity.groups)
    if limits:
        keep.append(ffi.new("struct fdh_limit[]", len(limits)))
        order.limits, order.n_limits = keep[-1], len(limits)
        for place, (resource, (soft, hard)) in enumerate(limits.items()):
            order.limits[place].resource = resource
            order.limits[place].soft, order.limits[place].hard = soft % 2**64, hard % 2**64
    order.root = text(root) if root else ffi.NULL
    if umask is not None:
        order.set_mask, order.mask = 1, umask
    order.no_new_privileges = no_new_privileges

    pid, pidfd, step = ffi.new("int64_t *"), ffi.new("int *", -1), ffi.new("int *", -1)
    result = lib.fdh_spawn(order, pid, pidfd, step)
    if result < 0:
        raise _spawn_error(-result, step[0], argv[0], program, cwd, identity)
    return Process(pid[0], start_time(pid[0]), pidfd[0])


def _spawn_error(
    number: int, step: int, name: str, program: str, cwd: str | None, identity: Identity | None
) -> SystemCallError:
    doing = f"starting {name!r}"
    if step == lib.FDH_STEP_EXEC:
        if number == errno.ENOENT and os.path.exists(os.path.join(cwd or "", program)):
            doing += f": the interpreter that {program} names does not exist"
        elif program != name:
            doing += f" ({program})"
        return SystemCallError("execve", number, doing=doing)
    if step == lib.FDH_STEP_DIRECTORY:
        return SystemCallError("chdir", number, doing=f"{doing} in {cwd!r}")
    if step == lib.FDH_STEP_IDENTITY and identity is not None:
        return SystemCallError("setuid", number, doing=f"{doing} as uid {identity.uid}, gid {identity.gid}")
    if step == lib.FDH_STEP_LIMITS:
        hint = ", whose hard limit only CAP_SYS_RESOURCE raises" if number == errno.EPERM else ""
        return SystemCallError("setrlimit", number, doing=f"{doing} with its limits{hint}")
    if step == lib.FDH_STEP_ROOT:
        return SystemCallError("chroot", number, doing=f"{doing} in its own root directory")
    calls = {lib.FDH_STEP_GROUP: "setpgid", lib.FDH_STEP_FDS: "dup2", lib.FDH_STEP_PRIVILEGES: "prctl(NO_NEW_PRIVS)"}
    call = calls.get(step, "fork")
    return SystemCallError(call, number, doing=doing)


# --- /proc ----------------------------------------------------------------------------------------------------


def _stat(pid: int) -> tuple[str, int]:
    """State and start time of ``pid`` from ``/proc/PID/stat``; ``("", 0)`` where that can't be read."""
    fields = _fields(pid)
    return (fields[0].decode("ascii"), int(fields[19])) if len(fields) > 19 else ("", 0)


def _fields(pid: int) -> list[bytes]:
    """``/proc/PID/stat`` from the third field on, the state; empty where that can't be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _pid_of(pidfd: int) -> int:
    """The number of a pidfd's process in our pid namespace; 0 where it has none, or has ended."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pid:"):
                    return max(int(line[4:]), 0)
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.exists("/proc/self"):
            return 0  # no /proc here: the number is not needed to watch the process
        raise SystemCallError("open", error.errno or 0, doing=f"reading whose pidfd {pidfd} is") from None
    return 0
