"""What a service manager is to run, whichever it is: the words of ``fdhandoff-cli run``, who runs it, and how long its end may
take. And what is written for it: files.
"""

from __future__ import annotations

import math
import os
import re
import shlex

from ..system.sockets import parse_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..master.options import Options

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}|[0-9]{1,10}")
# A year: for managers that know no "for ever".
FOREVER_SECONDS = 31_536_000
# From the last KILL to the end of the master, on a busy machine.
_MARGIN_SECONDS = 5.0
_START_MARGIN_SECONDS = 30.0


class File:
    """``name`` below ``directory``, where the manager looks for it by default."""

    __slots__ = ("directory", "mode", "name", "text")

    def __init__(self, directory: str, name: str, text: str, mode: int = 0o644) -> None:
        self.directory = directory
        self.name = name
        self.text = text
        self.mode = mode

    @property
    def path(self) -> str:
        return os.path.join(self.directory, self.name)


class Plan:
    """``program``: the words that start ``fdhandoff-cli``; ``words``: the options of ``run`` as they were said, without the
    name and the listeners; ``binds``: those; ``options``: all of it, read, what a configuration file says included. ``stop``:
    seconds that the manager must wait before it kills (``None``: for ever).
    """

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        words: Sequence[str],
        command: Sequence[str],
        options: Options,
        *,
        stop: float | None,
        binds: Sequence[str] = (),
        user: str = "",
        group: str = "",
        socket: bool = False,
        image: str = "",
        replicas: int = 1,
    ) -> None:
        self.name = name
        self.program = list(program)
        self.words = list(words)
        self.command = list(command)
        self.options = options
        self.stop = stop
        self.binds = list(binds)
        self.user = user
        self.group = group
        self.socket = socket
        self.image = image
        self.replicas = replicas

    @property
    def path(self) -> str:
        """Of the handoff socket: as it was said, else in a directory of the service's own."""
        return self.options.path or f"/run/{self.name}/handoff.sock"

    def run(self, *more: str) -> list[str]:
        """All of the command line."""
        binds = [] if self.socket else [word for text in self.binds for word in ("--bind", text)]
        words = [*self.program, "run", "--name", self.name, *more, *binds, *self.words]
        return [*words, "--", *self.command] if self.command else words

    def verb(self, verb: str, *more: str) -> list[str]:
        """Another verb for the same service, by root or its own user."""
        target = ["--path", self.options.path] if self.options.path else ["--name", self.name]
        return [*self.program, verb, *target, *more]

    def ports(self) -> list[tuple[str, int]]:
        """``tcp`` or ``udp``, and the number. ``ValueError`` for one that only the kernel would choose."""
        found = []
        for text in self.options.binds:
            bind = parse_bind(text)
            if bind.kind in ("tcp", "udp"):
                if not bind.port:
                    raise ValueError(f"{text} has no port that others could be told: say one")
                found.append((bind.kind, bind.port))
        return found

    @property
    def stop_seconds(self) -> int:
        return FOREVER_SECONDS if self.stop is None else math.ceil(self.stop)

    @property
    def upgrade_seconds(self) -> int:
        """The longest time from the wish to upgrade to the end of probation."""
        options = self.options
        canary = sum(step.seconds for step in options.canary)
        return math.ceil(options.ready_timeout + canary + options.settle + options.probation + _START_MARGIN_SECONDS)


def stop_after(options: Options) -> float | None:
    """The longest that the service takes to end in good order: a manager that kills it sooner cuts connections."""
    if options.grace is None:
        return None
    return options.pre_stop_delay + options.grace + options.kill_after + _MARGIN_SECONDS


# --- what may be written ------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """``ValueError`` unless every service manager can have a service of that name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} can't name a service everywhere: say letters, digits, '-', '_' and '.', at most 63 and not beginning "
            "with a mark"
        )
    return name


def check_user(name: str) -> str:
    """``ValueError`` unless it can be a user's or a group's name, or number."""
    if not _USER.fullmatch(name):
        raise ValueError(f"{name!r} is no user or group")
    return name


def check_words(words: Sequence[str], manager: str, *, lines: bool = False) -> None:
    """``ValueError`` for what ``manager``'s configuration can't hold. ``lines``: it can hold words of several lines."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{word!r} is not UTF-8: {manager} is not given that") from None
        if "\n" in word and not lines:
            raise ValueError(f"{word!r} has several lines, and {manager} knows only one: put it into a script")
        if any(ord(letter) < 32 and letter not in "\n\t" for letter in word) or "\x7f" in word:
            raise ValueError(f"{word!r} has a control character: {manager} is not given that")


def shell(words: Sequence[str]) -> str:
    """One line for a shell."""
    return " ".join(map(shlex.quote, words))


def comment(text: str, mark: str = "#") -> str:
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in text.splitlines())
