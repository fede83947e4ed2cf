"""``adopt``: takes over from a running server that was never prepared for it, and goes on as ``run``."""

from __future__ import annotations

from ..master.config import ADOPTION
from . import run as running
from .outcome import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from .arguments import Parser

STARTS_A_COMMAND = True

EPILOG = """\
examples:
  fdhandoff-cli adopt --pid 4711 -- uvicorn app:app --fd 3
  fdhandoff-cli adopt --pid "$(cat /run/nginx.pid)" --bind http=0.0.0.0:80 --convention nginx -- nginx -g 'daemon off;'
  fdhandoff-cli adopt --pid 4711 --name app --ready http:/healthz --probation 30s -- ./server

The server's listeners are copied out of it (all that listen; with --bind only those that it means), the command is started with
them and must be ready; then it gets all new connections, the old server finishes what it has, and is asked to stop. It is the
command's no longer to be restarted: tell its supervisor. Whatever fails before that leaves the old server as it was.

All other options, signals and the exit status are those of run.
"""


def arguments(parser: Parser) -> None:
    running.add_settings(parser, ADOPTION)
    running.arguments(parser)


def run(options: Namespace) -> int:
    if not getattr(options, "pid", None):
        raise UsageError("say which server to adopt: --pid PID")
    return running.run(options)
