"""What a dead master left running, ended without a master: for whoever cleans up after it."""

from __future__ import annotations

import contextlib
import signal

from ..deadline import after
from ..errors import OLD, HandoffError, SystemCallError
from ..system.process import Process
from ..system.processes import members
from . import journal
from .options import drain_signal_of
from .resume import living

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def end_left_over(path: str, seconds: float, say: Callable[[str], object]) -> list[int]:
    """Ends the generations that the journal at this handoff path names and that live: told to, and killed after ``seconds``.
    Their numbers. ``HandoffError`` where the journal can't be read."""
    place = journal.path_of(path)
    try:
        state = journal.read(place)
    except ValueError as error:
        raise HandoffError(
            f"the journal {place} makes no sense to this release ({error}): look for what it names by hand", serving=OLD
        ) from None
    if state is None:
        return []
    left = living(state)
    for run in state["runs"]:
        leaders = left.get(run["number"], [])
        if not leaders:
            continue
        say(f"generation {run['number']} of a master that died is ended (pid {', '.join(str(p.pid) for p in leaders)})")
        family = _families(leaders)
        for leader in leaders:
            leader.signal(_stop_signal(run))
        deadline = after(seconds)
        for leader in leaders:
            leader.wait(deadline)
        # Who has not ended by then, and children that a server left behind.
        for process in [*leaders, *family]:
            process.signal(signal.SIGKILL)
            process.wait(after(5.0))
            process.close()
    journal.remove(place)
    return sorted(left)


def _families(leaders: list[Process]) -> list[Process]:
    found = []
    for pid in {*members(*(leader.pid for leader in leaders))} - {leader.pid for leader in leaders}:
        with contextlib.suppress(SystemCallError):  # it has ended meanwhile
            found.append(Process.from_pid(pid))
    return found


def _stop_signal(run: dict[str, Any]) -> int:
    name = run.get("options", {}).get("drain_signal") or drain_signal_of(run["command"])
    return int(getattr(signal, name))
