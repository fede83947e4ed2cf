"""What the master needs of root's rights when its generations have none: the rest is given up, for ever."""

from __future__ import annotations

import os

from ..errors import HandoffError, SystemCallError
from ..system import capabilities
from ..system.access import find_account
from ..system.environment import connections_of
from ..system.paths import SYSTEM_DIRECTORY, default_path
from ..system.sockets import parse_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .master import Master
    from .options import Options

# docs/explanation/rights.md has the reason for each.
_ALWAYS = (
    capabilities.SETUID,
    capabilities.SETGID,
    capabilities.KILL,
    capabilities.SYS_PTRACE,
    capabilities.DAC_READ_SEARCH,
    capabilities.NET_BIND_SERVICE,
)


def needed(options: Options) -> set[int]:
    """The capabilities that a master with these options uses, now or at a later upgrade."""
    kept = set(_ALWAYS)
    if options.chroot:
        kept.add(capabilities.SYS_CHROOT)
    if options.limits:
        kept.add(capabilities.SYS_RESOURCE)
    specs = [parse_bind(text) for text in options.binds]
    paths = [os.fsdecode(spec.path) for spec in specs if spec.kind.startswith("unix") and spec.path[:1] != b"\0"]
    if paths:
        kept |= {capabilities.CHOWN, capabilities.FOWNER}
    paths += [path for path in (options.path, options.pidfile, options.log, options.health_file) if path]
    if any(_is_anothers(os.path.dirname(os.path.abspath(path))) for path in paths):
        kept.add(capabilities.DAC_OVERRIDE)
    return kept


def give_up(master: Master) -> None:
    """All that is not needed, where the generations are another user's than root. Called while there is one thread."""
    account = find_account(master.options.user, master.options.group)
    if account is None or account.uid == 0 or os.geteuid() != 0:
        return
    if master.options.path is not None and not master.options.chroot:
        _let_connections_move(master, master.options.path, account.uid)
    try:
        capabilities.limit(needed(master.options))
    except SystemCallError as error:
        master.say(f"the master keeps all rights that it has: {error}")


def _let_connections_move(master: Master, path: str, uid: int) -> None:
    """Between the user's processes, in a directory of theirs. Those above it that we have made let them through: they see
    nothing there, and what is in them is as closed as before."""
    from ..heir import open_to

    try:
        above = os.path.dirname(path)
        if path == default_path(os.path.basename(above), os.environ, create=False):
            for place in (above, *([SYSTEM_DIRECTORY] if os.path.dirname(above) == SYSTEM_DIRECTORY else [])):
                os.chmod(place, os.stat(place).st_mode & 0o7777 | 0o011)
        open_to(connections_of(path), uid)
    except (HandoffError, OSError) as error:
        master.say(f"connections don't move between the generations, they drain: {error}")


def _is_anothers(directory: str) -> bool:
    """Whether only CAP_DAC_OVERRIDE lets us make and remove files there."""
    try:
        found = os.stat(directory)
    except OSError:
        return False
    return found.st_uid != os.geteuid() and not found.st_mode & 0o002
