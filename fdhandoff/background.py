"""A program becomes a daemon, and whoever started it waits until it is ready, or learns why it is not.

Three processes. The *caller* forks the *witness*, which leads a new session, forks the *daemon*, and stays as its parent until
the daemon says that it is ready, or ends. So the daemon leads no session and can get no terminal, its exit status is known,
and the caller ends with it. Nothing is left of the other two afterwards, no descriptor, no variable in the environment.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time

from .deadline import format_duration
from .errors import HandoffError, PathError
from .system import environment
from .system.access import find_account
from .system.fds import open_standard
from .system.logfile import open_log, reopen, stand_in
from .system.pidfile import Pidfile
from .system.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    Path = str | os.PathLike[str]

READY = b"\n"
_FAILED = b"E"
_LINES = 20
_TAIL = 16384  # bytes that are looked at for the last lines
_END_SECONDS = 5.0  # between TERM and KILL for a daemon that is given up
_INTERRUPTED_SECONDS = 0.2
_LOOK_SECONDS = 0.05  # how often one is looked at where there are no pidfds

# The one of this process, if it is one and has not said yet that it is ready.
_waiting: Daemon | None = None


class Daemon:
    """What ``daemonize`` returns, in the daemon. ``pidfile`` and ``log`` are absolute paths, or ``None``."""

    def __init__(
        self, writer: int, log: str | None, pidfile: Pidfile | None, capture: tuple[int, int] | None = None
    ) -> None:
        self._writer = writer
        self._capture = capture
        self._pidfile = pidfile
        self.log = log
        self.pidfile = pidfile.path if pidfile is not None else None

    def ready(self) -> None:
        """The command that started this ends with 0. ``Service.ready`` says it by itself. Only the first call counts."""
        global _waiting
        _waiting = None
        writer, self._writer = self._writer, -1
        if writer < 0:
            return
        if self._capture is not None:
            _end_capture(*self._capture)
            self._capture = None
        try:
            os.write(writer, READY)
        except BrokenPipeError:
            pass  # whoever waited has been killed, which is no reason not to serve
        os.close(writer)

    def fileno(self) -> int:
        """The descriptor by which ``ready`` is said: a newline written to it says the same. -1 once it was."""
        return self._writer

    def reopen_log(self) -> None:
        """After somebody moved the log file away: what is written from now on goes to a new one. ``SystemCallError``."""
        if self.log is not None:
            reopen(self.log)

    def close(self) -> None:
        """Removes the pidfile, if it is still ours. Also done when the interpreter ends."""
        if self._pidfile is not None:
            self._pidfile.release()

    def leave(self) -> None:
        """The interpreter ends. A pidfile that can't be removed, as its directory is not ours any more, stays: a dead process's
        is in nobody's way."""
        try:
            self.close()
        except HandoffError:
            pass

    def forget_in_child(self) -> None:
        """After a fork, in the child: the lock on the pidfile, and being ready, are its parent's."""
        if self._pidfile is not None:
            self._pidfile.forget_in_child()
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def daemonize(
    *,
    pidfile: Path | None = None,
    log: Path | None = None,
    directory: Path | None = "/",
    umask: int | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
    chroot: Path | None = None,
    environ: Mapping[str, str] | None = None,
    timeout: float | None = 60.0,
) -> Daemon:
    """Goes on in the background; the process that called ends when the daemon is ready, with 0, or with its start-up error on
    standard error and its exit status (1 where that was 0), and never returns.

    Call it before there are threads, and before anything is opened that a fork would share. ``pidfile`` is locked, and refused
    with ``PidfileLocked`` where another live process has it. ``log`` becomes standard output and error (default: nothing, and
    what is written before the daemon is ready is shown if it fails). ``directory``: the working directory (``None``: as it
    is). ``umask``: any, 0 too (``None``: as it is). ``user``, ``group``: whom to become, by name or number, with the user's own
    supplementary groups; HOME, USER and LOGNAME follow. ``chroot``: the new root; ``directory`` is looked up in it. ``environ``
    replaces the environment. ``timeout``: seconds to become ready (``None``: for ever).

    Under a master, or as the successor of a daemon, which already runs in the background, it does nothing.
    ``HandoffError`` and ``OSError`` say what can't be had; then nothing has changed.
    """
    if environment.GENERATION in os.environ:
        return Daemon(-1, None if log is None else os.path.abspath(log), None)
    if threading.active_count() > 1:
        raise HandoffError("daemonize() comes before threads: a fork takes only the one that calls it along")
    from . import successor  # noqa: F401 - which notes where the program was started: its successors start there

    open_standard()
    change = Change(directory, umask, user, group, chroot, environ)
    held = Pidfile(pidfile) if pidfile is not None else None
    if held is not None:
        held.check()
    path = None if log is None else os.path.abspath(log)
    output = _capture() if path is None else open_log(path)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return split(change, held, path, output, timeout)


def split(
    change: Change,
    pidfile: Pidfile | None,
    log: str | None,
    output: int,
    timeout: float | None,
    on_ready: Callable[[int], object] | None = None,
) -> Daemon:
    """Returns in the daemon; ``on_ready`` is called with its pid in the witness. Takes ``output``."""
    global _waiting
    begin = os.lseek(output, 0, os.SEEK_END) if _is_file(output) else -1
    reader, writer = os.pipe()
    witness = os.fork()
    if witness:
        os.close(reader)
        os.close(writer)
        _await(witness)
    try:
        os.setsid()
        daemon = os.fork()
    except OSError as error:
        _say(f"no process can be started: {error.strerror}")
        os._exit(1)
    if daemon:
        os.close(writer)
        try:
            _watch(daemon, reader, output if begin >= 0 else -1, begin, timeout, on_ready)
        except BaseException as error:
            _say(f"waiting for the daemon failed: {error}")
            os._exit(1)
    os.close(reader)
    try:
        _waiting = _settle(change, pidfile, log, output, writer)
    except (HandoffError, OSError) as error:
        os.write(writer, _FAILED + str(error).encode(errors="replace"))
        os._exit(1)
    return _waiting


def told_ready() -> None:
    """If this process is a daemon that somebody waits for, it is ready."""
    if _waiting is not None:
        _waiting.ready()


# --- the daemon -----------------------------------------------------------------------------------------------


class Change:
    """Whom and what the daemon shall be. Looked up before anything is forked: a mistake is the caller's to hear."""

    def __init__(
        self,
        directory: Path | None = None,
        umask: int | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        chroot: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = None if directory is None else os.fspath(directory)
        self._umask = umask
        self._chroot = None if chroot is None else os.path.abspath(chroot)
        self._environ = None if environ is None else dict(environ)
        try:
            self._account = find_account(_text(user), _text(group))
        except ValueError as error:
            raise HandoffError(str(error)) from None
        if (self._account is not None or chroot is not None) and os.geteuid() != 0:
            raise HandoffError("to become another user or group, or to change the root, takes root")
        for what, path in (("root", self._chroot), ("working directory", self._inside())):
            if path is not None and not os.path.isdir(path):
                raise PathError(f"the {what} {path} is not a directory", path=path)

    def _inside(self) -> str | None:
        if self._directory is None or self._chroot is None:
            return self._directory
        return os.path.join(self._chroot, self._directory.lstrip("/"))

    def make(self) -> None:
        if self._environ is not None:
            os.environ.clear()
            os.environ.update(self._environ)
        if self._account is not None:
            os.environ.update(self._account.environ)
        if self._umask is not None:
            os.umask(self._umask)
        if self._chroot is not None:
            os.chroot(self._chroot)
            os.chdir("/")
        if self._directory is not None:
            os.chdir(self._directory)
        if self._account is not None:
            os.setgroups(self._account.groups)
            os.setresgid(self._account.gid, self._account.gid, self._account.gid)
            os.setresuid(self._account.uid, self._account.uid, self._account.uid)


def _text(name: str | int | None) -> str:
    return "" if name is None else str(name)


def _settle(change: Change, pidfile: Pidfile | None, log: str | None, output: int, writer: int) -> Daemon:
    if pidfile is not None:
        pidfile.claim()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    capture: tuple[int, int] | None = None
    if log is None and _is_file(output):
        capture = os.dup(output), null
    else:
        os.close(null)
    stand_in(output)
    daemon = Daemon(writer, log, pidfile, capture)
    atexit.register(daemon.leave)
    os.register_at_fork(after_in_child=daemon.forget_in_child)
    change.make()
    return daemon


def _capture() -> int:
    """Where output goes that nobody wants, but for the start-up error: memory, as long as the daemon is not ready."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fdhandoff-start", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _end_capture(fd: int, null: int) -> None:
    """From now on it goes nowhere; children that were started before can't fill the memory any further."""
    import fcntl

    stand_in(null)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    os.close(fd)


# --- who waits ------------------------------------------------------------------------------------------------


def _await(witness: int) -> NoReturn:
    """The caller: ends as the witness does. To interrupt it is to give the daemon up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: os.kill(witness, signal.SIGTERM))
    _, status = os.waitpid(witness, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _watch(
    daemon: int,
    reader: int,
    output: int,
    begin: int,
    timeout: float | None,
    on_ready: Callable[[int], object] | None,
) -> NoReturn:
    """The witness: ends with 0 when the daemon is ready, and as it did when it has ended before."""
    given_up: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: given_up.append("interrupted"))
    deadline = None if timeout is None else time.monotonic() + timeout
    message = b""
    with Process.from_pid(daemon) as process:
        fds = [reader] if process.pidfd < 0 else [reader, process.pidfd]
        while process.alive() and not given_up:
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0 and timeout is not None:
                given_up.append(f"not ready within {format_duration(timeout)}")
                break
            # Not for long: a signal may come between the look and the wait.
            ready, _, _ = select.select(
                fds, [], [], min(left, _INTERRUPTED_SECONDS if process.pidfd >= 0 else _LOOK_SECONDS)
            )
            if reader in ready:
                message += (part := os.read(reader, 65536))
                if message[:1] == READY:
                    if on_ready is not None:
                        on_ready(daemon)
                    os._exit(0)
                if not part:
                    fds.remove(reader)
        if given_up:
            _end(process)
            _show(output, begin)
            _say(f"the daemon (pid {daemon}) was {given_up[0]}, and was ended")
            os._exit(1)
        while reader in fds and (part := os.read(reader, 65536)):
            message += part
        if message[:1] == READY:
            os._exit(0)  # it was ready, however short
        ended = process.wait(0)
    if message[:1] == _FAILED:
        _say(message[1:].decode(errors="replace"))
        os._exit(1)
    _show(output, begin)
    _say(f"the daemon (pid {daemon}) {ended} before it was ready")
    os._exit(128 + ended.signal if ended is not None and ended.signal else (ended and ended.status) or 1)


def _end(process: Process) -> None:
    process.signal(signal.SIGTERM)
    until = time.monotonic_ns() + int(_END_SECONDS * 1e9)
    if process.wait(until) is None:
        process.signal(signal.SIGKILL)
        process.wait(time.monotonic_ns() + int(_END_SECONDS * 1e9))


def _show(output: int, begin: int) -> None:
    """The last lines that the daemon wrote."""
    if output < 0:
        return
    try:
        # It was opened to be written to.
        with open(f"/proc/self/fd/{output}", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - _TAIL))
            text = file.read(_TAIL).decode(errors="replace")
    except OSError as error:
        _say(f"what it wrote can't be shown: {error.strerror}")
        return
    for line in text.splitlines()[-_LINES:]:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _say(sentence: str) -> None:
    name = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "daemon"
    try:
        sys.stderr.write(f"{'fdhandoff-cli' if name == '__main__.py' else name}: {sentence}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def _is_file(fd: int) -> bool:
    import stat

    return stat.S_ISREG(os.fstat(fd).st_mode)
