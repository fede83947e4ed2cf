"""``stop``: a service ends, once what it has begun is finished or its grace period is over; or what a dead master left does."""

from __future__ import annotations

import json
import os
import signal

from ..client import ask
from ..deadline import after
from ..errors import HandoffError
from ..system.process import Process
from .outcome import REFUSED, Failure, UsageError, say
from .steering import Steering, arguments_of, steer
from .target import chosen_target
from .units import is_being_stopped, unit_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from .arguments import Parser

EPILOG = """\
examples:
  fdhandoff-cli stop --name app --wait
  fdhandoff-cli stop --pid 4711 --wait --timeout 40s
  ExecStopPost=fdhandoff-cli stop --left-over --path /run/app/handoff.sock

Every process is told at once to finish and end, and killed when the grace period is over; a second stop does not wait for that.
Use `drain`, which is what TERM does, for a server that cuts its connections when it is told to end.

--left-over ends the generations of a master that is dead. As ExecStopPost= of a systemd unit it leaves them alone after a crash
(SERVICE_RESULT is signal, core-dump, watchdog or oom-kill), since the next start finds them again and goes on.

exit status: 0 it was told (--wait: it has ended), nothing is left over; 1 refused, or it has not ended in time; 2 wrong usage;
3 the system said no; 4 nobody serves there.
"""

# systemd's words for an end that nobody asked for, after which Restart= starts the service again.
_CRASHES = ("signal", "core-dump", "watchdog", "oom-kill")
_PATIENCE_SECONDS = 10.0
_ANSWER_SECONDS = 2.0


def arguments(parser: Parser) -> None:
    arguments_of(parser, waits=True)
    parser.add_argument(
        "--left-over", action="store_true", help="end what a dead master left, within --timeout (10s), then by SIGKILL"
    )


def run(options: Namespace) -> int:
    if options.left_over:
        return _clean_up(options)
    return steer(options, Steering("stop", summary=lambda _: "stopping", ended="stopped"))


def _clean_up(options: Namespace) -> int:
    if options.pid is not None:
        raise UsageError("--left-over wants the path or the name: the process that served there is dead")
    path = chosen_target(options)
    seconds = _PATIENCE_SECONDS if options.timeout is None else options.timeout
    result = os.environ.get("SERVICE_RESULT", "")
    ended: list[int] = []
    master = _master_at(path)
    if master and not result:
        raise Failure(f"a live process answers at {path}: nothing is left over; stop ends it in good order", REFUSED)
    if master:
        if unit_of(master) != unit_of(os.getpid()):
            say(f"process {master}, which is none of this unit's, serves at {path}: nothing is left over")
            return _tell(options, ended)
        say(f"process {master} serves on, of whose master the unit has lost sight: it is stopped")
        _stop(path, master, seconds)
    elif result in _CRASHES and not is_being_stopped(unit_of(os.getpid())):
        say(f"the master was ended by {result}: what it left is for the next start, which finds it again")
        return _tell(options, ended)
    from ..master.leftover import end_left_over

    ended = end_left_over(path, seconds, say)
    return _tell(options, ended)


def _tell(options: Namespace, ended: list[int]) -> int:
    if options.json:
        print(json.dumps({"schema": 1, "ended": ended}))
    return 0


def _master_at(path: str) -> int:
    """The pid of who answers at the path; 0 for nobody."""
    try:
        return int(ask(path, "status", timeout=_ANSWER_SECONDS).get("pid") or 0)
    except HandoffError:
        return 0


def _stop(path: str, pid: int, seconds: float) -> None:
    with Process.from_pid(pid) as process:
        ask(path, "stop", timeout=_ANSWER_SECONDS)
        if process.wait(after(seconds)) is None:
            process.signal(signal.SIGKILL)  # what it leaves then is ended next
            process.wait(after(_ANSWER_SECONDS))
