"""``drain``: a service ends when nobody is connected to it any more."""

from __future__ import annotations

from .arguments import duration
from .steering import Steering, arguments_of, steer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from .arguments import Parser

EPILOG = """\
examples:
  fdhandoff-cli drain --name app --wait
  fdhandoff-cli drain --name app --grace 10m --wait

The same as TERM. Unlike `stop` it lets the processes be until the last of their connections is closed, idle ones included, or
--grace is over; then they are told to end. New connections are not accepted meanwhile where the listeners have a switch: take
the service out of its load balancer first. `hurry` or `stop` cuts it short. A process that lives by Service drains by its own
means.

exit status: 0 it drains (--wait: it has ended); 1 refused, or it has not ended in time; 2 wrong usage; 3 the system said no;
4 nobody serves there.
"""


def arguments(parser: Parser) -> None:
    arguments_of(parser, waits=True)
    parser.add_argument(
        "--grace",
        metavar="DURATION",
        type=duration,
        help="how long that may last (as the service was told); as in --grace 10m",
    )


def run(options: Namespace) -> int:
    body = {} if options.grace is None else {"grace": options.grace}
    return steer(options, Steering("drain", body, summary=lambda _: "draining", ended="drained, and ended"))
