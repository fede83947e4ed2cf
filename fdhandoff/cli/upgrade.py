"""``upgrade``: has a running service replaced by its next release, shows how it goes, and ends with the truth."""

from __future__ import annotations

import json
import sys

from ..client import ask
from ..deadline import format_duration
from ..errors import HandoffError
from .arguments import Parser, add_json, add_path, add_users, chosen_path, duration
from .outcome import code_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

EPILOG = """\
examples:
  fdhandoff-cli upgrade /run/app/handoff.sock
  fdhandoff-cli upgrade --name app --no-wait
  fdhandoff-cli upgrade --name app --abort

exit status: 0 the new generation serves and passed its probation; 1 it does not, and the old one serves; 3 the system said no;
4 nobody serves there.
"""

_STEERING = {
    "abort": "the upgrade is taken back",
    "hold": "the canary stays as it is",
    "promote": "the canary is promoted",
}


def arguments(parser: Parser) -> None:
    add_path(parser)
    add_json(parser)
    add_users(parser, "an owner besides us and root who is believed")
    parser.add_argument("--timeout", type=duration, default=None, help="how long to wait for the outcome (for ever)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--no-wait", action="store_true", help="return once it has begun")
    how.add_argument("--abort", action="store_true", help="take back the upgrade that is under way")
    how.add_argument("--hold", action="store_true", help="keep the canary that is under way at its present share")
    how.add_argument("--promote", action="store_true", help="end the canary that is under way, and switch")


def run(options: Namespace) -> int:
    path = chosen_path(options, create=False)
    verb = next((word for word in _STEERING if getattr(options, word)), "upgrade")
    try:
        answer = ask(
            path,
            verb,
            {"wait": not options.no_wait},
            timeout=options.timeout,
            allow_uids=options.allow_uid,
            on_event=None if options.json else _show,
        )
    except HandoffError as error:
        if not options.json:
            raise
        print(json.dumps({"schema": 1, "result": "failed", "serving": error.serving, "error": str(error)}))
        return code_of(error)
    if options.json:
        print(json.dumps(answer))
    else:
        print(_STEERING.get(verb) or _summary(answer, waited=not options.no_wait))
    sys.stdout.flush()
    return 0


def _show(event: dict[str, Any]) -> None:
    if event.get("step"):
        sys.stderr.write(f"{event['seconds']:7.2f} s  {event['step']} (generation {event['generation']})\n")
        sys.stderr.flush()


def _summary(answer: dict[str, Any], *, waited: bool) -> str:
    upgrade = answer.get("upgrade")
    if upgrade is None:  # a process that lives by Service
        return f"upgraded: generation {answer['generation']} (pid {answer['pid']}) serves"
    if not waited:
        return f"upgrade from generation {upgrade['from']} to {upgrade['to']} has begun"
    took = format_duration(upgrade["seconds"])
    return f"upgraded from generation {upgrade['from']} to {upgrade['to']} in {took}"
