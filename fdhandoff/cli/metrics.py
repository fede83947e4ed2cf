"""``metrics``: what a running service counts, as Prometheus reads it."""

from __future__ import annotations

import sys

from ..metrics import exposition
from .arguments import Parser, add_users, duration
from .asking import ask
from .target import add_target, chosen_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

EPILOG = """\
examples:
  fdhandoff-cli metrics --name app
  fdhandoff-cli metrics --path /run/app/handoff.sock > /var/lib/node_exporter/app.prom.new

The same text is at /metrics of the address that run --health and Service(health=...) name.

exit status: 0 printed; 1 whoever serves refuses to say; 3 the path can't be used; 4 nobody serves there.
"""


def arguments(parser: Parser) -> None:
    add_target(parser)
    add_users(parser, "an owner besides us and root whose answer is believed")
    parser.add_argument(
        "--timeout", type=duration, default=5.0, help="how long to wait for the answer (5s); as in --timeout 1s"
    )


def run(options: Namespace) -> int:
    answer = ask(chosen_target(options), "status", timeout=options.timeout, allow_uids=options.allow_uid)
    sys.stdout.write(exposition(answer))
    sys.stdout.flush()
    return 0
