"""The second half of ``run``: the master at work, and how its end is told."""

from __future__ import annotations

import os

from ..errors import HandoffError, SystemCallError, sentence
from ..master.config import Configuration
from ..master.toml import Reader, parse_elsewhere
from ..system import environment
from .outcome import NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, Failure, guarded, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def path_of(name: str) -> str:
    """Where the service called ``name`` is asked, unless something else was said."""
    from ..system.paths import default_path

    return default_path(name, os.environ)


def serve(configuration: Configuration) -> int:
    """To the end of the master."""
    from ..master.master import Master

    try:
        # Before anything of ours is opened that could be taken for one of them.
        came = environment.take_sockets(os.environ, os.getpid())
        return Master(configuration, say, came).run()
    except HandoffError as error:
        raise Failure(str(error), _code(error)) from error
    except (OSError, ValueError) as error:
        raise Failure(sentence(error), OWN_FAILURE) from error


def _code(error: HandoffError) -> int:
    if isinstance(error, SystemCallError) and error.call in ("execve", "exec"):
        return NOT_FOUND if error.errno == 2 else NOT_EXECUTABLE
    return OWN_FAILURE


def begin(
    command: list[str], given: dict[str, Any], file: str, recognised: Any, data: bytes | None, values: dict[str, Any]
) -> int:
    """In the interpreter that stays, with what the command line said, what is known of the command, and what the configuration
    file held a moment ago."""
    configuration = Configuration(command, given, file, path_of, Reader(parse_elsewhere, data, values))
    configuration.recognised = recognised
    return guarded("run", lambda: serve(configuration))
