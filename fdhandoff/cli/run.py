"""``run``: the master. It binds, starts the command, and replaces it by its next release whenever it is asked."""

from __future__ import annotations

import argparse
import os

from ..errors import HandoffError, SystemCallError
from ..master.config import SETTINGS, Configuration
from ..system import environment
from .arguments import Parser, checked
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
  fdhandoff-cli run --bind :80 --convention nginx --check 'nginx -t' -- nginx -g 'daemon off;'
  fdhandoff-cli run --config /etc/app/run.toml

The command gets its listeners from descriptor 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES set; {fd:NAME} in it is
replaced by a listener's number. HUP and USR2 upgrade; TERM, INT and QUIT drain, a second one hurries; TTIN and TTOU make it one
worker more or less; USR1 and WINCH are passed on.

exit status: the command's, 128 + N for signal N; 2 wrong usage; 125 our own failure, 126 the command can't be executed, 127 it
wasn't found.
"""


def arguments(parser: Parser) -> None:
    for setting in SETTINGS:
        parser.add_argument(
            f"--{setting.name}",
            dest=setting.attribute,
            metavar=setting.metavar,
            type=checked(setting.read),
            # Only what was said counts more than the configuration file.
            default=argparse.SUPPRESS,
            help=help_of(setting.help, setting.default, f"--{setting.name} {setting.example}", repeat=setting.repeat),
            **({"action": "append"} if setting.repeat else {}),  # type: ignore[arg-type]
        )
    parser.add_argument(
        "--config", metavar="FILE", default="",
        help=help_of("TOML with these options' names as keys, and command; read again at each upgrade", "none",
                     "--config /etc/app/run.toml"),
    )  # fmt: skip


def help_of(text: str, default: str, example: str, *, repeat: bool = False) -> str:
    again = "; may be repeated" if repeat else ""
    return f"{text}{again} ({default}); as in {example}".replace("%", "%%")


def run(options: Namespace) -> int:
    from ..system.paths import default_path

    given = {key: value for key, value in vars(options).items() if key not in ("command", "config")}
    configuration = Configuration(
        options.command or [], given, options.config, lambda name: default_path(name, os.environ)
    )
    try:
        configuration()
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {error.filename}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    except HandoffError as error:
        raise Failure(str(error), OWN_FAILURE) from error
    from ..master.master import Master

    try:
        # Before anything of ours is opened that could be taken for one of them.
        came = environment.take_sockets(os.environ, os.getpid())
        return Master(configuration, say, came).run()
    except HandoffError as error:
        raise Failure(str(error), _code(error)) from error
    except (OSError, ValueError) as error:
        raise Failure(str(error), OWN_FAILURE) from error


def _code(error: HandoffError) -> int:
    if isinstance(error, SystemCallError) and error.call in ("execve", "exec"):
        return NOT_FOUND if error.errno == 2 else NOT_EXECUTABLE
    return OWN_FAILURE
