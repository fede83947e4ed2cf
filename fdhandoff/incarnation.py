"""*Same pid*: after an upgrade the original process goes on, with the new code.

The successor is started as a child, takes over and proves itself; the original process drains, executes the program again in
place, and takes the service back from the child, which drains and ends. Whatever fails on this way, somebody serves: the
original until the child serves, then the child, then whichever of the two owns the service by the rules of every handover.
"""

from __future__ import annotations

import os
import signal
import threading

from .deadline import FOREVER
from .errors import NEW, SystemCallError, UpgradeError
from .successor import BLOCKED, become
from .system import environment
from .system.kin import parent_of
from .system.process import Process
from .system.signalpipe import SignalPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from .generation import Generation
    from .service import Service


class Incarnation:
    """What a process is going to be once it has drained: the generation after ``interim``, which serves meanwhile as its
    child."""

    def __init__(self, service: Service, child: Process, interim: Generation) -> None:
        assert service.path is not None
        self._service = service
        self._child = child
        self._interim = interim
        self._path = service.path
        self._stopped = False
        self._heard = -1

    def block(self) -> None:
        """What arrives from here on waits for the program that comes."""
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        self._heard = self._service.signals.hold()

    def _unblock(self) -> None:
        self._service.signals.heed()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)

    def stop(self) -> None:
        """The whole service is to end, and nothing comes after the child."""
        self._stopped = True
        self._child.signal(signal.SIGTERM)

    def begin(self) -> None:
        """Does not return, except where the service was stopped meanwhile: then once the child has ended. ``UpgradeError`` when
        the program can't be executed; the child serves on."""
        service = self._service
        if self._stopped:
            self._unblock()  # a second request hurries the child
            self._child.wait(FOREVER)
            self._child.close()
            return
        extra = {
            **service.for_successor,
            environment.INTERIM: str(self._child.pid),
            **({environment.HEARD: str(self._heard)} if self._heard >= 0 else {}),
        }
        service.say(f"{self._interim} serves; this process becomes generation {self._interim.number + 1}")
        try:
            become(
                service.command,
                path=self._path,
                generation=self._interim.number + 1,
                directory=service.directory,
                extra=extra,
            )
        except SystemCallError as error:
            self._unblock()
            raise UpgradeError(
                f"this process could not become the next generation: {error}; {self._interim} serves on under its own pid",
                serving=NEW,
            ) from error


class Interim:
    """The child that serves until this process, just executed anew, has taken over from it. It has nobody else who would wait
    for it, or end it when the service is to end."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._thread = threading.Thread(target=self._reap, name="fdhandoff-see-off", daemon=True)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Interim | None:
        """The one that ``FDHANDOFF_INTERIM`` names, which is removed; ``None`` where there is none. Only a child of ours is
        believed in. With it come the signals that were for us and that the program before heard: they wait as those do that
        came since."""
        child, heard = (_number(environ.pop(name, "")) for name in (environment.INTERIM, environment.HEARD))
        if child <= 0 or parent_of(child) != os.getpid():
            return None
        if heard >= environment.FIRST_FD:
            SignalPipe.raise_again(heard, among=BLOCKED)
        return cls(Process.from_pid(child))

    def see_off(self) -> None:
        """It ends by itself from here on, and is reaped then."""
        self._thread.start()

    def _reap(self) -> None:
        self._process.wait(FOREVER)
        self._process.close()

    def stop(self) -> None:
        self._process.signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        if self._thread.ident is None:
            self._process.close()


def _number(text: str) -> int:
    """-1 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
