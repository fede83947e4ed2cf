"""Starting the next generation of this very program: the command, the working directory and every symlink looked up afresh."""

from __future__ import annotations

import os
import signal
import sys

from .errors import SystemCallError
from .system import environment
from .system.process import Process, find_program, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

# Blocked from the exec until the successor has its handlers and says ready: any of these would end it before.
BLOCKED = tuple(
    number
    for number in (
        getattr(signal, name, None)
        for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH")
    )
    if number is not None
)


def logical_directory() -> str:
    """The working directory as it was named, symlinks and all: ``$PWD`` where it means the same place. ``getcwd`` would name
    the old release for ever."""
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    except OSError:
        return os.getcwd()  # $PWD names what is gone or hidden from us
    return os.getcwd()


# At import, before the program may have changed it.
_STARTED_IN = logical_directory()


def start_directory() -> str:
    """Where this program was started; where it is now, if it can't enter that (as another user, or in another root)."""
    return _STARTED_IN if os.access(_STARTED_IN, os.X_OK) else os.getcwd()


def own_command() -> list[str]:
    """How this program was started, interpreter and options first, to be looked up again."""
    command = list(getattr(sys, "orig_argv", ())) or [sys.executable, *sys.argv]
    try:
        find_program(command[0], os.environ, None)
    except SystemCallError:
        command[0] = sys.executable  # started by a name that leads nowhere from here
    return command


def start(
    command: Sequence[str],
    *,
    path: str,
    generation: int,
    directory: str,
    extra: Mapping[str, str],
) -> Process:
    """Starts ``command`` as generation ``generation``, to take over at ``path``. ``extra``: variables meant for it alone."""
    environ = _environ(path, generation, directory, extra)
    return spawn(command, fds={0: 0, 1: 1, 2: 2}, env=environ, cwd=directory, blocked_signals=BLOCKED)


def become(
    command: Sequence[str],
    *,
    path: str,
    generation: int,
    directory: str,
    extra: Mapping[str, str],
) -> NoReturn:
    """This very process becomes generation ``generation``: it executes ``command`` in place, with ``BLOCKED`` blocked, and only
    descriptors 0, 1, 2 and what is inheritable. ``SystemCallError`` when it can't."""
    environ = _environ(path, generation, directory, extra)
    program = find_program(command[0], environ, directory)
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, which another program would inherit
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    doing = f"executing {command[0]!r} in place"
    try:
        os.chdir(directory)
        os.execve(program, list(command), environ)  # noqa: S606 - no shell, on purpose
    except OSError as error:
        raise SystemCallError("execve", error.errno or 0, doing=doing) from None


def _environ(path: str, generation: int, directory: str, extra: Mapping[str, str]) -> dict[str, str]:
    environ = dict(os.environ)
    environment.strip(environ)
    environ.update(extra)
    environ[environment.PATH] = path
    environ[environment.GENERATION] = str(generation)
    environ["PWD"] = directory
    return environ
