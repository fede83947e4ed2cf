"""The command line: one verb, one file, imported when it is asked for.

A verb's module has ``EPILOG`` (its examples), ``arguments(parser)`` and ``run(options) -> int``. What a verb raises becomes one
sentence on standard error and an exit code: see ``outcome`` and docs/reference/cli.md.
"""

from __future__ import annotations

import sys

from .outcome import PROGRAM, USAGE, guarded, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

VERBS = {
    "take": "take a running service over and start a command that serves it",
    "hold": "bind listeners and keep them alive for whoever takes them",
    "run": "run a command as a service that can be upgraded without a failed request",
    "adopt": "take over from a server that was never prepared for it, and go on as run",
    "pidproxy": "keep one pid in front of a program that replaces itself",
    "upgrade": "replace a running service by its next release",
    "deploy": "start a service where it isn't running, and upgrade it where it is",
    "rollback": "go back to the generation before",
    "releases": "list what releases there are, and what became of each",
    "drain": "end a service when nobody is connected to it any more",
    "stop": "end a service in good order",
    "hurry": "end at once what drains",
    "status": "say who serves at a handoff path, and how",
    "metrics": "print what a running service counts, as Prometheus reads it",
    "unit": "print what a service manager needs to run such a service",
    "doctor": "say what this machine can do, and what that means",
}

HELP = f"""\
usage: {PROGRAM} VERB …

Replace a running network server without losing a connection.

verbs:
{{verbs}}

{PROGRAM} VERB --help tells the options of a verb, with examples; --version the release.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``argv`` (default: the process's own) and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else ""
    if verb in ("-h", "--help", "help") and len(words) == 1:
        return _print(_usage())
    if verb == "help":
        words = [words[1], "--help"]
        verb = words[0]
    if verb in ("-V", "--version"):
        from .. import __version__

        return _print(f"{PROGRAM} {__version__}\n")
    if verb not in VERBS:
        what = f"there is no verb {verb!r}" if verb else "say what to do"
        say(f"{what}: one of {', '.join(VERBS)} ({PROGRAM} --help explains them)")
        return USAGE
    return guarded(verb, lambda: _run(verb, words[1:], own_process=argv is None))


def _run(verb: str, words: list[str], *, own_process: bool) -> int:
    from importlib import import_module

    from .arguments import Parser

    module: ModuleType = import_module(f".{verb}", __name__)
    command: list[str] | None = None
    if getattr(module, "STARTS_A_COMMAND", False) and "--" in words:
        # Split here: what follows is the command's, whatever it looks like.
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    parser = Parser(f"{PROGRAM} {verb}", f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}.", module.EPILOG)
    module.arguments(parser)
    options = parser.parse_args(words)
    options.command = command
    options.own_process = own_process
    return int(module.run(options))


def _usage() -> str:
    width = max(map(len, VERBS))
    return HELP.format(verbs="\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items()))


def _print(text: str) -> int:
    sys.stdout.write(text)
    return 0
