"""s6: a service directory."""

from __future__ import annotations

from .plan import File, check_words, comment, shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan

DIRECTORY = "/etc/s6/sv"
_READY_FD = 3


def files(plan: Plan) -> list[File]:
    """Its ``timeout-kill`` is in milliseconds, 0 for never."""
    found = [File(DIRECTORY, f"{plan.name}/run", _run(plan), 0o755)]
    found.append(File(DIRECTORY, f"{plan.name}/notification-fd", f"{_READY_FD}\n"))
    kill = 0 if plan.stop is None else plan.stop_seconds * 1000
    found.append(File(DIRECTORY, f"{plan.name}/timeout-kill", f"{kill}\n"))
    return found


def _run(plan: Plan) -> str:
    words = plan.run("--ready-fd", str(_READY_FD))
    check_words(words, "s6", lines=True)
    head = comment(
        f"{DIRECTORY}/{plan.name}/run\n"
        f"s6-svscanctl -a SCANDIR starts it, once the directory is linked there; s6-svc -h SCANDIR/{plan.name} upgrades it."
    )
    return f"#!/bin/sh\n{head}exec 2>&1\nexec {shell(words)}\n"
