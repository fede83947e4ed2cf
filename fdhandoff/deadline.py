"""A duration becomes a moment once, at the edge; from there on only the moment travels.

Moments are nanoseconds of ``CLOCK_MONOTONIC``, as the C core takes them.
"""

from __future__ import annotations

import re
import time

FOREVER = 2**63 - 1

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)\Z")


def after(seconds: float | None) -> int:
    """The moment ``seconds`` from now; ``None`` means never."""
    if seconds is None:
        return FOREVER
    if not seconds >= 0:  # also refuses NaN
        raise ValueError(f"a timeout is 0 or more seconds, or None, not {seconds!r}")
    return min(time.monotonic_ns() + int(min(seconds, 1e9) * 1e9), FOREVER)


def remaining(moment: int) -> float | None:
    """Seconds until ``moment``, never negative; ``None`` when it never comes."""
    if moment == FOREVER:
        return None
    return max(0.0, (moment - time.monotonic_ns()) / 1e9)


def passed(moment: int) -> bool:
    return moment != FOREVER and time.monotonic_ns() >= moment


def parse_duration(text: str) -> float:
    """Seconds of ``500ms``, ``10s``, ``2m``, ``1h``; a bare number is seconds. ``ValueError`` otherwise."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: say 500ms, 10s, 2m or a number of seconds")
    return float(match[1]) * _UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """``0.25`` → ``250ms``, ``10`` → ``10s``, ``125`` → ``2m5s``."""
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if rest else f"{minutes}m"
