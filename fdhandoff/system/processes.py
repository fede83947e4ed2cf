"""Processes in the plural: a generation's whole family, what it weighs, and what of it has ended.

A parent's number is all that the kernel keeps of descent, and an orphan's parent is another. So that a family stays one,
the master is the subreaper of its descendants, and each generation has a process group or session of its own: an orphan
keeps that, and the kernel gives the number to no new process while a member lives.
"""

from __future__ import annotations

import errno
import os
import signal

from ..errors import SystemCallError, Unsupported
from .native import check, lib
from .process import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_FORKED_NO_EXEC = 0x40  # among the flags in /proc/PID/stat
# Whose default action is none, or to go on.
_HARMLESS = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)


def become_subreaper(on: bool = True) -> None:
    """Whether orphans among our descendants become our children. It survives exec; children do not inherit it.
    ``Unsupported`` elsewhere than on Linux.
    """
    result = lib.fdh_subreaper(on)
    if result == -errno.ENOSYS:
        raise Unsupported("this system gives orphans to init alone: PR_SET_CHILD_SUBREAPER exists only on Linux")
    check("prctl(PR_SET_CHILD_SUBREAPER)", result, "becoming the parent of orphans")


def has_children() -> bool:
    """Whether any child of ours is left, one that has ended and was not reaped included. Of a subreaper: any descendant."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap_all(others: Collection[int] = ()) -> list[tuple[int, Exit]]:
    """The children that have ended, each with how, orphans that came to us included. Waits for none. The children
    ``others`` are left to whoever waits for them: what is learnt here, ``Process.wait`` can't say any more.
    """
    reaped: list[tuple[int, Exit]] = []
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if ended is None:
            return reaped
        if ended.si_pid in others:
            break  # the kernel would show this one again and again
        reaped += _reap(ended.si_pid)
    for pid, parent, _, _ in _processes():
        if parent == os.getpid() and pid not in others:
            reaped += _reap(pid)
    return reaped


def _reap(pid: int) -> list[tuple[int, Exit]]:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return []
    if not found:
        return []
    code = os.waitstatus_to_exitcode(status)
    return [(pid, Exit(status=code) if code >= 0 else Exit(signal=-code))]


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, and those that they started, zombies included. Not the orphans among them.

    One look: a process that forks meanwhile may be ahead of it. Who must catch all looks until nothing new is found.
    """
    return sorted(_below({pid}, _children(_processes())))


def members(*leaders: int) -> list[int]:
    """The leaders themselves, while they exist, all processes of the groups or sessions that they lead (an orphan stays in
    its own), and the descendants of them all. One look, as above, for all of them.
    """
    if not leaders:
        return []
    processes = list(_processes())
    family = {
        number for number, _, group, session in processes if number in leaders or group in leaders or session in leaders
    }
    return sorted(family | _below(family, _children(processes)))


def adopted() -> list[int]:
    """The main thread's own children, as the kernel lists them: those that it started, and the orphans that a subreaper gets.
    Empty where the kernel keeps no such list (CONFIG_PROC_CHILDREN)."""
    own = os.getpid()
    try:
        with open(f"/proc/self/task/{own}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def variable_of(pid: int, name: str) -> str:
    """What process ``pid`` was started with as environment variable ``name``; empty when it had none, when it has ended, and
    when we may not know."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            found = file.read().split(b"\0")
    except OSError:
        return ""
    start = os.fsencode(f"{name}=")
    return next((os.fsdecode(entry[len(start) :]) for entry in found if entry.startswith(start)), "")


def state_of(pid: int) -> str:
    """The kernel's letter for what process ``pid`` does: ``R``, ``S``, ``D``, ``T``, ``Z`` (ended, not reaped), …; empty
    when there is no such process.
    """
    fields = _stat(pid)
    return fields[0].decode("ascii") if fields else ""


def has_executed(pid: int) -> bool:
    """Whether the process runs a program of its own: one that was forked and never called exec does what its parent's program
    has it do (``PF_FORKNOEXEC``). False when there is no such process.
    """
    fields = _stat(pid)
    return bool(fields) and not int(fields[6]) & _FORKED_NO_EXEC


def was_only_forked(pid: int) -> bool:
    """Whether it is known of the process, which may have ended and not been waited for, that it never called exec."""
    fields = _stat(pid)
    return bool(fields) and bool(int(fields[6]) & _FORKED_NO_EXEC)


def words_of(pid: int) -> list[str]:
    """The command line of process ``pid``, as it may have rewritten it; empty when it has ended, or is not to be seen."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError:
        return []
    return text.rstrip("\0").split("\0") if text else []


def would_die_of(pid: int, number: int) -> bool:
    """Whether signal ``number`` would end or stop the process for want of a handler; false where that can't be seen."""
    if number in _HARMLESS:
        return False
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            masks = [int(line.split()[1], 16) for line in file if line.startswith((b"SigBlk:", b"SigIgn:", b"SigCgt:"))]
    except (OSError, ValueError, IndexError):
        return False
    return bool(masks) and not any(mask >> (number - 1) & 1 for mask in masks)


def parent_of(pid: int) -> int:
    """Its parent's number; 0 where it has none that we see, or has ended."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of memory that the processes use together: the sum of their PSS, in which a page that n processes share counts
    as 1/n for each. What has ended counts nothing.

    ``SystemCallError`` (EACCES) for another user's process, or one that forbids to be looked at, without CAP_SYS_PTRACE.
    """
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
        except OSError as error:
            if not vanished(pid, error):
                raise not_permitted("open", error, f"reading the memory of process {pid}") from None
    return total


def memory_left(cgroups: str = "/sys/fs/cgroup", meminfo: str = "/proc/meminfo") -> tuple[int, str]:
    """Bytes of memory that we could still use, and what sets that limit: the machine, or one of our control groups (v2; what
    the kernel would give up first, the inactive part of its file cache, counts as free there). -1 where it is not known.
    """
    left, where = -1, "the machine"
    try:
        with open(meminfo, "rb") as file:
            left = next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    group = cgroup_of(os.getpid())
    while True:
        room = _room_in(cgroups + group)
        if room >= 0 and (left < 0 or room < left):
            left, where = room, f"the control group {group or '/'}"
        if not group:
            return left, where
        group = group.rpartition("/")[0]


def _room_in(directory: str) -> int:
    try:
        with open(f"{directory}/memory.max", "rb") as file:
            limit = int(file.read())
        with open(f"{directory}/memory.current", "rb") as file:
            used = int(file.read())
        with open(f"{directory}/memory.stat", "rb") as file:
            cache = sum(int(line.split()[1]) for line in file if line.startswith(b"inactive_file "))
    except (OSError, ValueError):
        return -1  # there is none, or it says "max"
    return max(0, limit - max(0, used - cache))


def cgroup_of(pid: int) -> str:
    """The process's place in the control group tree (``/system.slice/app.service``): that of cgroup v2, or systemd's own
    where v2 is not used (``/`` there, or absent). Empty when the process is gone or the system has no control groups.
    """
    unified = named = ""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                number, controllers, path = line.rstrip("\n").split(":", 2)
                if number == "0" and not controllers:
                    unified = path
                elif controllers == "name=systemd":
                    named = path
    except (OSError, ValueError):
        return ""
    return unified if len(unified) > 1 else named or unified


# --- what /proc says, and does not ----------------------------------------------------------------------------


def vanished(pid: int, error: OSError) -> bool:
    """Whether ``error``, met in ``/proc/PID``, only means that the process has ended."""
    return error.errno in (errno.ENOENT, errno.ESRCH) or state_of(pid) in ("", "Z", "X")


def not_permitted(call: str, error: OSError, doing: str) -> SystemCallError:
    """The same error with what would allow it, where it is a matter of rights."""
    if error.errno in (errno.EACCES, errno.EPERM):
        doing += ", which takes the same user and a program that can be dumped, or CAP_SYS_PTRACE"
    return SystemCallError(call, error.errno or 0, doing=doing)


def _processes() -> Iterator[tuple[int, int, int, int]]:
    """Number, parent, process group and session of every process that we see."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                yield int(entry), int(fields[1]), int(fields[2]), int(fields[3])


def _stat(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` from the state on."""
    try:
        # Three system calls, where a file object makes seven: this is done for every process that there is.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError:
        return []
    # The name in parentheses may hold anything, parentheses too: the fields follow the last one.
    return text.rpartition(b")")[2].split()


def _children(processes: Iterable[tuple[int, int, int, int]]) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for pid, parent, _, _ in processes:
        children.setdefault(parent, []).append(pid)
    return children


def _below(roots: Collection[int], children: dict[int, list[int]]) -> set[int]:
    found: set[int] = set()
    queue = list(roots)
    while queue:
        fresh = set(children.get(queue.pop(), ())) - found
        found |= fresh
        queue.extend(fresh)
    return found
