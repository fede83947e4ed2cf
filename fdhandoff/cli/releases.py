"""``releases``: what a service under ``run --watch`` knows of its releases."""

from __future__ import annotations

import time

from ..deadline import format_duration
from .steering import Steering, arguments_of, steer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from .arguments import Parser

EPILOG = """\
examples:
  fdhandoff-cli releases --name app
  fdhandoff-cli releases --name app --look
  fdhandoff-cli releases --name app --json

The newest is first. Any that is still there can be upgraded to (upgrade --to TAG), also one that failed.

exit status: 0 told; 1 the service watches for no releases; 2 wrong usage; 3 the system said no; 4 nobody serves there.
"""


def arguments(parser: Parser) -> None:
    arguments_of(parser)
    parser.add_argument(
        "--look",
        action="store_true",
        help="look for a new one now, and return when it serves, has failed, or has to wait",
    )


def run(options: Namespace) -> int:
    return steer(options, Steering("releases", {"look": True} if options.look else {}, summary=_table))


def _table(answer: dict[str, Any]) -> str:
    watch = answer["watch"]
    rows = [[f"{watch['source']}:", _looked(watch)]]
    for one in answer["releases"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at"]))
        numbers = f"generation {', '.join(map(str, one['generations']))}" if one["generations"] else ""
        gone = "" if one["place"] else "its files are gone"
        fate = f"{one['fate']} because {one['reason']}" if one["reason"] else one["fate"]
        rows.append([one["tag"], "  ".join(filter(None, [when, fate, numbers, gone]))])
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _looked(watch: dict[str, Any]) -> str:
    when = f"looks now: {watch['doing']}" if watch.get("doing") else "not looked at yet"
    if watch["looked"] is not None and not watch.get("doing"):
        when = f"looked at {format_duration(round(max(0.0, time.time() - watch['looked']), 0))} ago"
    return "; ".join(filter(None, (when, watch["problem"], watch["waits"])))
