"""granian, started anew without a gap: ``Granian(target, …)`` in place of ``granian.Granian``, and
``python -m fdhandoff.servers.granian app:app …`` in place of ``granian app:app …``, with granian's own options.

granian's own code accepts and answers. So what can be done is done around it: the next generation takes the listener over and
has loaded the application in each of its workers before it says that it is ready; until then, and for the probation, the old
one's workers answer. Then they end in granian's way: what is being answered is finished, and an idle connection is closed
without a word, so that a request which is sent at that very moment is lost. Clients with one request to a connection lose none.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

try:
    import granian.cli
    import granian.net
    import granian.server
    from granian.constants import Interfaces
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs granian: pip install 'granian>=2.8' ({error})") from None

from ..adapting import address_of, listeners_of, service_name, settings, split, taken, with_service
from ..errors import HandoffError
from ..service import Service
from ..successor import BLOCKED

if TYPE_CHECKING:
    from collections.abc import Callable

_base: Any = granian.server.MPServer
_cli: Any = granian.cli
_holder: Any = granian.net.SocketHolder  # type: ignore[attr-defined]
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 30


class Granian(_base):  # type: ignore[misc]
    """``granian.Granian``, with its arguments, whose ``serve`` lasts until a newer generation serves or this process is told to
    stop. ``workers_kill_timeout`` (30 s where it is not said) is the longest that what is inside may take. The ``handoff_…``
    keywords are ``fdhandoff.adapting.Handoff``'s. Applications find the ``Service`` as ``scope["state"]["fdhandoff"]`` (ASGI),
    or as ``environ["fdhandoff"]`` (WSGI). ``serve`` raises what ``Service`` raises, and ``SystemExit`` as granian does where
    workers fail; ``ValueError`` for granian's reloader, which is for development.
    """

    def __init__(self, target: str, *arguments: Any, **options: Any) -> None:
        handoff = taken(options)
        if options.get("reload"):
            raise ValueError("the reloader is for development: use granian itself for that")
        if options.get("workers_kill_timeout") is None:
            options["workers_kill_timeout"] = _GRACE_SECONDS
        self._options = settings(handoff, service_name(target, "granian"))
        super().__init__(target, *arguments, **options)
        self._options["pidfile"] = vars(self)["pid_file"]
        self.pid_file = None  # the service's, as it goes from one process to the next

    def _serve(self, spawn_target: Any, target_loader: Any) -> None:
        # Workers get the listener and the application's loader as they are.
        multiprocessing.set_start_method("fork", force=True)
        with Service(**self._options, grace=float(self.workers_kill_timeout or _GRACE_SECONDS)) as service:
            self._listener = listeners_of(service, "http", self._address())[0]
            barrier = _Barrier()
            loader = partial(barrier.load, lambda: self._with_service(target_loader(), service))
            self.startup(spawn_target, loader)
            if barrier.wait(service, self.workers, self.main_loop_interrupt):
                service.ready()
                barrier.open(self.workers)
                threading.Thread(target=self._end, args=(service,), name="fdhandoff-granian", daemon=True).start()
                self._serve_loop(spawn_target, loader)
            barrier.close()
            self.shutdown()

    def _with_service(self, application: Any, service: Service) -> Any:
        if self.interface == Interfaces.WSGI:
            return with_service(application, service)
        if self.interface == Interfaces.RSGI:
            return application

        async def handed(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("state", {})["fdhandoff"] = service
            await application(scope, receive, send)

        return handed

    def _address(self) -> str:
        if self.bind_uds:
            mode = "" if self.uds_permissions is None else f"&mode={self.uds_permissions:04o}"
            return f"unix:{self.bind_uds}?backlog={self.backlog}{mode}"
        return f"{address_of(self.bind_addr, self.bind_port)}?backlog={self.backlog}"

    def startup(self, spawn_target: Any, target_loader: Any) -> None:
        ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        super().startup(spawn_target, target_loader)
        for number, handler in ours.items():
            signal.signal(number, handler)  # granian had taken them

    def _init_shared_socket(self) -> None:
        self._ssp, self._sso, self._sfd = None, None, self._listener.fileno()
        self._shd = _holder(self._sfd, self._listener.family == socket.AF_UNIX, self.backlog)

    def _unlink_pidfile(self) -> None:
        """granian removes its Unix socket here, too, which another may have by now: it is the service's business."""

    def _end(self, service: Service) -> None:
        if service.wait():
            self.signal_handler_interrupt()


class _Barrier:
    """Workers that have loaded the application wait here, until we serve."""

    def __init__(self) -> None:
        self._loaded, self._tell = os.pipe()
        self._go, self._let_go = os.pipe()
        self._open = False

    def load(self, target_loader: Callable[[], Any]) -> Any:
        """In a worker."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)  # what our starter had blocked until we are ready
        application = target_loader()
        if self._open:
            return application  # it replaces one that was lost
        os.close(self._let_go)
        os.write(self._tell, b".")
        if not os.read(self._go, 1):
            os._exit(1)  # whom we wait for has died, or will not serve
        return application

    def wait(self, service: Service, count: int, interrupt: threading.Event) -> bool:
        """Whether all workers have loaded it; false where one has died, or where a stop was asked for."""
        poller = select.poll()
        poller.register(self._loaded, select.POLLIN)
        poller.register(service.fileno(), select.POLLIN)
        while count:
            ready = {fd for fd, _ in poller.poll(_LOOK_SECONDS * 1000)}
            if service.fileno() in ready or interrupt.is_set():
                return False
            if ready:
                count -= len(os.read(self._loaded, count))
        return True

    def open(self, count: int) -> None:
        self._open = True
        os.write(self._let_go, b"." * count)

    def close(self) -> None:
        for fd in (self._loaded, self._tell, self._go, self._let_go):
            os.close(fd)


def main() -> None:
    """granian's own command line, with ``Granian`` in the place of its server, and our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        _cli.Server = partial(Granian, **ours)
        _cli.cli(words, auto_envvar_prefix="GRANIAN", prog_name="python -m fdhandoff.servers.granian")
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
