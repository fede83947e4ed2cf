"""``doctor``: what this machine and this process can do, each with its consequence in one sentence."""

from __future__ import annotations

import json
import sys

from .arguments import Parser, add_json
from .checks import MISSING, OK, WARN, Check, all_checks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

EPILOG = """\
Each answer has a value, a consequence and a verdict: ok; warn (it works, with that
consequence); missing (something can't be done here).

examples:
  fdhandoff-cli doctor
  fdhandoff-cli doctor --unit web.service
  fdhandoff-cli doctor --json | jq '.checks[] | select(.verdict != "ok")'

Run it as the user, and in the container or unit, that will run the service: most answers depend on it.

exit status: 0 nothing is missing; 3 something is.
"""

_MARKS = {OK: "ok     ", WARN: "warn   ", MISSING: "MISSING"}


def arguments(parser: Parser) -> None:
    add_json(parser)
    parser.add_argument("--unit", metavar="UNIT", help="look at a systemd unit instead; as in --unit web.service")
    parser.add_argument("--user", action="store_true", help="with --unit: one of the user's own manager")


def run(options: Namespace) -> int:
    checks = _of_unit(options.unit, user=options.user) if options.unit else all_checks()
    missing = [check for check in checks if check.verdict == MISSING]
    if options.json:
        print(json.dumps({"schema": 1, "verdict": _worst(checks), "checks": [check.facts() for check in checks]}))
    else:
        sys.stdout.write(describe(checks))
    sys.stdout.flush()
    return 3 if missing else 0


def _of_unit(unit: str, *, user: bool) -> list[Check]:
    from .units import checks

    name = unit if "." in unit else f"{unit}.service"
    return [Check(name, what, *answer) for what, answer in checks(name, user=user)]


def _worst(checks: list[Check]) -> str:
    found = {check.verdict for check in checks}
    return next((verdict for verdict in (MISSING, WARN) if verdict in found), OK)


def describe(checks: list[Check]) -> str:
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    area = ""
    for check in checks:
        if check.area != area:
            area = check.area
            lines.append(f"\n{area}\n" if lines else f"{area}\n")
        lines.append(f"  {_MARKS[check.verdict]}  {check.name:{width}}  {check.value}\n")
        lines.append(f"           {check.consequence}\n")
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in (OK, WARN, MISSING)}
    lines.append(f"\n{counts[OK]} ok, {counts[WARN]} with a warning, {counts[MISSING]} missing\n")
    return "".join(lines)
