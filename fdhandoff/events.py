"""What happens to a service, as records: one for each step, with a stable name and stable fields.

``EVENTS`` is the contract, and docs/reference/events.md describes it: names and fields are only ever added.
"""

from __future__ import annotations

import os
import sys
import time

from .notation import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: In every event.
COMMON = ("schema", "time", "event", "service", "pid", "generation")

#: Each with its own fields.
EVENTS: dict[str, tuple[str, ...]] = {
    "generation.serves": ("since",),
    "generation.ended": ("status", "signal"),
    "upgrade.begun": ("from", "to", "asked"),
    "upgrade.step": ("to", "step", "seconds"),
    "upgrade.done": ("from", "to", "seconds"),
    "upgrade.failed": ("from", "to", "seconds", "result", "reason"),
    "stop.begun": ("why",),
    "stop.vetoed": ("why", "reason"),
    "drain.begun": ("why",),
    "drain.ended": ("finished", "moved", "forced", "seconds", "clients"),
    "message": ("text",),
}


def record(event: str, service: str, generation: int, fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` are those of ``EVENTS``, all of them."""
    if tuple(sorted(fields)) != tuple(sorted(EVENTS[event])):
        raise ValueError(f"{event} has the fields {', '.join(EVENTS[event])}, not {', '.join(fields)}")
    return {
        "schema": 1,
        "time": time.time(),
        "event": event,
        "service": service,
        "pid": os.getpid(),
        "generation": generation,
        **fields,
    }


def write(event: dict[str, Any]) -> None:
    """As one line of JSON on standard error; nobody may be listening there any more."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(dumps(event) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return
