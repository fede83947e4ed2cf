"""``stop``: a service ends, once what it has begun is finished or its grace period is over."""

from __future__ import annotations

from .steering import Steering, arguments_of, steer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from .arguments import Parser

EPILOG = """\
examples:
  fdhandoff-cli stop --name app --wait
  fdhandoff-cli stop --pid 4711 --wait --timeout 40s

Every process is told at once to finish and end, and killed when the grace period is over; a second stop does not wait for that.
Use `drain`, which is what TERM does, for a server that cuts its connections when it is told to end.

exit status: 0 it was told (--wait: it has ended); 1 refused, or it has not ended in time; 2 wrong usage; 3 the system said no;
4 nobody serves there.
"""


def arguments(parser: Parser) -> None:
    arguments_of(parser, waits=True)


def run(options: Namespace) -> int:
    return steer(options, Steering("stop", summary=lambda _: "stopping", ended="stopped"))
