"""The life of ``take`` once it has the listeners: the command boots, becomes ready, owns the service, gives way to the next.

One loop, woken by signals, the command's end, its notifications, the old side and the thread that offers. Whichever way it
is left, the command has ended by then.
"""

from __future__ import annotations

import os
import select
import time

from .. import registry
from ..deadline import FOREVER, after, format_duration, passed
from ..errors import Aborted, HandoffError, SystemCallError
from ..listener import File, Listener
from ..system.fds import close_all
from ..system.process import Process
from . import command
from .booting import Booting
from .offers import Offers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from ..takeover import Takeover
    from .hearing import Hearing


class Taking(Booting):
    """``run`` it once, then ``close`` it."""

    def __init__(self, takeover: Takeover, words: list[str], options: Namespace, hearing: Hearing) -> None:
        super().__init__(takeover, words, options, hearing)
        self.offers: Offers | None = None
        self.handed = False
        self._stopped = 0  # how often we were told to stop since the service is ours
        self._old_speaks = True
        self._predecessor: Process | None = None

    def run(self) -> int:
        self.boot()
        self._own()
        return self._serve()

    def _own(self) -> None:
        assert self.process is not None
        takeover, options = self.takeover, self.options
        self._old_speaks = not takeover.orphaned
        close_all([takeover.counters_fd])
        takeover.counters_fd = -1
        endpoint = registry.find(takeover.path)
        items = [Listener(name, sock) for name, sock in self.sockets] + [File(name, fd) for name, fd in self.files]
        if endpoint is not None:
            self._open_path()
            endpoint.note("done", "", takeover.generation.number, self.began)
            self._predecessor = _process(takeover.peer.pid)
            endpoint.details = self._status
            self.offers = Offers(
                takeover.path,
                items,
                self.hearing.wake,
                ready_timeout=options.ready_timeout,
                probation=options.probation,
                allow_uids=frozenset(options.allow_uid),
            )
            self.offers.start()
        by = self.readiness.by or "nothing yet, as the old owner died"
        self._tell(
            "serving",
            f"generation {takeover.generation.number}: the command (pid {self.process.pid}) serves instead of {takeover.peer}; "
            f"ready by {by}{' (assumed)' if self.readiness.assumed else ''}"
            + ("" if endpoint else f"; the path stays with {takeover.peer}"),
            generation=takeover.generation.number,
            pid=self.process.pid,
            old={"pid": takeover.peer.pid, "uid": takeover.peer.uid},
            ready=by,
            assumed=self.readiness.assumed,
            path_kept=endpoint is None,
        )
        self.notifier.ready(f"generation {takeover.generation.number}, {self.words[0]}")

    def _serve(self) -> int:
        assert self.process is not None
        kill_at = FOREVER
        while True:
            for number in self._held:
                self.process.signal(number)
            self._held.clear()
            if self._ended is not None and not self._still_taking():
                return self._finish()
            self._wait(kill_at, self.takeover.fileno() if self._old_speaks else -1)
            self._obey()
            self._stopped += len(self._stops)
            self._held += self._stops
            self._stops = []
            self.readiness.hear()
            self._hear_old()
            if self._results() and self._ended is None:
                self.process.signal(self.options.drain_signal)
                kill_at = after(self.options.grace)
            if kill_at != FOREVER and passed(kill_at) and self._ended is None:
                self._tell("killed", f"the command did not finish within {format_duration(self.options.grace)}: killed")
                self._ended = command.kill(self.process)

    def _results(self) -> bool:
        """Tells what came of the offers; whether somebody else serves now, for the first time."""
        while self.offers is not None and self.offers.results:
            result = self.offers.results.popleft()
            if isinstance(result, HandoffError):
                if not isinstance(result, Aborted):
                    again = "" if not self.offers.is_last(result) else "; nothing is offered any more"
                    self._tell("failed", f"{result}{again}", error=str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                self.handed = True
                for _, sock in self.sockets:
                    sock.close()
                self._tell(
                    "handed over",
                    f"{result.generation} serves; the command (pid {self.process.pid if self.process else 0}) is told to "
                    "finish",
                    generation=result.generation.number,
                    pid=result.peer.pid,
                )
                return True
        return False

    def _still_taking(self) -> bool:
        """The command has ended while somebody takes the service: the listeners are kept for it, unless we are told twice."""
        return not self.handed and self.offers is not None and self.offers.taking() and self._stopped < 2

    def _finish(self) -> int:
        assert self._ended is not None
        if self.offers is not None:
            self.offers.withdraw()
            self._results()
            self.offers = None
        after_commit = time.monotonic() - self.committed
        if not self.handed and not self._stopped:
            if self._old_speaks and after_commit < self.takeover.probation:
                self.takeover.abort(f"the command {self._ended}")
                self._tell(
                    "given back",
                    f"the command {self._ended} {format_duration(after_commit)} after the commit: the service was given back "
                    f"to {self.takeover.peer}",
                )
            else:
                self._tell("ended", f"the command {self._ended}, and nothing serves at {self.takeover.path} from here")
        return command.code_of(self._ended)

    def _hear_old(self) -> None:
        """Reads what the old side reports of its drain, until it has hung up."""
        if not self._old_speaks:
            return
        try:
            gone = self.takeover.wait_old(0.0)
        except HandoffError:
            gone = True
        poller = select.poll()
        poller.register(self.takeover.fileno(), getattr(select, "POLLRDHUP", 0))
        self._old_speaks = not gone and not poller.poll(0)

    def _status(self) -> dict[str, Any]:
        assert self.process is not None
        facts: dict[str, Any] = {
            "command": {
                "pid": self.process.pid,
                "argv": self.words,
                "ready": self.readiness.by,
                "assumed": self.readiness.assumed,
            },
            "draining": [],
        }
        old = self._predecessor
        if old is not None and old.alive():
            facts["draining"].append({"generation": self.takeover.generation.number - 1, "pid": old.pid})
        return facts

    def _open_path(self) -> None:
        """As the options say, where they say something: the path keeps its mode and group otherwise."""
        path, mode, group = self.takeover.path, self.options.socket_mode, self.options.socket_group
        try:
            if group is not None:
                from shutil import chown

                chown(path, group=int(group) if group.isdigit() else group)
            if mode is not None:
                os.chmod(path, mode)
        except (OSError, LookupError) as error:
            self._tell("path", f"{path} keeps its mode and group: {error}")

    def close(self) -> None:
        super().close()
        if self.offers is not None:
            self.offers.withdraw()
        if self.committed:
            self.takeover.close()
            for _, sock in self.sockets:
                sock.close()
            close_all([fd for _, fd in self.files])
        if self._predecessor is not None:
            self._predecessor.close()
        try:
            registry.remove(self.takeover.path)
        except HandoffError as error:
            self._tell("path", f"the handoff path stays behind: {error}")


def _process(pid: int) -> Process | None:
    try:
        return Process.from_pid(pid)
    except SystemCallError:
        return None
