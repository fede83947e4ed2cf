"""Whether a second generation fits beside the one that serves: during an upgrade both are there."""

from __future__ import annotations

from ..errors import SystemCallError
from ..system.processes import members, memory_left, memory_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .master import Master

_MIB = 1 << 20


def memory_shortage(master: Master) -> str:
    """A warning, when the memory that is left, here or in our control group, is less than the serving generation uses; empty
    otherwise, and where that is not known. It is no refusal: what starts may need less than what has run for a while.
    """
    run = master.current
    if run is None or not run.alive:
        return ""
    try:
        used = memory_of({pid for leader in run.pids for pid in members(leader)})
    except SystemCallError:
        return ""
    left, where = memory_left()
    if left < 0 or used <= left:
        return ""
    return (
        f"{run} uses {used / _MIB:.0f} MiB and {where} has {left / _MIB:.0f} MiB left: a second one may not fit beside it "
        "during an upgrade"
    )
