"""``pidproxy``: one stable pid for a supervisor, in front of a program that replaces itself."""

from __future__ import annotations

import os

from ..errors import HandoffError
from ..pidproxy import Proxy
from ..system import environment
from ..system.fds import is_open
from ..system.process import find_program
from ..system.processes import become_subreaper
from . import command
from .arguments import Parser, checked, duration
from .hearing import forwardable
from .outcome import OWN_FAILURE, Failure, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from ..system.process import Process

STARTS_A_COMMAND = True

EPILOG = """\
For programs that upgrade themselves by starting a successor and ending (nginx and gunicorn on USR2, servers of the endless
kind), or that put themselves into the background: whoever started this sees one process, whose pid never changes. It gets the
command's signals and passes them on to the process that is the service now; it ends when the service does, with its status.

TERM, INT and QUIT go to every main process, old ones that drain included, and this ends when the last descendant has. All other
signals go to the current one alone (--to-all names exceptions).

examples:
  fdhandoff-cli pidproxy --pidfile /run/nginx.pid -- nginx -c /etc/nginx/nginx.conf
  fdhandoff-cli pidproxy --kill-after 25s -- ./endless-server
  fdhandoff-cli pidproxy --pidfile app.pid --to-all USR1 -- gunicorn --pid app.pid app:app

exit status: that of the last main process, 128 + N when signal N killed it; 2 wrong usage; 125 our own failure, or the status
is not known; 126 the command can't be executed; 127 it wasn't found.
"""


def arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s [option ...] -- COMMAND [argument ...]"
    parser.add_argument(
        "--pidfile",
        metavar="FILE",
        default="",
        help="the program's own pidfile, which says which process is the service; it need not exist (none: descent tells); "
        "as in --pidfile /run/nginx.pid",
    )
    parser.add_argument(
        "--kill-after",
        metavar="DURATION",
        type=duration,
        default=None,
        help="from the first TERM, INT or QUIT to the end of all that still lives (never); as in --kill-after 25s",
    )
    parser.add_argument(
        "--to-all",
        metavar="SIGNAL",
        type=checked(command.parse_signal),
        action="append",
        default=[],
        help="a signal for every main process, the old ones that drain, too; may be repeated (TERM, INT and QUIT); as in "
        "--to-all USR1",
    )


def run(options: Namespace) -> int:
    words = command.must_have(options.command, "say what to start: -- COMMAND…")
    command.check(words)
    proxy = Proxy(
        say,
        forwarded=forwardable(),
        pidfile=options.pidfile,
        kill_after=options.kill_after,
        to_all=options.to_all,
    )
    try:
        become_subreaper()
        return command.code_of(proxy.run(lambda: _start(words)))
    except HandoffError as error:
        raise Failure(str(error), OWN_FAILURE) from None


def _start(words: list[str]) -> Process:
    """As if nobody stood in between: with our environment and our descriptors, also those of a socket unit. In a process group
    of its own, so that a signal to ours reaches it once, through us."""
    environ = dict(os.environ)
    fds = {fd: fd for fd in (0, 1, 2) if is_open(fd)}
    passed = [fd for _, fd in environment.take(environ, os.getpid())]
    if passed:
        environ.update({name: os.environ[name] for name in environment.LISTEN if name in os.environ})
        fds.update({fd: fd for fd in passed})
    # Programs execute their argv[0] again when they upgrade (nginx as it stands), whatever their directory is by then.
    program = os.path.abspath(find_program(words[0], environ))
    return command.launch([program, *words[1:]], fds=fds, environ=environ)
