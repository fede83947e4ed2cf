"""``hurry``: ends what drains, now."""

from __future__ import annotations

from .steering import Steering, arguments_of, steer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from .arguments import Parser

EPILOG = """\
examples:
  fdhandoff-cli hurry --name app
  fdhandoff-cli hurry /run/app/handoff.sock --json

Old generations that still drain are killed, and the connections that they have are cut; the one that serves is left alone.
Where the whole service drains or stops, it is ended.

exit status: 0 done; 1 refused; 2 wrong usage; 3 the system said no; 4 nobody serves there.
"""


def arguments(parser: Parser) -> None:
    arguments_of(parser)


def run(options: Namespace) -> int:
    return steer(options, Steering("hurry", summary=_summary))


def _summary(answer: dict[str, object]) -> str:
    ended = answer.get("ended")
    if not isinstance(ended, list):
        return "hurrying"
    if not ended:
        return "nothing drains"
    return f"ended: generation {', '.join(map(str, ended))}"
