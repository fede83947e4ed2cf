"""A master's status as a table, for somebody who was woken up by it."""

from __future__ import annotations

import time

from ..deadline import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_SHOWN_ENDED = 3
_SHOWN_LINES = 5
_INDENT = 14

_STATES = {
    "starting": "starting: nothing serves yet",
    "upgrading": "upgrading: see the last upgrade below",
    "draining": "draining: it ends when nobody is connected any more",
    "stopping": "stopping",
}


def overview(answer: dict[str, Any], now: float) -> str:
    master = answer["master"]
    lines = [
        ("service", str(answer.get("service", ""))),
        ("path", str(answer.get("path", ""))),
        ("master", f"pid {master['pid']}, version {master['version']}, for {age(now - master['since'])}"),
        ("state", _state(answer)),
    ]
    lines += _block("listeners", _listeners(answer.get("listeners") or ()))
    lines += _block("generations", _generations(answer.get("generations") or (), now))
    lines += _block("last upgrade", last_upgrade(answer.get("last_upgrade"), now))
    counters = answer.get("counters") or {}
    lines.append(("counters", ", ".join(f"{value} {name}" for name, value in counters.items()) or "none"))
    return "".join(f"{word:{_INDENT - 1}} {text}".rstrip() + "\n" for word, text in lines)


def age(seconds: float) -> str:
    """``5d2h``, ``3m12s``: two units are enough."""
    seconds = max(0, int(seconds))
    for unit, size, small, smaller in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size}{unit}{f'{rest}{small}' if rest else ''}"
    return f"{seconds}s"


def _state(answer: dict[str, Any]) -> str:
    state = str(answer.get("state", "unknown"))
    return f"serving: generation {answer.get('generation')}" if state == "serving" else _STATES.get(state, state)


def _block(word: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if index else word, text) for index, text in enumerate(texts or ["none"])]


def _table(rows: list[list[str]], right: Sequence[int] = ()) -> list[str]:
    """Aligned columns; those in ``right`` hold numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _listeners(listeners: Sequence[dict[str, Any]]) -> list[str]:
    rows = [["name", "address", "switch", "waiting", "room"]]
    rows += [[_cell(one.get(key)) for key in ("name", "address", "switch", "queue", "backlog")] for one in listeners]
    return _table(rows, right=(3, 4)) if listeners else []


def _generations(generations: Sequence[dict[str, Any]], now: float) -> list[str]:
    ended = [one for one in generations if one.get("state") == "ended"]
    shown = sorted((one for one in generations if one not in ended[:-_SHOWN_ENDED]), key=lambda one: one["number"])
    named = any(one.get("release") for one in shown)
    rows = [["", "state", *["release"] * named, "pids", "age", "connected", "share", "until"]]
    for one in shown:
        over = one.get("state") == "ended"
        rows.append(
            [
                _cell(one.get("number")),
                _cell(one.get("state")),
                *[_cell(one.get("release"))] * named,
                _pids(one.get("pids") or ()) or _how(one.get("exit")),
                "" if over else age(now - one.get("since", now)),
                "" if over else _cell(one.get("active")),
                "" if over else f"{100 * (one.get('share') or 0):.3g}%",
                "" if one.get("deadline") is None else f"{format_duration(round(one['deadline'], 1))} left",
            ]
        )
    return _table(rows, right=(0, 4 + named, 5 + named)) if generations else []


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _pids(pids: Sequence[int]) -> str:
    text = ", ".join(map(str, pids[:4]))
    return f"{text}, … ({len(pids)})" if len(pids) > 4 else text


def _how(ended: dict[str, Any] | None) -> str:
    if not ended:
        return "-"
    if ended.get("signal"):
        return f"signal {ended['signal']}"
    return "unseen" if ended.get("status") is None else f"exit {ended['status']}"


def last_upgrade(last: dict[str, Any] | None, now: float) -> list[str]:
    """Its outcome and its steps, a line each."""
    if not last:
        return []
    text = f"generation {last.get('from')} to {last.get('to')}: {last.get('result')}"
    if last.get("release"):
        text = f"release {last['release']}, {text}"
    if last.get("step"):
        text += f", at {last['step']}{' (held)' if last.get('held') else ''}"
    if isinstance(last.get("seconds"), (int, float)):
        text += f", {'for' if last.get('step') else 'in'} {format_duration(last['seconds'])}"
    if isinstance(last.get("at"), (int, float)):
        text += f", at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(last['at']))} ({age(now - last['at'])} ago)"
    lines = [text]
    if last.get("reason"):
        lines.append(str(last["reason"]))
    lines += [f"| {line}" for line in (last.get("last_lines") or ())[-_SHOWN_LINES:]]
    steps = ", ".join(f"{step['step']} {format_duration(step['seconds'])}" for step in last.get("steps") or ())
    return [*lines, steps] if steps else lines
