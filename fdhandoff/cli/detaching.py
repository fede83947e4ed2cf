"""``run --daemon``: the master goes into the background, and whoever started it waits until the service is ready."""

from __future__ import annotations

import os

from ..background import Change, split
from ..client import ask
from ..errors import HandoffError, PidfileLocked
from ..master.options import ALWAYS, AUTO
from ..system.environment import LISTEN_PID
from ..system.logfile import open_log
from ..system.pidfile import Pidfile
from .outcome import OWN_FAILURE, REFUSED, Failure, UsageError, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..master.options import Options

_ANSWER_SECONDS = 2.0


def detach(options: Options) -> int:
    """Returns in the background: the descriptor to which the master writes a newline when the service is ready."""
    if not options.log:
        raise UsageError("--daemon needs --log FILE: say where the output goes, /dev/null for nowhere")
    if options.ready_fd >= 0:
        raise UsageError("--daemon says itself when the service is ready: leave --ready-fd out")
    _refuse_a_second(options)
    try:
        output = open_log(options.log)
        passed = os.environ.get(LISTEN_PID) == str(os.getpid())
        daemon = split(Change(), None, options.log, output, None, lambda pid: say(_summary(options, pid)))
    except HandoffError as error:
        raise Failure(str(error), OWN_FAILURE) from error
    if passed:
        os.environ[LISTEN_PID] = str(os.getpid())
    os.set_inheritable(daemon.fileno(), True)  # the master may begin anew by an exec
    return daemon.fileno()


def _refuse_a_second(options: Options) -> None:
    if options.takeover == ALWAYS or options.source:
        return
    if options.path is not None:
        try:
            answer = ask(options.path, "status", timeout=_ANSWER_SECONDS)
        except HandoffError:
            pass  # nobody answers there, or what does is the master's to complain about
        else:
            if options.takeover == AUTO and answer.get("master") is None:
                return  # it is to be taken over from, and its pidfile too
            raise Failure(
                f"{options.name} runs already, as pid {answer.get('pid')} at {options.path}: upgrade or stop that one",
                REFUSED,
            )
    if options.pidfile:
        try:
            Pidfile(options.pidfile).check()
        except PidfileLocked as error:
            raise Failure(str(error), REFUSED) from None


def _summary(options: Options, pid: int) -> str:
    return f"{options.name} runs in the background as pid {pid}, and writes to {options.log}"
