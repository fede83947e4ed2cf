"""A command that is given listeners: what it finds in its arguments, its environment and its descriptors, and how it ends."""

from __future__ import annotations

import errno
import os
import re
import signal
import time

from ..deadline import after, passed
from ..errors import SystemCallError
from ..system import environment
from ..system.fds import is_open
from ..system.process import Exit, Process, find_program, group_members, spawn
from .outcome import NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, SIGNALLED, Failure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LOOK_SECONDS = 0.02
_PLACE = re.compile(r"\{fd:([^{}]*)\}")


def check(words: Sequence[str]) -> None:
    """``Failure`` (126, 127) when there is no such program: better known before the owner is troubled."""
    try:
        find_program(words[0], os.environ)
    except SystemCallError as error:
        raise _failure(error) from None


def fill(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """``{fd:NAME}`` replaced by the number that the listener NAME has in the command. ``Failure`` for an unknown name."""

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise Failure(
                f"{match[0]} names no listener: the owner offers {', '.join(names) or 'none'}; it serves on",
                OWN_FAILURE,
            )
        return str(environment.FIRST_FD + names.index(match[1]))

    return [_PLACE.sub(number, word) for word in words]


def start(words: Sequence[str], items: Sequence[tuple[str, int]], generation: int, notify: str | None) -> Process:
    """Starts it with ``items`` (names and descriptors) from 3 on, in a process group of its own: what a terminal or a
    supervisor sends to our group reaches it once, through us. When we die without a word it gets TERM.
    """
    names = [name for name, _ in items]
    argv = fill(words, names)
    environ = dict(os.environ)
    environment.strip(environ)
    environ.update(environment.compose(names))
    environ[environment.GENERATION] = str(generation)
    if notify is not None:
        environ["NOTIFY_SOCKET"] = notify
    fds = {fd: fd for fd in (0, 1, 2) if is_open(fd)}
    fds.update({environment.FIRST_FD + place: fd for place, (_, fd) in enumerate(items)})
    return launch(argv, fds=fds, environ=environ)


def launch(argv: Sequence[str], *, fds: Mapping[int, int], environ: Mapping[str, str]) -> Process:
    """``Failure`` (125, 126, 127) when it can't be started."""
    try:
        return spawn(argv, fds=fds, env=environ, own_group=1, death_signal=signal.SIGTERM)
    except SystemCallError as error:
        raise _failure(error) from None


def _failure(error: SystemCallError) -> Failure:
    code = OWN_FAILURE
    if error.call == "execve":
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
    return Failure(str(error), code)


def code_of(ended: Exit) -> int:
    """The exit code that passes ``ended`` on."""
    if ended.signal:
        return SIGNALLED + ended.signal
    return OWN_FAILURE if ended.status is None else ended.status


def finish(process: Process, number: int, grace: float) -> Exit:
    """Tells it to end, and kills it with its whole group when ``grace`` has passed."""
    process.signal(number)
    ended = process.wait(after(grace))
    return ended if ended is not None else kill(process)


def kill(process: Process) -> Exit:
    """The end of the command and of all that is in its group."""
    _signal_group(process.pid, signal.SIGKILL)
    process.signal(signal.SIGKILL)
    ended = process.wait(after(None))
    return ended if ended is not None else Exit()


def sweep(process: Process, grace: float) -> None:
    """What a command that has ended left behind in its group (a wrapper does) would go on accepting: TERM, and when ``grace``
    has passed KILL."""
    deadline = after(grace)
    if group_members(process.pid):
        _signal_group(process.pid, signal.SIGTERM)
    while group_members(process.pid):
        if passed(deadline):
            _signal_group(process.pid, signal.SIGKILL)
            return
        time.sleep(_LOOK_SECONDS)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left in it, or nobody of ours


def parse_signal(text: str) -> int:
    """``TERM``, ``SIGTERM`` or ``15``. ``ValueError`` for what is no signal, or can't be sent to a process in earnest."""
    name = text.upper()
    if text.isascii() and text.isdigit():
        if int(text) in {int(number) for number in signal.valid_signals()}:
            return int(text)
    else:
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name in signal.Signals.__members__:
            return int(signal.Signals[name])
    raise ValueError(f"{text!r} is no signal: say TERM, QUIT, USR1 or a number")


def must_have(words: Sequence[str] | None, otherwise: str = "say what to start: PATH -- COMMAND…") -> list[str]:
    if not words or not words[0]:
        raise UsageError(otherwise)
    return list(words)
