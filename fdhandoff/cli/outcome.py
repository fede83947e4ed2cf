"""How a verb ends: its exit code, and its one sentence on standard error.

0 done; 1 refused or failed, whoever served before serves on; 2 wrong usage, nothing was tried; 3 the system said no; 4 nothing
serves. A verb that stands in for a command passes on the command's status instead, and its own failures are 125 (126 and 127:
the command can't be executed, wasn't found).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import HandoffError

DONE, REFUSED, USAGE, SYSTEM, NOTHING = 0, 1, 2, 3, 4
OWN_FAILURE, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
SIGNALLED = 128

PROGRAM = "fdhandoff-cli"


class UsageError(Exception):
    """The command line makes no sense; the message says what would."""


class Failure(Exception):
    """A verb's end with a sentence and an exit code of its own."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def say(sentence: str) -> None:
    """One line on standard error, by its own name; nobody may be listening there any more."""
    if sys.stderr is None:  # we were started without one
        return
    try:
        sys.stderr.write(f"{PROGRAM}: {sentence}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def guarded(verb: str, work: Callable[[], int]) -> int:
    """The exit code of ``work``, whatever it raises; no traceback but for a fault in this program."""
    try:
        return work()
    except UsageError as error:
        say(str(error))
        return USAGE
    except Failure as failure:
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:
        say(f"{verb} was interrupted")
        return SIGNALLED + 2
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain at exit, when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return SIGNALLED + 13
    except Exception as error:
        from ..errors import HandoffError, sentence

        if not isinstance(error, HandoffError):
            if not isinstance(error, (OSError, ImportError)):
                raise
            say(sentence(error))
            return SYSTEM
        say(str(error))
        return code_of(error)


def code_of(error: HandoffError) -> int:
    """The exit code of a verb that failed so."""
    from ..errors import NOBODY, EnvironmentInvalid, PathError, PathInUse, SystemCallError, Unsupported

    if error.serving == NOBODY:
        return NOTHING
    if isinstance(error, PathInUse):
        return REFUSED
    if isinstance(error, (SystemCallError, PathError, Unsupported, EnvironmentInvalid)):
        return SYSTEM
    return REFUSED
