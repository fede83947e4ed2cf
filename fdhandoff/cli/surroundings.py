"""What ``doctor`` asks about the place where this process runs: user, directories, service manager, container."""

from __future__ import annotations

import os
import sys

from ..errors import HandoffError
from ..system import environment
from ..system.native import features
from ..system.notify import Notifier
from ..system.paths import check_directory, default_path
from .checks import MISSING, OK, WARN, Answer, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def surroundings() -> Iterator[tuple[str, Answer]]:
    yield (
        "user",
        (
            f"uid {os.geteuid()}",
            OK,
            "only this user and root can take over or ask, unless --allow-uid and --socket-mode open it on purpose",
        ),
    )
    yield "runtime directory", _guard(_runtime_directory, WARN, "; --name can't be used, but PATH can")
    yield "notify socket", _guard(_notify_socket, MISSING, "; hold and take refuse to start")
    yield "inherited listeners", _inherited()
    if sys.platform == "linux":
        yield "yama ptrace_scope", _yama(read("/proc/sys/kernel/yama/ptrace_scope"))
        yield "seccomp", _seccomp(_status_field("Seccomp"))
        yield "container", _container()
        yield "pid 1", _pid_one()
        yield "cgroup", _cgroup()


def _guard(question: Callable[[], Answer], verdict: str, consequence: str) -> Answer:
    try:
        return question()
    except HandoffError as error:
        return "unusable", verdict, f"{error}{consequence}"


def _runtime_directory() -> Answer:
    path = default_path("NAME", os.environ, create=False)
    directory = base = os.path.dirname(os.path.dirname(path))
    if not os.path.isdir(base):
        base = os.path.dirname(base)
        made = os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK)
        consequence = f"it will be made when it is needed, and a service NAME is found at {path}"
        why_not = (
            f"it does not exist and can't be made in {base}: set FDHANDOFF_RUNTIME_DIR, or say PATH instead of --name"
        )
        return directory, OK if made else WARN, consequence if made else why_not
    check_directory(base)
    return directory, OK, f"a service NAME is found at {path} (--name NAME)"


def _notify_socket() -> Answer:
    environ = dict(os.environ)
    notifier = Notifier.from_environment(environ)
    if not notifier:
        return "none", OK, "no service manager waits for READY=1 from this process"
    return str(notifier.address), OK, "the service manager is told of readiness, and of a successor's pid"


def _inherited() -> Answer:
    count, pid = os.environ.get(environment.LISTEN_FDS), environment.addressee(os.environ)
    if count is None:
        return "none", OK, "nobody passes listeners to this process by LISTEN_FDS"
    if pid != os.getpid():
        return (
            f"{count}, for process {pid}",
            WARN,
            f"LISTEN_PID names process {pid}, not this one ({os.getpid()}): something in between forks instead of executing",
        )
    return count, OK, "listeners were passed to this process, which can use them"


def _yama(value: str | None) -> Answer:
    if value in (None, "0"):
        return value or "none", OK, "any process of the same user can be looked into: readiness by accept, adoption"
    if value == "1":
        return value, OK, "a command's readiness is seen, as it is our child; adopting from others needs CAP_SYS_PTRACE"
    return (
        str(value),
        WARN,
        "commands can't be looked into without CAP_SYS_PTRACE: use --ready notify, or they are assumed ready after 1s",
    )


def _status_field(name: str) -> str | None:
    for line in (read("/proc/self/status") or "").splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return None


def _seccomp(value: str | None) -> Answer:
    if value in (None, "0"):
        return "none", OK, "no filter stands between this process and the kernel"
    blocked = sorted({"pidfd", "pidfd_getfd", "switch"} - features())
    return (
        {"1": "strict", "2": "filtered"}.get(str(value), str(value)),
        WARN if blocked else OK,
        f"a filter may be why there is no {', '.join(blocked)}: allow those calls in the container's profile"
        if blocked
        else "a filter is active, and what is needed passes it",
    )


def _container() -> Answer:
    kind = os.environ.get("container", "")  # noqa: SIM112 - that is its name
    if not kind and os.path.exists("/.dockerenv"):
        kind = "docker"
    if not kind and os.path.exists("/run/.containerenv"):
        kind = "podman"
    if not kind:
        return "no", OK, "processes see each other's pids"
    return (
        kind,
        OK,
        "two containers hand over through a shared volume; peers' pids read 0 there, and uids and pidfds count instead",
    )


def _pid_one() -> Answer:
    if os.getpid() != 1:
        return "no", OK, "the service can move to another process, and this one may end"
    return (
        "yes",
        WARN,
        "when this process ends the kernel ends its whole pid namespace: it must stay (take, hold), or use --init",
    )


def _cgroup() -> Answer:
    text = read("/proc/self/cgroup") or ""
    group = next((line.partition("::")[2] for line in text.splitlines() if line.startswith("0::")), "")
    if not text:
        return "unknown", OK, "this system has no control groups"
    if group.endswith(".service"):
        return (
            group,
            WARN,
            "a unit's processes are killed together when its main process ends (KillMode=control-group): a successor must be "
            "named with MAINPID=, or run in a unit of its own",
        )
    return group or "v1", OK, "no service unit ends what runs here"
