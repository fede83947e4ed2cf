"""``rollback``: back to the generation before, while it is still there."""

from __future__ import annotations

from .steering import Steering, arguments_of, steer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from .arguments import Parser

EPILOG = """\
examples:
  fdhandoff-cli rollback --name app
  fdhandoff-cli rollback --pid 4711

An upgrade that is under way is taken back, also in its probation. After that there is something to go back to where `run` was
told to keep the old generation for a while (--keep-old), or watches for releases (--watch): then the last one that served well
is started again, also long after. New connections go back at once; those that the new generation has
accepted are finished by it.

exit status: 0 the old generation serves; 1 there is nothing to go back to; 2 wrong usage; 3 the system said no; 4 nobody serves
there.
"""


def arguments(parser: Parser) -> None:
    arguments_of(parser)


def run(options: Namespace) -> int:
    return steer(options, Steering("rollback", summary=_summary))


def _summary(answer: dict[str, object]) -> str:
    upgrade = answer.get("upgrade")
    if not isinstance(upgrade, dict):
        return "rolled back"
    if upgrade["result"] == "done":  # by an upgrade to the release before
        return f"rolled back: generation {upgrade['to']} serves, of release {upgrade['release']}"
    # An upgrade that was taken back says from where it wanted to go; a rollback afterwards, from where it went.
    number = upgrade["to"] if upgrade["to"] < upgrade["from"] else upgrade["from"]
    return f"rolled back: generation {number} serves"
