"""JSON, as ``json`` reads and writes it, without the regular expressions that ``json`` brings along and that only malformed
text needs: 0.4 MiB of a process that stays. Where the interpreter lacks the C half of ``json``, it is ``json`` itself.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLANK = " \t\n\r"


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unknown(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON: {value!r}")


class _Settings:
    """What a scanner asks for: nothing out of the ordinary."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_number)


def _c_half() -> tuple[Any, Any]:
    """The scanner and the encoder."""
    if hasattr(sys, "gettotalrefcount"):
        return None, None  # a debug build: see ``loads``
    try:
        import _json

        scanner: Any = _json.make_scanner
        encoder: Any = _json.make_encoder
        write = encoder(None, _unknown, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
        return scanner(_Settings()), write
    except (ImportError, AttributeError, TypeError):
        return None, None  # no CPython, or one to come


_scan, _encode = _c_half()


def dumps(value: Any) -> str:
    """The shortest text; ASCII. ``TypeError`` or ``ValueError`` for what has none."""
    if _encode is not None:
        return "".join(_encode(value, 0))
    import json

    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """``ValueError`` with what is wrong in it. Bytes are UTF-8."""
    if isinstance(text, bytes):
        text = text.decode()
    try:
        if _scan is not None:
            try:
                value, end = _scan(text, len(text) - len(text.lstrip(_BLANK)))
                if not text[end:].strip(_BLANK):
                    return value
            except (StopIteration, ValueError, SystemError):
                # ``json`` says where it is wrong. Before Python 3.12 its C half can't even raise its error while the other half
                # is not loaded, and the interpreter notices that (a debug build ends by it).
                pass
        import json

        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
