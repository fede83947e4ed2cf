"""A text that is shown again and again: in place on a terminal, else one after the other."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_SECONDS_MIN = 0.1  # more often nobody can read it, and whoever is asked has other things to do


def watch(text: Callable[[], str], seconds: float) -> int:
    """Until it is interrupted, which is how it ends well."""
    redraws = sys.stdout.isatty()
    drawn = 0
    try:
        while True:
            lines = text().splitlines()
            if redraws:
                lines = _fitting(lines)
                # Back to the first line of the last time; what was below it is wiped.
                sys.stdout.write((f"\x1b[{drawn}F" if drawn else "") + "\x1b[J")
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
            drawn = len(lines)
            time.sleep(max(seconds, _SECONDS_MIN))
    except KeyboardInterrupt:
        return 0


def _fitting(lines: list[str]) -> list[str]:
    """What would wrap or scroll could not be drawn over."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return lines
    return [line[: size.columns - 1] for line in lines[: size.lines - 1]] if size.columns and size.lines else lines
