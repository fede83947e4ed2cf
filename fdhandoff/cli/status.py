"""``status``: who serves at a handoff path, and how, in words for a tired reader or as JSON."""

from __future__ import annotations

import json
import os
import sys
import time

from ..deadline import format_duration
from ..errors import NOBODY, HandoffError
from ..system.process import command_name
from .arguments import Parser, add_json, add_users, duration
from .asking import ask
from .outcome import code_of
from .overview import overview
from .target import add_target, chosen_target
from .watching import watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

EPILOG = """\
examples:
  fdhandoff-cli status /run/app/handoff.sock
  fdhandoff-cli status --name app
  fdhandoff-cli status --pid 4711
  fdhandoff-cli status --name app --watch
  fdhandoff-cli status --name app --json | jq .generation

exit status: 0 somebody serves there; 1 whoever does refuses to say; 3 the path can't be used; 4 nobody serves there.
"""

_STATES = {
    "starting": "serving, not ready to hand over yet",
    "offering": "serving, ready to hand over",
    "handing over": "handing over at this moment",
    "holding": "holding listeners for others, accepting nothing",
}


def arguments(parser: Parser) -> None:
    add_target(parser)
    add_json(parser)
    add_users(parser, "an owner besides us and root whose answer is believed")
    parser.add_argument(
        "--timeout", type=duration, default=5.0, help="how long to wait for the answer (5s); as in --timeout 1s"
    )
    parser.add_argument(
        "--watch", metavar="DURATION", type=duration, nargs="?", const=1.0,
        help="again and again, so often (1s): drawn in place on a terminal; as in --watch 5s",
    )  # fmt: skip


def run(options: Namespace) -> int:
    path = chosen_target(options)
    if options.watch is not None:
        return watch(lambda: _glance(path, options), options.watch)
    try:
        answer = ask(path, "status", timeout=options.timeout, allow_uids=options.allow_uid)
    except HandoffError as error:
        if not options.json:
            raise
        state = "nobody" if error.serving == NOBODY else "unknown"
        print(json.dumps({"schema": 1, "path": path, "state": state, "error": str(error)}))
        return code_of(error)
    if options.json:
        print(json.dumps(answer))
    else:
        sys.stdout.write(describe(answer, time.time()))
    sys.stdout.flush()
    return 0


def _glance(path: str, options: Namespace) -> str:
    """One look of many: that nobody answers is news, too."""
    try:
        answer = ask(path, "status", timeout=options.timeout, allow_uids=options.allow_uid)
    except HandoffError as error:
        state = "nobody" if error.serving == NOBODY else "unknown"
        failure = {"schema": 1, "path": path, "state": state, "error": str(error)}
        return json.dumps(failure) if options.json else f"{error}\n"
    return json.dumps(answer) if options.json else describe(answer, time.time())


def describe(answer: dict[str, Any], now: float) -> str:
    """The answer as aligned lines. What the owner does not tell is left out."""
    if answer.get("master"):
        return overview(answer, now)
    lines = [("path", str(answer.get("path", "")))]
    if answer.get("service"):
        lines.append(("service", str(answer["service"])))
    lines.append(("owner", _owner(answer, now)))
    state = str(answer.get("state", "unknown"))
    lines.append(("state", _STATES.get(state, state) + _taker(answer)))
    lines.append(("generation", str(answer.get("generation", "unknown"))))
    if answer.get("command"):
        lines.append(("command", _command(answer["command"])))
    lines += _column("listeners", [_listener(one) for one in answer.get("listeners") or ()] or ["none"])
    lines += _column("holders", [_process(one) for one in answer.get("holders") or ()])
    lines += _column("draining", [_process(one) for one in answer.get("draining") or ()])
    lines.append(("last upgrade", _last(answer.get("last_upgrade"), now)))
    return "".join(f"{word:13} {text}\n" for word, text in lines)


def _column(word: str, texts: list[str]) -> list[tuple[str, str]]:
    return [("" if index else word, text) for index, text in enumerate(texts)]


def _owner(answer: dict[str, Any], now: float) -> str:
    text = _process(answer)
    if isinstance(answer.get("uid"), int):
        text += f", uid {answer['uid']}"
    since = answer.get("since")
    if isinstance(since, (int, float)) and since > 0:
        text += f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))} ({_ago(now - since)})"
    return text


def _process(facts: dict[str, Any]) -> str:
    pid = facts.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        text = "a process that can't be seen from here"
    else:
        name = command_name(pid) if os.path.exists(f"/proc/{pid}") else ""
        text = f"pid {pid}{f' ({name})' if name else ''}"
    return f"generation {facts['generation']}, {text}" if "generation" in facts and "path" not in facts else text


def _taker(answer: dict[str, Any]) -> str:
    return f" to pid {answer['taker']}" if answer.get("taker") else ""


def _command(command: dict[str, Any]) -> str:
    text = f"pid {command.get('pid')}: {' '.join(map(str, command.get('argv') or ()))}"
    return f"{text} (ready by {command['ready']})" if command.get("ready") else text


def _listener(facts: dict[str, Any]) -> str:
    text = f"{facts.get('name')}  {facts.get('address')}"
    if facts.get("queue") is None:
        return text
    return f"{text}  {facts['queue']} waiting, room for {facts.get('backlog')}"


def _last(last: dict[str, Any] | None, now: float) -> str:
    if not last:
        return "none"
    text = f"generation {last.get('from')} to {last.get('to')}: {last.get('result')}"
    if isinstance(last.get("at"), (int, float)):
        text += f", {_ago(now - last['at'])}"
    return f"{text}: {last['reason']}" if last.get("reason") else text


def _ago(seconds: float) -> str:
    return f"{format_duration(float(max(0, round(seconds))))} ago" if seconds >= 1 else "just now"
