"""What ``status`` tells of the master: docs/reference/status.md is its contract, keys are only ever added."""

from __future__ import annotations

import os

from .. import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .master import Master
    from .run import Run


def status(master: Master) -> dict[str, Any]:
    for run in master.runs:
        master.count(run)
    slot = master.current.slot if master.current is not None else 0
    upgrading = master.rollout is not None and master.state == "serving"
    return {
        "service": master.options.name,
        "master": {"pid": os.getpid(), "since": master.since, "version": __version__},
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "since": master.since,
        "state": "upgrading" if upgrading else master.state,
        "generation": master.current.number if master.current is not None else 0,
        "path": master.options.path,
        "taker": None,
        "listeners": [
            {
                "name": outlet.name,
                "address": outlet.address,
                "switch": outlet.mode,
                "origin": outlet.origin,
                "queue": outlet.waiting(slot),
                "backlog": outlet.backlog(slot),
            }
            for outlet in master.outlets
        ],
        "generations": [*master.history, *(describe(master, run) for run in master.runs)],
        "last_upgrade": master.rollout.summary() if master.rollout is not None else master.last_upgrade,
        "releases": master.watcher.status() if master.watcher is not None else None,
        "ready": master.wants_traffic,
        "totals": {
            **(master.ledger.totals() if master.ledger is not None else {}),
            "upgrades": master.upgrades,
            "failed": master.failures,
        },
        "warnings": [master.shortage] if master.shortage else [],
        "counters": {
            "upgrades": master.upgrades,
            "failed": master.failures,
            "coalesced": master.coalesced,
            "recycled": master.recycled,
        },
    }


def describe(master: Master, run: Run) -> dict[str, Any]:
    """One generation. How many connections it accepted is not known of a program that does not count them."""
    ended = run.exit
    if run.counted and master.ledger is not None:
        run.accepted = max(run.accepted or 0, master.ledger.counters(run.counted).accepted)
    return {
        "number": run.number,
        "pids": run.pids,
        "state": run.state,
        "since": run.since,
        "active": master.connections(run) if run.alive else 0,
        "accepted": run.accepted,
        "share": run.share,
        "deadline": run.time_left() if run.alive else None,
        "exit": None if ended is None or run.alive else {"status": ended.status, "signal": ended.signal},
        "command": run.options.command,
        "release": run.release or None,
    }
