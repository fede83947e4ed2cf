"""The questions that ``doctor`` asks, by area. Each answer is a value, a verdict, and what follows from it."""

from __future__ import annotations

import os
import resource
import sys

from ..system.native import features

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

OK, WARN, MISSING = "ok", "warn", "missing"

Answer = tuple[str, str, str]  # value, verdict, consequence


class Check:
    """One answer."""

    __slots__ = ("area", "consequence", "name", "value", "verdict")

    def __init__(self, area: str, name: str, value: str, verdict: str, consequence: str) -> None:
        self.area = area
        self.name = name
        self.value = value
        self.verdict = verdict
        self.consequence = consequence

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("area", "name", "value", "verdict", "consequence")}


def all_checks() -> list[Check]:
    from .surroundings import surroundings

    checks: list[Check] = []
    for area, questions in (
        ("kernel", _kernel),
        ("limits", _limits),
        ("network", _network),
        ("surroundings", surroundings),
    ):
        checks += [Check(area, name, *answer) for name, answer in questions()]
    return checks


def read(path: str) -> str | None:
    """A setting under /proc, or ``None`` where there is none, or it is not for us."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


# --- kernel -------------------------------------------------------------------------------------------------

# Feature: since when, what it gives, the verdict without it and its consequence.
_FEATURES: dict[str, tuple[str, str, str, str]] = {
    "pidfd": (
        "Linux 5.3", "a peer's death is known at once and for sure", WARN,
        "a peer's death is found by looking at its pid and start time every 50 ms, which leaves a gap of microseconds",
    ),
    "pidfd_getfd": (
        "Linux 5.6", "listeners can be adopted from a server that knows nothing of handoffs", MISSING,
        "listeners can't be adopted from a running server that does not offer them: the first start needs a restart",
    ),
    "peer_pidfd": (
        "Linux 6.5", "the kernel itself names the process that connected, also across pid namespaces", WARN,
        "peers name themselves by a pidfd that they send; one of another pid namespace that sends none can't be watched",
    ),
    "pidfd_id": (
        "Linux 6.9", "a process has a number that is never used again", WARN,
        "processes are told apart by pid and start time, which is enough until the next boot",
    ),
    "memfd": (
        "Linux 3.17", "counters are shared in memory that nobody can shrink", MISSING,
        "the gate's counters can't be shared between processes",
    ),
    "atomic_cloexec": (
        "MSG_CMSG_CLOEXEC", "received descriptors are close-on-exec from birth", WARN,
        "a program that another thread starts at the very moment of a handoff may inherit its descriptors",
    ),
    "close_range": (
        "Linux 5.11", "a command starts with exactly its descriptors, in two system calls", WARN,
        "before a command starts, every descriptor is looked at on its own, which takes longer",
    ),
    "cookie": (
        "Linux 4.6", "a received socket is recognised by its number, not its address", WARN,
        "received listeners are recognised by address and type, so two on one address (SO_REUSEPORT) look the same",
    ),
    "switch": (
        "Linux 4.5", "the kernel can divide new connections between generations", MISSING,
        "no canary and no switch between accept queues: generations share one queue while both live",
    ),
}  # fmt: skip


def _kernel() -> Iterator[tuple[str, Answer]]:
    release = os.uname()
    linux = sys.platform == "linux"
    yield (
        "system",
        (
            f"{release.sysname} {release.release} {release.machine}",
            OK if linux else WARN,
            "everything was made for this system"
            if linux
            else "only handoffs between processes work here; the rest needs Linux",
        ),
    )
    there = features()
    for name, (since, gain, verdict, consequence) in _FEATURES.items():
        yield name, ("yes", OK, gain) if name in there else (f"no ({since})", verdict, consequence)


# --- limits -------------------------------------------------------------------------------------------------


def _limits() -> Iterator[tuple[str, Answer]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield (
        "RLIMIT_NOFILE",
        (
            f"{_limit(soft)} (at most {_limit(hard)})",
            WARN if soft != resource.RLIM_INFINITY and soft < 4096 else OK,
            f"each process may have {_limit(soft)} descriptors, and a handoff has some of both generations at once: "
            "raise it (ulimit -n, LimitNOFILE=) for more connections than half of that",
        ),
    )
    for name, least, what in (
        ("fs.file-max", 65536, "open files of the whole system, old and new generation together"),
        ("fs.nr_open", 65536, "the highest value that RLIMIT_NOFILE can be given"),
    ):
        value = read(f"/proc/sys/{name.replace('.', '/')}")
        yield name, _number(value, least, f"this is the limit of {what}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC) if hasattr(resource, "RLIMIT_NPROC") else (-1, -1)
    yield (
        "RLIMIT_NPROC",
        (
            f"{_limit(soft)} (at most {_limit(hard)})",
            WARN if soft != resource.RLIM_INFINITY and soft < 256 else OK,
            "two generations run at once, with all their workers and threads: they must fit below it, for all of this user's",
        ),
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _number(value: str | None, least: int, consequence: str) -> Answer:
    if value is None or not value.isdigit():
        return "unknown", WARN, f"this system does not tell; {consequence}"
    return value, OK if int(value) >= least else WARN, consequence


# --- network ------------------------------------------------------------------------------------------------


def _network() -> Iterator[tuple[str, Answer]]:
    yield (
        "net.core.somaxconn",
        _number(
            read("/proc/sys/net/core/somaxconn"),
            1024,
            "no listener's queue is longer than this, whatever its backlog says; what does not fit into it is dropped",
        ),
    )
    yield (
        "net.ipv4.tcp_migrate_req",
        _switch(
            read("/proc/sys/net/ipv4/tcp_migrate_req"),
            on=(OK, "connections that wait in the queue of a listener that closes move to another of its group"),
            off=(
                OK,
                "connections that wait in a queue of their own are lost with its last holder: a holder or a master keeps it",
            ),
        ),
    )
    yield (
        "net.ipv4.tcp_abort_on_overflow",
        _switch(
            read("/proc/sys/net/ipv4/tcp_abort_on_overflow"),
            on=(WARN, "a full queue resets connections at once, so a short pause loses clients: set it to 0"),
            off=(OK, "a full queue makes clients try again, so a short pause costs them time, not the connection"),
        ),
    )
    ports = read("/proc/sys/net/ipv4/ip_local_port_range")
    words = (ports or "").split()
    span = int(words[1]) - int(words[0]) + 1 if len(words) == 2 and all(word.isdigit() for word in words) else 0
    yield (
        "net.ipv4.ip_local_port_range",
        (
            " to ".join(words) or "unknown",
            OK if span >= 10000 else WARN,
            "clients on this machine (load tests, proxies) have so many source ports for one address; a listener's port "
            "within it may be taken by one of them",
        ),
    )
    yield (
        "net.unix.max_dgram_qlen",
        _number(
            read("/proc/sys/net/unix/max_dgram_qlen"),
            10,
            "so many notifications (READY=1 …) and Unix datagrams wait for their reader; a sender waits beyond that",
        ),
    )
    yield (
        "IPv6",
        (
            "yes" if os.path.exists("/proc/net/if_inet6") else "no",
            OK,
            ":PORT listens for both families at once"
            if os.path.exists("/proc/net/if_inet6")
            else ":PORT listens for IPv4 alone",
        ),
    )


def _switch(value: str | None, *, on: tuple[str, str], off: tuple[str, str]) -> Answer:
    if value is None:
        return "unknown", off[0], f"this kernel does not tell; without it, {off[1]}"
    return (value, *(on if value not in ("", "0") else off))
