"""``take``: takes a running service over, starts a command that serves it, and stays as the command's parent, until the command
ends or somebody else has taken the service from here.
"""

from __future__ import annotations

from ..errors import HandoffError
from . import command
from .arguments import Parser, add_json, add_path, add_socket, add_users, checked, chosen_path, duration
from .hearing import Hearing, Interrupted, forwardable
from .outcome import OWN_FAILURE, SIGNALLED, Failure
from .readiness import parse_ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

STARTS_A_COMMAND = True

EPILOG = """\
The command finds the listeners as descriptors 3, 4, … and LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES in its environment; in its
arguments {fd:NAME} becomes the number of the listener NAME. It needs to know nothing else. Until the commit the old command
accepts beside it. When the next one takes from here, this command gets the drain signal after the commit and its probation.

examples:
  fdhandoff-cli take /run/app/handoff.sock -- ./server
  fdhandoff-cli take --name app --ready notify -- gunicorn app:wsgi
  fdhandoff-cli take --name app -- uvicorn --fd '{fd:http}' app:asgi
  fdhandoff-cli take --name app --ready delay:3s --drain-signal QUIT --grace 2m -- nginx -c nginx.conf

exit status: the command's own, 128 + N when signal N killed it; 2 wrong usage; 125 nothing was taken over, or another
failure of take itself (the sentence on standard error says who serves); 126 the command can't be executed; 127 it wasn't
found.
"""


def arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s [option ...] (PATH | --name NAME) -- COMMAND [argument ...]"
    add_path(parser)
    parser.add_argument(
        "--timeout", type=duration, default=30.0, help="how long to wait for an owner that offers (30s)"
    )
    parser.add_argument(
        "--ready",
        metavar="WAY",
        type=checked(parse_ready),
        default=("auto", 0.0),
        help="when the command is ready: notify (it says READY=1 to NOTIFY_SOCKET), accept (it is seen to accept from or to "
        "poll its listeners), delay:DURATION; auto: notify or accept, whichever comes first, and where it can't be looked "
        "into delay:1s (auto)",
    )
    parser.add_argument(
        "--ready-timeout", type=duration, default=60.0, help="how long it may take, here and for the next taker (60s)"
    )
    parser.add_argument(
        "--probation",
        type=duration,
        default=5.0,
        help="how long this command serves on beside the next taker's, in case that one fails (5s)",
    )
    parser.add_argument(
        "--drain-signal",
        metavar="SIGNAL",
        type=checked(command.parse_signal),
        default=15,
        help="what tells the command to finish once somebody else serves (TERM)",
    )
    parser.add_argument(
        "--grace", type=duration, default=30.0, help="how long it may take to finish before it is killed (30s)"
    )
    parser.add_argument("--state-out", metavar="FILE", help="write the application's state that came along to FILE")
    add_users(parser, "a user besides us and root from whom we take, and who may take from us")
    add_socket(parser, "as it is", "as it is")
    add_json(parser, "say what happens in JSON, one object a line on standard error")


def run(options: Namespace) -> int:
    words = command.must_have(options.command)
    path = chosen_path(options, create=False)
    command.check(words)
    from ..takeover import receive
    from .taking import Taking

    try:
        with Hearing(forwardable()) as hearing:
            try:
                hearing.interrupt = True
                takeover = receive(path, timeout=options.timeout, allow_uids=options.allow_uid)
                hearing.interrupt = False
            except Interrupted as interrupted:
                raise Failure(
                    f"stopped by signal {interrupted.number} before anything was taken over",
                    SIGNALLED + interrupted.number,
                ) from None
            taking = Taking(takeover, words, options, hearing)
            try:
                return taking.run()
            finally:
                taking.close()
    except HandoffError as error:
        raise Failure(str(error), OWN_FAILURE) from None
    except OSError as error:
        raise Failure(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", OWN_FAILURE
        ) from None
