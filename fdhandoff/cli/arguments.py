"""What verbs have in common on the command line: how it is read, and what is said of a mistake in it."""

from __future__ import annotations

import argparse
import os

from ..deadline import parse_duration
from ..system.access import parse_mode, parse_user
from .outcome import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse, whose mistakes are one sentence each and never end the process by themselves."""

    def __init__(self, program: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an option that is added later must not change what an old script says
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help explains it)")


def checked(read: Callable[[str], object]) -> Callable[[str], object]:
    """argparse shows only the messages of its own kind of error."""

    def converted(text: str) -> object:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


duration = checked(parse_duration)
octal_mode = checked(parse_mode)
uid = checked(parse_user)


def add_path(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", help="the handoff path, a Unix socket")
    parser.add_argument(
        "--name", help="the service's name, whose path lies in the runtime directory, instead of PATH; as in --name app"
    )


def add_json(parser: Parser, help: str = "print JSON (schema 1; keys are only ever added)") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def add_users(parser: Parser, whom: str) -> None:
    parser.add_argument(
        "--allow-uid",
        metavar="UID",
        type=uid,
        action="append",
        default=[],
        help=f"{whom}; may be repeated (none); as in --allow-uid www-data",
    )


def add_socket(parser: Parser, otherwise: str = "0600", group: str = "ours") -> None:
    parser.add_argument(
        "--socket-mode", metavar="MODE", type=octal_mode, help=f"permissions of the handoff path ({otherwise})"
    )
    parser.add_argument("--socket-group", metavar="GROUP", help=f"group of the handoff path ({group})")


def chosen_path(options: argparse.Namespace, *, create: bool) -> str:
    """The handoff path that ``PATH`` or ``--name`` says; ``create`` makes the runtime directory."""
    if (options.path is None) == (options.name is None):
        raise UsageError("say either a handoff PATH or --name NAME")
    if options.path is not None:
        if not options.path:
            raise UsageError("the handoff PATH is empty: name a file")
        return str(options.path)
    from ..system.paths import default_path

    try:
        return default_path(options.name, os.environ, create=create)
    except ValueError as error:
        raise UsageError(str(error)) from None
