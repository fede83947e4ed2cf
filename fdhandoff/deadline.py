"""A duration becomes a moment once, at the edge; from there on only the moment travels.

Moments are nanoseconds of ``CLOCK_MONOTONIC``, as the C core takes them.
"""

from __future__ import annotations

import time

FOREVER = 2**63 - 1

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


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
    """Seconds of ``500ms``, ``10s``, ``2m``, ``1h``, ``2m5s``; a bare number is seconds. ``ValueError`` otherwise."""
    rest, units, total = text.strip(), list(_UNITS), 0.0
    if _is_number(rest):
        return float(rest)
    while True:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("hms"))]
        if not _is_number(number) or unit not in units:
            raise ValueError(f"{text!r} is not a duration: say 500ms, 10s, 2m or a number of seconds")
        total += float(number) * _UNITS[unit]
        units = units[units.index(unit) + 1 :]  # from the largest to the smallest, each once
        rest = rest[len(unit) :]
        if not rest:
            return total


def _is_number(text: str) -> bool:
    """Digits, or digits, a point and digits. Without ``re``, which a master need not carry for this."""
    whole, point, fraction = text.partition(".")
    return text.isascii() and whole.isdigit() and (fraction.isdigit() or not point)


def format_duration(seconds: float) -> str:
    """``0.25`` → ``250ms``, ``10`` → ``10s``, ``125`` → ``2m5s``; ``parse_duration`` reads it again."""
    milliseconds = f"{round(seconds * 1000, 2):.3g}"
    if float(milliseconds) < 1000:
        return f"{milliseconds}ms"
    if float(f"{seconds:.3g}") < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if count)
