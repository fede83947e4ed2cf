"""``run``: the master. It binds, starts the command, and replaces it by its next release whenever it is asked."""

from __future__ import annotations

import argparse
import errno
import os
from functools import partial

from ..errors import HandoffError, sentence
from ..master.config import ADOPTION, SETTINGS, Configuration
from ..master.resume import STATE
from ..system.fds import open_standard
from ..system.logfile import reopen
from .arguments import Parser, checked
from .outcome import OWN_FAILURE, Failure, UsageError
from .serving import path_of, serve
from .staying import stay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from ..master.config import Setting

STARTS_A_COMMAND = True

EPILOG = """\
examples:
  fdhandoff-cli run --bind http=127.0.0.1:8000 -- uvicorn app:app --fd 3
  fdhandoff-cli run --bind 0.0.0.0:80 --ready http:/healthz --probation 30s -- gunicorn app:app
  fdhandoff-cli run --bind :8443 --canary 5%:60s,50%:60s -- ./server --listen-fd '{fd:listener0}'
  fdhandoff-cli run --bind 0.0.0.0:80 --check 'nginx -t' -- nginx -g 'daemon off;'
  fdhandoff-cli run --name web --bind :8000 --watch 'pypi:web>=2,<3' --verify checksum -- '{release}/bin/web'
  fdhandoff-cli run --config /etc/app/run.toml
  fdhandoff-cli run --daemon --log /var/log/app.log --pidfile /run/app.pid --user www-data --bind :80 -- ./server

The command gets its listeners from descriptor 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES set; {fd:NAME} in it is
replaced by a listener's number. HUP and USR2 upgrade; TERM, INT and QUIT drain, a second one hurries; TTIN and TTOU make it one
worker more or less; USR1 and WINCH are passed on.

exit status: the command's, 128 + N for signal N; 2 wrong usage; 125 our own failure, 126 the command can't be executed, 127 it
wasn't found.
"""


def arguments(parser: Parser) -> None:
    add_settings(parser, SETTINGS)
    parser.add_argument(
        "--daemon", action="store_true",
        help="go into the background, with --log; returns when the service is ready, or with its start-up error and status",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE", default="",
        help=help_of("TOML with these options' names as keys, and command; read again at each upgrade", "none",
                     "--config /etc/app/run.toml"),
    )  # fmt: skip


def add_settings(parser: Parser, settings: Sequence[Setting]) -> None:
    for setting in settings:
        if setting.flag:
            parser.add_argument(
                f"--{setting.name}", dest=setting.name, action="store_const", const="true", default=argparse.SUPPRESS,
                help=f"{setting.help} ({setting.default})",
            )  # fmt: skip
            continue
        parser.add_argument(
            f"--{setting.name}",
            dest=setting.name,
            metavar=setting.metavar,
            type=checked(partial(_readable, setting)),
            # Only what was said counts more than the configuration file.
            default=argparse.SUPPRESS,
            help=help_of(setting.help, setting.default, f"--{setting.name} {setting.example}", repeat=setting.repeat),
            **({"action": "append"} if setting.repeat else {}),  # type: ignore[arg-type]
        )


def _readable(setting: Setting, text: str) -> str:
    """It is read again by the process that stays."""
    setting.read(text)
    return text


def help_of(text: str, default: str, example: str, *, repeat: bool = False) -> str:
    again = "; may be repeated" if repeat else ""
    return f"{text}{again} ({default}); as in {example}".replace("%", "%%")


def run(options: Namespace) -> int:
    open_standard()
    names = {setting.name for setting in [*SETTINGS, *ADOPTION]}
    given = {name: value for name, value in vars(options).items() if name in names}
    configuration = Configuration(options.command or [], given, options.config, path_of)
    try:
        chosen = configuration()
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {error.filename}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        if isinstance(error, HandoffError) or error.errno in (errno.EMFILE, errno.ENFILE):
            raise Failure(sentence(error), OWN_FAILURE) from error
        raise UsageError(sentence(error)) from None
    except HandoffError as error:
        raise Failure(str(error), OWN_FAILURE) from error
    if STATE in os.environ:
        pass  # we take a master's place: it is in the background already, and its log is ours
    elif options.daemon:
        from .detaching import detach  # late: most masters stay in the foreground

        given["ready-fd"] = str(detach(chosen))
        known = configuration.recognised
        configuration = Configuration(options.command or [], given, options.config, path_of)
        configuration.recognised = known
    elif chosen.log:
        try:
            reopen(chosen.log)
        except HandoffError as error:
            raise Failure(str(error), OWN_FAILURE) from None
    if options.own_process:
        stay(configuration)
    return serve(configuration)
