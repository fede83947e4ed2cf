"""Generations that bind their addresses themselves, with SO_REUSEPORT: a server that can't be passed a listener is switched as
any other is, once its own listener is the socket of its slot.

As it listens it joins our group, behind every member, where no program sends anything. We find it among the kernel's listeners,
copy it out of the process that has it, and give it the slot's place. From then on its queue is ours as well, so that
nothing is lost with the process: what waits there is handed on as it is for every generation.
"""

from __future__ import annotations

import errno

from ..errors import OLD, HandoffError, NotReady, SystemCallError, Unsupported, sentence
from ..system.adoption import sockets_of
from ..system.connections import LISTEN, connections, inodes_of
from ..system.process import Process
from ..system.processes import members
from .outlets import KernelOutlet
from .tasks import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ..system.connections import Seen
    from .loop import Loop
    from .outlet import Outlet
    from .readiness import Verdict
    from .run import Run

_LOOK_FIRST = 0.002


async def await_bound(loop: Loop, run: Run, outlets: Sequence[Outlet], verdict: Verdict) -> None:
    """Until the generation's own listeners are those of its slot. ``NotReady``, ``SuccessorDied`` with the reason."""
    missing = _switched(run, outlets)
    verdict.hint = (
        f"; it had not bound {_addresses(missing)}: a server that binds its address itself (--convention reuseport) sets "
        "SO_REUSEPORT before that, and runs as the user of the master, or as --user says"
    )
    while True:
        for outlet in list(missing):
            _forbid_elsewhere(run, outlet, outlets)
            sock = _bound_by(run, outlet)
            if sock is not None:
                before = outlet.give(run.slot)
                try:
                    outlet.admit(run.slot, sock)
                except HandoffError as error:
                    raise NotReady(
                        f"{run} has bound {outlet.address}, and can't be switched: {error}", serving=OLD
                    ) from None
                run.has_instead(before, outlet.give(run.slot))
                missing.remove(outlet)
        if not missing:
            break
        if not verdict.left():
            verdict.last = f"it has not bound {_addresses(missing)}, but {_what_it_has(run)}"
        verdict.check()
        await pause(loop, verdict.pause(_LOOK_FIRST), run.died)
    verdict.hint = verdict.last = ""


def forbid_others(run: Run, outlets: Sequence[Outlet]) -> None:
    """``NotReady`` where one of the addresses has a second listener of the generation's, which would get nothing."""
    for outlet in _switched(run, outlets):
        _forbid_elsewhere(run, outlet, outlets)
        if _own(run, outlet):
            raise _bound_more_than_once(run, outlet)


def _switched(run: Run, outlets: Sequence[Outlet]) -> list[KernelOutlet]:
    found = [outlet for outlet in outlets if isinstance(outlet, KernelOutlet) and outlet.probed]
    for outlet in outlets:
        if outlet not in found:
            raise NotReady(
                f"{run} was to bind {outlet.address} itself, which only a TCP listener that the kernel switches lets it do: "
                "leave --convention reuseport out",
                serving=OLD,
            )
    return found


def _addresses(outlets: Sequence[Outlet]) -> str:
    return " and ".join(outlet.address for outlet in outlets)


def _family(run: Run) -> dict[int, set[int]]:
    """The inodes of the sockets of each of its processes."""
    try:
        return {pid: inodes_of([pid]) for pid in members(*run.pids)}
    except SystemCallError as error:
        raise _hidden(run, error) from None


def _held(run: Run) -> set[int]:
    """The inodes of the sockets that any of its processes has."""
    return set().union(*_family(run).values())


def _hidden(run: Run, error: Exception) -> NotReady:
    return NotReady(
        f"the listener that {run} binds itself is not to be had ({sentence(error)}): let the master take it (pidfd_getfd; in a "
        "container CAP_SYS_PTRACE and its seccomp profile decide), or pass the server a listener",
        serving=OLD,
    )


def _own(run: Run, outlet: KernelOutlet) -> list[Seen]:
    """The generation's listeners at this address that are not the slot's."""
    rows = [seen for seen in outlet.group.strangers() if outlet.group.has_address_of(seen)]
    if not rows:
        return []
    held = _held(run)
    return [seen for seen in rows if seen.inode in held]


def _bound_by(run: Run, outlet: KernelOutlet) -> socket.socket | None:
    """A copy of the generation's listener at this address, once it has one."""
    rows = _own(run, outlet)
    if not rows:
        return None
    if len(rows) > 1:
        raise _bound_more_than_once(run, outlet)
    for pid, inodes in _family(run).items():
        if rows[0].inode not in inodes:
            continue
        try:
            with Process.from_pid(pid) as process:
                found = sockets_of(process, {rows[0].cookie})
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                continue  # ended meanwhile
            raise _hidden(run, error) from None
        except Unsupported as error:
            raise _hidden(run, error) from None
        if found:
            return found[rows[0].cookie]
    return None  # closed meanwhile


def _bound_more_than_once(run: Run, outlet: Outlet) -> NotReady:
    return NotReady(
        f"{run} has bound {outlet.address} more than once, and only one listener can be its queue: let it bind once, for "
        "all of its workers and threads",
        serving=OLD,
    )


def _forbid_elsewhere(run: Run, outlet: KernelOutlet, outlets: Sequence[Outlet]) -> None:
    """At another address of the same port it would get users whom nobody has sent to it."""
    groups = [other.group for other in outlets if isinstance(other, KernelOutlet)]
    rows = [seen for seen in outlet.group.strangers() if not any(group.has_address_of(seen) for group in groups)]
    if not rows:
        return
    held = _held(run)
    for seen in rows:
        if seen.inode in held:
            raise NotReady(
                f"{run} has bound {_text(seen)}, where nothing switches its connections, and the listener is "
                f"{outlet.address}: name the same address in both{_as_grpc_does(seen)}",
                serving=OLD,
            )


def _what_it_has(run: Run) -> str:
    held = _held(run)
    found = sorted({_text(seen) for seen in connections(0, states=(LISTEN,)) if seen.inode in held})
    return " and ".join(found) if found else "nothing"


def _as_grpc_does(seen: Seen) -> str:
    host, port = seen.local
    return f" (gRPC binds IPv4 addresses so: --bind '[{host}]:{port}')" if host.startswith("::ffff:") else ""


def _text(seen: Seen) -> str:
    host, port = seen.local
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
