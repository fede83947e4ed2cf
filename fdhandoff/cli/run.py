"""``run``: the master. It binds, starts the command, and replaces it by its next release whenever it is asked."""

from __future__ import annotations

import os

from ..errors import HandoffError, SystemCallError
from ..master.options import KERNEL, SHARED, Options, parse_canary, parse_readiness
from .arguments import Parser, checked, duration
from .outcome import NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, Failure, UsageError, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

STARTS_A_COMMAND = True

EPILOG = """\
examples:
  fdhandoff-cli run --bind http=127.0.0.1:8000 -- uvicorn app:app --fd 3
  fdhandoff-cli run --bind 0.0.0.0:80 --ready http:/healthz --probation 30s -- gunicorn app:app
  fdhandoff-cli run --bind :8443 --canary 5%:60s,50%:60s -- ./server --listen-fd '{fd:listener0}'

The command gets its listeners from descriptor 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES set; {fd:NAME} in it is
replaced by a listener's number. HUP and USR2 upgrade; TERM, INT and QUIT drain and end, a second one hurries; others are
passed on.

exit status: the command's, 128 + N for signal N; 125 our own failure, 126 the command can't be executed, 127 it wasn't found.
"""

SECONDS = {
    "--ready-timeout": ("ready_timeout", 60.0, "how long a new generation may take to become ready (60s)"),
    "--settle": ("settle", 1.0, "how long the old generation goes on accepting after the switch (1s)"),
    "--probation": ("probation", 10.0, "how long the old generation stays to take the service back (10s)"),
    "--pre-stop-delay": ("pre_stop_delay", 0.0, "wait before a drain begins, for load balancers (0s)"),
    "--grace": ("grace", 30.0, "how long a drain may last (30s)"),
    "--kill-after": ("kill_after", 10.0, "from being told to stop to being killed (10s)"),
}


def arguments(parser: Parser) -> None:
    parser.add_argument(
        "--bind", metavar="[NAME=]ADDRESS", action="append", default=[],
        help="HOST:PORT, [v6]:PORT, :PORT, udp:…, unix:PATH, @abstract; may be repeated",
    )  # fmt: skip
    parser.add_argument("--name", help="the service's name (the command's)")
    parser.add_argument("--path", help="the handoff path, a Unix socket (NAME/handoff.sock in the runtime directory)")
    parser.add_argument("--workers", type=int, default=1, help="processes in a generation, sharing its queue (1)")
    parser.add_argument(
        "--switch", choices=(KERNEL, SHARED), default=KERNEL, help="an accept queue per generation, or one"
    )
    parser.add_argument(
        "--ready", type=checked(parse_readiness), default="accept",
        help="accept, notify, http:PATH, command:COMMAND or delay:SECONDS (accept)",
    )  # fmt: skip
    parser.add_argument("--check", default="", help="a command that must exit 0 before a new release is started")
    parser.add_argument(
        "--canary", type=checked(parse_canary), default=[], help="5%%:60s,50%%:60s: shares and durations"
    )
    for option, (name, default, help) in SECONDS.items():
        parser.add_argument(option, dest=name, type=duration, default=default, help=help)
    parser.add_argument("--drain-signal", default="", help="what tells the command to stop (TERM; QUIT for nginx, …)")
    parser.add_argument("--max-draining", type=int, default=3, help="old generations that may drain at once (3)")
    parser.add_argument(
        "--env", metavar="NAME=VALUE", action="append", default=[], help="set a variable; may be repeated"
    )
    parser.add_argument("--env-file", default="", help="NAME=VALUE lines, read again for each generation")
    parser.add_argument("--directory", default="", help="working directory, looked up again for each generation")


def run(options: Namespace) -> int:
    if not options.command:
        raise UsageError("say which command to run, after --")
    if options.workers < 1 or options.max_draining < 1:
        raise UsageError("--workers and --max-draining are 1 or more")
    chosen = _chosen(options)
    from ..master.master import Master

    try:
        return Master(lambda: chosen, say).run()
    except HandoffError as error:
        raise Failure(str(error), _code(error)) from error
    except (OSError, ValueError) as error:
        raise Failure(str(error), OWN_FAILURE) from error


def _chosen(options: Namespace) -> Options:
    from ..system.paths import default_path

    name = options.name or os.path.basename(options.command[0])
    values = {key: value for key, value in vars(options).items() if key not in ("bind", "command", "name", "path")}
    values["drain_signal"] = _signal_name(options.drain_signal)
    return Options(
        options.command,
        binds=options.bind,
        name=name,
        path=options.path or default_path(name, os.environ),
        **values,
    )


def _signal_name(text: str) -> str:
    import signal

    if not text:
        return ""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if not hasattr(signal, name):
        raise UsageError(f"{text!r} is no signal: say TERM, QUIT, USR1, …")
    return name


def _code(error: HandoffError) -> int:
    if isinstance(error, SystemCallError) and error.call in ("execve", "exec"):
        return NOT_FOUND if error.errno == 2 else NOT_EXECUTABLE
    return OWN_FAILURE
