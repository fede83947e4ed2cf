"""``upgrade``: has a running service replaced by its next release, shows how it goes, and ends with the truth."""

from __future__ import annotations

import argparse
import json
import sys

from ..deadline import format_duration
from ..errors import UNKNOWN, DeadlineExceeded, HandoffError, PeerRefused
from ..master.options import parse_canary
from .arguments import Parser, add_json, add_users, checked, duration
from .asking import ask
from .outcome import code_of, say
from .release import add_release, release_named
from .target import add_target, chosen_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

SERVED, FINAL = "served", "final"

EPILOG = """\
examples:
  fdhandoff-cli upgrade /run/app/handoff.sock
  fdhandoff-cli upgrade --name app --wait served
  fdhandoff-cli upgrade --pid 4711 --canary 5%:60s,50%:60s
  fdhandoff-cli upgrade --name app --dry-run
  fdhandoff-cli upgrade --name app --to 2.4.1
  fdhandoff-cli upgrade --name app --abort
  fdhandoff-cli upgrade --name app --master

A canary, and a rollback, concern new connections: kept-alive ones stay with the release that they have until it drains.

exit status: 0 the new generation serves and passed its probation (--wait served: it serves; --no-wait: it is being started); 1
it does not, and the old one serves; 2 wrong usage; 3 the system said no; 4 nobody serves there.
"""

_STEERING = {
    "abort": "the upgrade was taken back",
    "hold": "the canary stays as it is",
    "promote": "the canary is promoted",
    "upgrade-master": "the master was replaced in place",
}


def _canary(text: str) -> str:
    if text != "none":
        parse_canary(text)
    return text


def arguments(parser: Parser) -> None:
    add_target(parser)
    add_json(parser)
    add_users(parser, "an owner besides us and root who is believed")
    parser.add_argument(
        "--timeout", metavar="DURATION", type=duration, default=None,
        help="how long to wait for the outcome (for ever); as in --timeout 5m",
    )  # fmt: skip
    parser.add_argument(
        "--canary", metavar="STEPS", type=checked(_canary),
        help="another canary than the configured one, or none, this time; as in --canary 5%%:60s,50%%:60s",
    )  # fmt: skip
    add_release(parser)
    parser.add_argument(
        "--to", metavar="TAG", help="one of the releases that `releases` lists, whatever became of it; as in --to 2.4.1"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--wait", choices=(SERVED, FINAL), default=FINAL, help="until it serves, or to the end of probation (final)"
    )
    how.add_argument("--no-wait", action="store_true", help="return once it has begun")
    how.add_argument("--dry-run", action="store_true", help="look whether it could begin; nothing is started")
    how.add_argument("--abort", action="store_true", help="take back the upgrade that is under way")
    how.add_argument("--hold", action="store_true", help="keep the canary that is under way at its present share")
    how.add_argument("--promote", action="store_true", help="end the canary that is under way, and switch")
    how.add_argument(
        "--master", dest="upgrade_master", action="store_true", help="replace the master itself, not what it runs"
    )


def run(options: Namespace) -> int:
    path = chosen_target(options)
    verb = next((word for word in _STEERING if getattr(options, word.replace("-", "_"))), "upgrade")
    progress = None if options.json else Progress()
    try:
        answer = ask(
            path,
            verb,
            _question(options) if verb == "upgrade" else {},
            timeout=options.timeout,
            allow_uids=options.allow_uid,
            on_event=None if progress is None else progress.show,
        )
    except HandoffError as error:
        if isinstance(error, DeadlineExceeded):
            error = _undecided(path, verb, options.timeout)
        facts: dict[str, Any] = error.answer if isinstance(error, PeerRefused) else {}
        if options.json:
            result = (facts.get("upgrade") or {}).get("result", "failed")
            print(json.dumps({"schema": 1, "result": result, "serving": error.serving, "error": str(error), **facts}))
            return code_of(error)
        if progress is not None:
            progress.end()
        return explain(error, facts)
    if progress is not None:
        progress.end()
    print(json.dumps(answer) if options.json else _STEERING.get(verb) or summary(answer, options))
    sys.stdout.flush()
    return 0


def _undecided(path: str, verb: str, seconds: float) -> DeadlineExceeded:
    """Nobody waits for it any more, and that is all that has happened."""
    what = "the upgrade is not decided" if verb == "upgrade" else f"the owner at {path} has not answered {verb!r}"
    return DeadlineExceeded(
        f"{what} after {format_duration(seconds)}, and goes on: status shows how far it is, upgrade --abort takes it back",
        serving=UNKNOWN,
    )


def _question(options: Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {"wait": False if options.no_wait else options.wait}
    if options.canary is not None:
        body["canary"] = "" if options.canary == "none" else options.canary
    if options.to is not None:
        body["to"] = options.to
    if options.dry_run:
        body["dry_run"] = True
    release = release_named(options.release)
    if release:
        body["release"] = release
    return body


def summary(answer: dict[str, Any], options: argparse.Namespace) -> str:
    if options.dry_run:
        return "an upgrade could begin" if "checks" in answer else "this service knows no dry run"
    upgrade = answer.get("upgrade")
    if upgrade is None:  # a process that lives by Service
        return f"upgraded: generation {answer['generation']} (pid {answer['pid']}) serves"
    what = f"generation {upgrade['from']} to {upgrade['to']}"
    if options.no_wait:
        return f"upgrade from {what} has begun"
    took = format_duration(upgrade["seconds"])
    if upgrade.get("result") == SERVED:
        return f"generation {upgrade['to']} serves, after {took}; its probation has begun"
    return f"upgraded from {what} in {took}"


def explain(error: HandoffError, facts: dict[str, Any]) -> int:
    """Says why there was no upgrade, and what the new generation wrote last: the exit code."""
    say(str(error))
    for line in last_lines(facts.get("upgrade") or {}):
        print(line, file=sys.stderr)
    return code_of(error)


def last_lines(upgrade: dict[str, Any]) -> list[str]:
    """What the new generation wrote last, marked as such, or where that can be found."""
    lines, number = upgrade.get("last_lines", []), upgrade.get("to")
    if lines is None:
        return [
            f"what generation {number} wrote is where the master's own output is (--last-lines keeps it for this place)"
        ]
    return [f"the last lines that generation {number} wrote:", *(f"  | {line}" for line in lines)] if lines else []


class Progress:
    """Lines on standard error: one for each step, and on a terminal one that is redrawn while a step lasts."""

    def __init__(self) -> None:
        self._redraws = sys.stderr.isatty()
        self._drawn = False

    def show(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "check":
            self._write(f"{'ok' if event['ok'] else 'NO':>4}  {event['name']}: {event['detail']}")
            for line in event.get("last_lines", ()):
                self._write(f"      | {line}")
        elif event.get("step") and kind == "step":
            self._write(f"{event['seconds']:7.2f} s  {event['step']} (generation {event['generation']})")
        elif kind == "progress" and event.get("step"):
            self._write(f"{event['seconds']:7.2f} s  {event['step']}: {_state(event)}", passing=True)

    def _write(self, line: str, *, passing: bool = False) -> None:
        """A passing line is replaced by the next one; where that can't be, it is left out unless it says something new."""
        if passing and not self._redraws:
            return
        clear = "\r\x1b[K" if self._drawn else ""
        sys.stderr.write(f"{clear}{line}{'' if passing else chr(10)}")
        sys.stderr.flush()
        self._drawn = passing

    def end(self) -> None:
        if self._drawn:
            self._drawn = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _state(event: dict[str, Any]) -> str:
    flight = f"{event['in_flight']} connections with the old generation"
    left = event.get("deadline")
    return flight if left is None else f"{flight}, {format_duration(round(left, 1))} left"
