"""What the state of a master looks like, and what is wrong with one that does not: another release may have written it, or
a hand."""

from __future__ import annotations

import signal
from math import inf

from .keeping import KEPT
from .options import KERNEL, SHARED
from .outlet import RENAME
from .run import CANARY, DRAINING, ENDED, PROBATION, SERVING, STARTING, STOPPING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NUMBER = (int, float)
_STATES = (STARTING, CANARY, SERVING, PROBATION, KEPT, DRAINING, STOPPING, ENDED)
_SLOTS_MAX = 20_000
_PID_MAX = 1 << 22

# A type, several of them, a list of one thing, or keys with what they hold; (one of these two, None) where there may be
# nothing. "key?" may be missing: it came with a later release. "" stands for every key, a number; else what is not named is
# ignored.
_OPTIONS = {
    "directory": str,
    "conventions": [str],
    "drain_signal": str,
    "grace": (*_NUMBER, type(None)),
    "kill_after": _NUMBER,
    "pre_stop_delay": _NUMBER,
    "settle": _NUMBER,
}
_UPGRADE = {
    "result": str,
    "reason": str,
    "asked?": str,
    "from": int,
    "to": int,
    "seconds": _NUMBER,
    "step?": str,
    "steps?": [{"step": str, "seconds": _NUMBER}],
    "at?": (*_NUMBER, type(None)),
    "release?": (str, type(None)),
    "last_lines?": ([str], None),
    "lost?": ({"connections": (int, type(None)), "seen": (*_NUMBER, type(None)), "rescued": int}, None),
}
_ENDED = {"number": int, "pids": [int], "state": str, "since": _NUMBER}
_RUN = {
    "number": int,
    "slot": int,
    "state": str,
    "since": _NUMBER,
    "command": [str],
    "processes": [[int]],
    "options?": _OPTIONS,
    "workers?": int,
    "release?": str,
    "place?": str,
    "leaving?": [int],
    "deadline?": (*_NUMBER, type(None)),
    "output?": {"memory": int, "readers": [int], "writers": [int], "relay": [int], "prefix": str},
}
_OUTLET = {
    "mode": str,
    "name": str,
    "text": str,
    "address": str,
    "cookies": {"": int},
    "origin?": str,
    "stays?": bool,
    "lent?": [int],
    "foreign?": [int],
    "members?": [int],
    "places?": {"": int},
    "lent_places?": [int],
    "home?": int,
    "fds?": {"": int},
}
_STATE = {
    "pid": int,
    "number": int,
    "current": int,
    "since": _NUMBER,
    "slots": int,
    "upgrades": int,
    "failures": int,
    "coalesced?": int,
    "recycled?": int,
    "counted?": ({"accepted": int, "finished": int, "forced": int, "refused": int}, None),
    "more_workers?": int,
    "last_upgrade": (_UPGRADE, None),
    "history": [_ENDED],
    "outlets": [_OUTLET],
    "runs": [_RUN],
    "control?": int,
    "successor?": int,
    "uncommitted?": bool,
    "reply?": int,
}


def fault(state: Any, schema: int) -> str:
    """The first thing that makes no sense, in words; empty where all of it does."""
    if not isinstance(state, dict) or "schema" not in state:
        return "it is no state of a master"
    if state["schema"] != schema:
        return f"it has the schema {state['schema']!r}, and this release knows {schema}"
    return mismatch(state, _STATE) or _nonsense(state)


def mismatch(value: Any, shape: Any, where: str = "") -> str:
    """How ``value`` differs from ``shape``, with the place; empty where it fits."""
    if isinstance(shape, tuple) and isinstance(shape[0], (dict, list)):
        return "" if value is None else mismatch(value, shape[0], where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        found = (mismatch(item, shape[0], f"{where}[{place}]") for place, item in enumerate(value))
        return next(filter(None, found), "")
    if isinstance(shape, dict):
        return _object_mismatch(value, shape, where)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    # True is an int for Python, and none for us; and there is no NaN, no infinity.
    if (
        not isinstance(value, kinds)
        or (isinstance(value, bool) and bool not in kinds)
        or value in (inf, -inf)
        or value != value
    ):
        return f"{where} is {value!r}"
    return ""


def _object_mismatch(value: Any, shape: dict[str, Any], where: str) -> str:
    if not isinstance(value, dict):
        return f"{where or 'it'} is no object"
    if "" in shape:  # numbers as keys
        for key, item in value.items():
            if not (key.isascii() and key.isdigit()):
                return f"{where} has the key {key!r}"
            if wrong := mismatch(item, shape[""], f"{where}.{key}"):
                return wrong
        return ""
    for name, inner in shape.items():
        key, optional = name.removesuffix("?"), name.endswith("?")
        place = f"{where}.{key}" if where else key
        if key not in value:
            if optional:
                continue
            return f"{place} is missing"
        if wrong := mismatch(value[key], inner, place):
            return wrong
    return ""


def _nonsense(state: dict[str, Any]) -> str:
    """What has the right type and can't be."""
    slots = state["slots"]
    if not 1 <= slots <= _SLOTS_MAX:
        return f"slots is {slots}"
    for place, outlet in enumerate(state["outlets"]):
        if outlet["mode"] not in (KERNEL, SHARED, RENAME):
            return f"outlets[{place}].mode is {outlet['mode']!r}"
        if outlet["mode"] == KERNEL and not outlet["address"].rpartition(":")[2].isdigit():
            return f"outlets[{place}].address is {outlet['address']!r}"
    numbers = [run["number"] for run in state["runs"]]
    for place, run in enumerate(state["runs"]):
        signal_name = run.get("options", {}).get("drain_signal", "")
        wrong = {
            "number": numbers.count(run["number"]) > 1,
            "slot": not 0 <= run["slot"] < slots,
            "state": run["state"] not in _STATES,
            "command": not run["command"],
            "output": "output" in run and not _makes_sense(run["output"]),
            "processes": not all(len(one) == 2 and 0 < one[0] <= _PID_MAX for one in run["processes"]),
            "options": (bool(signal_name) and signal_name not in signal.Signals.__members__)
            or any(isinstance(value, _NUMBER) and value < 0 for value in run.get("options", {}).values()),
        }
        bad = next((key for key, is_wrong in wrong.items() if is_wrong), "")
        if bad:
            return f"runs[{place}].{bad} is {run[bad]!r}"
    return ""


def _makes_sense(output: dict[str, Any]) -> bool:
    """Of the pipes of a generation's output."""
    streams = len(output["readers"])
    fds = [output["memory"], *output["readers"], *output["writers"]]
    return streams in (1, 2) and len(output["writers"]) in (0, streams) and len(output["relay"]) == 2 and min(fds) > 2
