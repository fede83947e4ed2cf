"""What the short verbs have in common: one question, one answer, and for some a wait until the service has ended."""

from __future__ import annotations

import json
import sys
import time

from ..deadline import format_duration
from ..errors import NOBODY, HandoffError, PathError, PeerGone, SystemCallError
from ..system.process import Process
from .arguments import Parser, add_json, add_users, duration
from .asking import ask
from .outcome import REFUSED, Failure, code_of
from .target import add_target, chosen_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any

_ANSWER_SECONDS = 10.0
_LOOK_SECONDS = 1.0


class Steering:
    """A verb: what is asked, and how the answer reads."""

    __slots__ = ("body", "ended", "summary", "verb")

    def __init__(
        self,
        verb: str,
        body: dict[str, Any] | None = None,
        *,
        summary: Callable[[dict[str, Any]], str],
        ended: str = "",
    ) -> None:
        self.verb = verb
        self.body = body or {}
        self.summary = summary
        self.ended = ended


def arguments_of(parser: Parser, *, waits: bool = False) -> None:
    add_target(parser)
    add_json(parser)
    add_users(parser, "an owner besides us and root who is believed")
    if waits:
        parser.add_argument("--wait", action="store_true", help="until it has ended")
    what = "with --wait: how long (for ever)" if waits else "how long to wait for the answer (for ever)"
    parser.add_argument("--timeout", metavar="DURATION", type=duration, help=f"{what}; as in --timeout 40s")


def steer(options: Namespace, steering: Steering) -> int:
    path = chosen_target(options)
    waits = getattr(options, "wait", False)
    process: Process | None = None
    try:
        if waits:
            # Before it is asked: afterwards its number may be another's.
            process = _process(path, options)
        answer = ask(
            path,
            steering.verb,
            steering.body,
            timeout=_ANSWER_SECONDS if waits else options.timeout,
            allow_uids=options.allow_uid,
        )
        if process is not None:
            _await_end(process, path, options)
    except HandoffError as error:
        if not options.json:
            raise
        print(json.dumps({"schema": 1, "result": "failed", "serving": error.serving, "error": str(error)}))
        return code_of(error)
    finally:
        if process is not None:
            process.close()
    text = steering.ended if waits and steering.ended else steering.summary(answer)
    print(json.dumps({**answer, **({"state": "ended"} if waits else {})}) if options.json else text)
    sys.stdout.flush()
    return 0


def _process(path: str, options: Namespace) -> Process:
    answer = ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=options.allow_uid)
    pid = answer.get("pid")
    try:
        return Process.from_pid(pid if isinstance(pid, int) else 0)
    except (SystemCallError, ValueError) as error:
        raise Failure(
            f"--wait needs to see the owner at {path}, and it can't be seen from here: {error}", REFUSED
        ) from error


def _await_end(process: Process, path: str, options: Namespace) -> None:
    """With a line on a terminal's standard error for what is still inside."""
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    shows = sys.stderr.isatty() and not options.json
    while process.alive():
        left = _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, deadline - time.monotonic())
        if left <= 0:
            raise Failure(f"it has not ended within {format_duration(options.timeout)}: it goes on finishing", REFUSED)
        if process.wait(time.monotonic_ns() + int(left * 1e9)) is not None:
            return
        if shows:
            _show(path, options)


def _show(path: str, options: Namespace) -> None:
    try:
        answer = ask(path, "status", timeout=_LOOK_SECONDS, allow_uids=options.allow_uid)
    except (PathError, PeerGone, HandoffError) as error:
        if error.serving != NOBODY:
            return
    else:
        active = sum(generation.get("active") or 0 for generation in answer.get("generations") or ())
        sys.stderr.write(f"\r\x1b[K{answer.get('state')}: {active} connections\r")
        sys.stderr.flush()
