"""What the master needs of root's rights when its generations have none: the rest is given up, for ever."""

from __future__ import annotations

import os

from ..errors import SystemCallError
from ..system import capabilities
from ..system.access import find_account
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
    try:
        capabilities.limit(needed(master.options))
    except SystemCallError as error:
        master.say(f"the master keeps all rights that it has: {error}")


def _is_anothers(directory: str) -> bool:
    """Whether only CAP_DAC_OVERRIDE lets us make and remove files there."""
    try:
        found = os.stat(directory)
    except OSError:
        return False
    return found.st_uid != os.geteuid() and not found.st_mode & 0o002
