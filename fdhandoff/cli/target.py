"""Which service a verb is for: its handoff path, its name, or the number of a process that belongs to it."""

from __future__ import annotations

import os
import stat

from ..client import ask
from ..errors import HandoffError, PathError
from ..system import pidfile
from ..system.kin import listening_paths, parent_of
from ..system.paths import CONTROL_NAME, SYSTEM_DIRECTORY
from ..system.process import command_name, exists
from ..system.processes import state_of
from .arguments import Parser, add_path, checked, chosen_path
from .outcome import NOTHING, SYSTEM, Failure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

_ANSWER_SECONDS = 2.0
_ANCESTORS = 8
_ENDED = ("Z", "X")  # and nobody has waited for it yet


@checked
def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 2**31:
        raise ValueError(f"{text!r} is no process: say its number")
    return int(text)


def add_target(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument(
        "--path", dest="named_path", metavar="PATH", help="the same as an option, as in --path /run/app/handoff.sock"
    )
    parser.add_argument(
        "--pid", type=_pid, help="a process of the service (its master, or one of its servers), as in --pid 4711"
    )
    parser.add_argument("--pidfile", metavar="FILE", help="a file with that number, as in --pidfile /run/app.pid")


def chosen_target(options: argparse.Namespace) -> str:
    """The handoff path that ``PATH``, ``--path``, ``--name`` or ``--pid`` means."""
    ways = (options.path, options.named_path, options.name, options.pid, options.pidfile)
    if sum(value is not None for value in ways) != 1:
        raise UsageError("say which service: a handoff PATH, --name NAME, --pid PID or --pidfile FILE")
    if options.pidfile is not None:
        return find(_pid_in(options.pidfile), named=f", which {options.pidfile} names,")
    if options.pid is not None:
        # Who names a process means it, whoever runs it, and root may: then the answer must come from that very user.
        named = owner_of(options.pid) if os.geteuid() == 0 else None
        options.allow_uid = [*options.allow_uid, *([] if named is None else [named])]
        return find(options.pid, options.allow_uid)
    if options.named_path is not None:
        options.path = options.named_path
    return chosen_path(options, create=False)


def _pid_in(path: str) -> int:
    """The process that a pidfile names. ``Failure`` says what is wrong with the file."""
    if not os.path.lexists(path):
        raise Failure(f"there is no pidfile {path}: the service does not run, or writes another file", NOTHING)
    try:
        pid = pidfile.read(path)
    except PathError as error:
        raise Failure(str(error), SYSTEM) from None
    if pid is None:
        raise Failure(f"{path} holds no pid: it is half-written, or no pidfile", SYSTEM)
    if pidfile.alive(path) is None:
        again = "which is younger than the file" if exists(pid) else "which has ended"
        raise Failure(f"{path} is stale: it names process {pid}, {again}; nothing serves under it", NOTHING)
    return pid


def find(pid: int, allow_uids: Iterable[int] = (), named: str = "") -> str:
    """The handoff path of the service that process ``pid`` belongs to. ``Failure`` says why there is none. ``allow_uids``:
    whose answer is believed besides ours and root's."""
    if not exists(pid) or state_of(pid) in _ENDED:
        raise Failure(f"there is no process {pid}: nothing serves under that number", NOTHING)
    # Where the process itself answers, or the master above it, /proc tells the path; else everybody is asked.
    ancestor = pid
    for _ in range(_ANCESTORS):
        for path in listening_paths(ancestor):
            if _belongs(path, pid, allow_uids, sure=ancestor == pid):
                return path
        ancestor = parent_of(ancestor)
        if ancestor <= 1:
            break
    for path in _in_runtime_directories():
        if _belongs(path, pid, allow_uids):
            return path
    name = command_name(pid)
    who = f"process {pid}{f' ({name})' if name else ''}{named}"
    owner = owner_of(pid)
    if owner not in (None, os.geteuid()) and os.geteuid() != 0:
        raise Failure(f"{who} belongs to uid {owner}: ask as that user, or as root", SYSTEM)
    raise Failure(f"{who} runs, but answers no handoff path, and no service here knows it", NOTHING)


def _belongs(path: str, pid: int, allow_uids: Iterable[int], *, sure: bool = False) -> bool:
    try:
        answer = ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=allow_uids)
    except HandoffError:
        return False
    master = answer.get("master") or {}
    command = answer.get("command")
    pids = {answer.get("pid"), master.get("pid")}
    if isinstance(command, dict):
        pids.add(command.get("pid"))
    for generation in answer.get("generations") or ():
        pids.update(generation.get("pids") or ())
    return sure or pid in pids


def owner_of(pid: int) -> int | None:
    """The user whom the process runs as; ``None`` when it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _in_runtime_directories() -> Iterator[str]:
    """``NAME/handoff.sock`` wherever ours may lie."""
    places = [os.environ.get("FDHANDOFF_RUNTIME_DIR", ""), *os.environ.get("RUNTIME_DIRECTORY", "").split(":")]
    places.append(SYSTEM_DIRECTORY)
    if os.environ.get("XDG_RUNTIME_DIR"):
        places.append(os.path.join(os.environ["XDG_RUNTIME_DIR"], "fdhandoff"))
    if os.geteuid() == 0:
        places += [os.path.join(one.path, "fdhandoff") for one in _entries("/run/user")]
    for place in dict.fromkeys(filter(None, places)):
        for entry in _entries(place):
            path = os.path.join(entry.path, CONTROL_NAME)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    yield path
            except OSError:
                continue


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return sorted((one for one in found if one.is_dir()), key=lambda one: one.name)
    except OSError:
        return []
