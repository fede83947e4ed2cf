"""granian, started anew without a gap: ``Granian(target, …)`` in place of ``granian.Granian``, and
``python -m fdhandoff.servers.granian app:app …`` in place of ``granian app:app …``, with granian's own options.

granian's own code accepts and answers. So what can be done is done around it: the next generation takes the listener over and
has loaded the application in each of its workers before it says that it is ready; until then, and for the probation, the old
one's workers answer. Then they accept no more, and each answer says ``Connection: close``; when the kernel knows of no
connection of theirs any more they end. Where a client has spoken HTTP/2 they end at once, in granian's way, which tells such
clients to go; an idle connection of HTTP/1 is closed without a word then.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

try:
    import granian.cli
    import granian.net
    import granian.server
    from granian.constants import Interfaces
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs granian: pip install 'granian>=2.8' ({error})") from None

from ..adapting import address_of, connections_at, dual, listeners_of, service_name, settings, split, taken
from ..errors import HandoffError
from ..service import Service
from ..successor import BLOCKED
from ..system.epolls import take_out

if TYPE_CHECKING:
    from collections.abc import Callable

_base: Any = granian.server.MPServer
_cli: Any = granian.cli
_holder: Any = granian.net.SocketHolder  # type: ignore[attr-defined]
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 30
# What a worker has that is cut at the end of that, before it is killed.
_CUT_SECONDS = 3
_COME_AGAIN = 1012
_HTTP1 = frozenset(("1", "1.0", "1.1"))


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
            service.observes(connections_at([self._listener], lambda: [worker.inner.pid for worker in self.wrks]))
            service.drains_when_asked()
            barrier, parting = _Barrier(), _Parting()
            wraps: dict[Any, Any] = {
                Interfaces.WSGI: parting.wsgi,
                Interfaces.RSGI: parting.rsgi,
                Interfaces.ASGINL: partial(parting.asgi, lifespan=False),
            }
            wrap: Any = wraps.get(self.interface, parting.asgi)

            def load() -> Any:
                """In a worker."""
                parting.attend(self._listener)
                return barrier.load(lambda: wrap(target_loader(), service))

            started = False
            try:
                self.startup(spawn_target, load)
                started = True
                if barrier.wait(service, self.workers, self.main_loop_interrupt):
                    service.ready()
                    barrier.open(self.workers)
                    ending = threading.Thread(
                        target=self._end, args=(service, parting), name="fdhandoff-granian", daemon=True
                    )
                    ending.start()
                    self._serve_loop(spawn_target, load)
            except BaseException:
                barrier.close()  # who waits there has the listener
                with contextlib.suppress(SystemExit):  # for workers that ended so: what has failed says more
                    if started:
                        self.shutdown()
                    else:
                        self._stop_workers()
                raise
            barrier.close()
            self.shutdown()

    def _address(self) -> str:
        if self.bind_uds:
            mode = "" if self.uds_permissions is None else f"&mode={self.uds_permissions:04o}"
            return f"unix:{self.bind_uds}?backlog={self.backlog}{mode}"
        return dual(f"{address_of(self.bind_addr, self.bind_port)}?backlog={self.backlog}")

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

    def _end(self, service: Service, parting: _Parting) -> None:
        service.wait()
        if parting.begin() and service.drain().forced:
            self.workers_kill_timeout = _CUT_SECONDS
        self.signal_handler_interrupt()


class _Parting:
    """How the workers hear that another generation serves, and what they do then: they accept no more, and answers say so.
    ``begun``, in a worker."""

    def __init__(self) -> None:
        self.begun = False
        self._hear, self._say = os.pipe()
        self._spoke_http2 = mmap.mmap(-1, 1)  # all workers'
        self.websockets: set[_WebSocket] = set()

    def begin(self) -> bool:
        """Whether it is of use to wait for the clients: HTTP/2 knows no such answers."""
        os.write(self._say, b".")  # nobody takes it away: it is for whoever looks
        return not self._spoke_http2[0]

    def attend(self, listener: socket.socket) -> None:
        """In a worker."""
        os.close(self._say)
        inode = os.fstat(listener.fileno()).st_ino
        threading.Thread(target=self._attend, args=(inode,), name="fdhandoff-granian", daemon=True).start()

    def _attend(self, inode: int) -> None:
        poller = select.poll()
        poller.register(self._hear, select.POLLIN)
        ((_, events),) = poller.poll()
        self.begun = True
        take_out({inode})
        for websocket in list(self.websockets):
            websocket.end()
        if events & select.POLLIN:
            poller.modify(self._hear, 0)
            poller.poll()
        os.kill(os.getpid(), signal.SIGTERM)  # whom we work for has died

    # What these cost while this generation serves, each request pays. One that is under way when the parting begins does not
    # announce it; the next on its connection does.

    def asgi(self, application: Any, service: Service, *, lifespan: bool = True) -> Any:
        def handed(scope: Any, receive: Any, send: Any) -> Any:
            if scope["type"] == "http" and scope["http_version"] in _HTTP1 and not self.begun:
                return application(scope, receive, send)
            return unusual(scope, receive, send)

        def without_lifespan(scope: Any, receive: Any, send: Any) -> Any:
            scope["state"]["fdhandoff"] = service
            return handed(scope, receive, send)

        def unusual(scope: Any, receive: Any, send: Any) -> Any:
            kind = scope["type"]
            if kind == "lifespan":
                scope["state"]["fdhandoff"] = service  # it is every request's, then
            elif kind == "websocket":
                return self._talk(application, scope, receive, send)
            elif scope["http_version"] in _HTTP1:
                send = partial(_announcing, send)
            else:
                self._spoke_http2[0] = 1
            return application(scope, receive, send)

        return handed if lifespan else without_lifespan

    async def _talk(self, application: Any, scope: Any, receive: Any, send: Any) -> None:
        with _AsgiWebSocket(self, send) as websocket:
            await application(scope, receive, websocket.send)

    def wsgi(self, application: Any, service: Service) -> Any:
        def handed(environ: Any, start_response: Any) -> Any:
            environ["fdhandoff"] = service
            if environ["SERVER_PROTOCOL"][:6] != "HTTP/1":
                self._spoke_http2[0] = 1
            elif self.begun:
                start_response = partial(_starting, start_response)
            return application(environ, start_response)

        return handed

    def rsgi(self, application: Any, _: Service) -> Any:
        return _Rsgi(application, self)


def _announcing(send: Any, message: Any) -> Any:
    if message["type"] == "http.response.start":
        message = {**message, "headers": [*_others(message.get("headers", ())), (b"connection", b"close")]}
    return send(message)


def _starting(start_response: Any, status: str, headers: Any, *error: Any) -> Any:
    return start_response(status, [*_others(headers), ("Connection", "close")], *error)


def _others(headers: Any) -> list[Any]:
    """Without one about the connection."""
    return [(name, value) for name, value in headers if name.lower() not in ("connection", b"connection")]


class _WebSocket(ABC):
    """One that can be told to come again."""

    def __init__(self, parting: _Parting) -> None:
        self._parting = parting
        self._loop = asyncio.get_running_loop()
        self._accepted = False
        self._ending: asyncio.Task[None] | None = None

    def __enter__(self) -> Any:
        self._parting.websockets.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._parting.websockets.discard(self)

    def end(self) -> None:
        """In any thread."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._accepted and self._ending is None and self in self._parting.websockets:
            self._ending = self._loop.create_task(self._close())

    def _is_accepted(self) -> None:
        self._accepted = True
        if self._parting.begun:  # on a connection that was there before
            self._end()

    @abstractmethod
    async def _close(self) -> None: ...


class _AsgiWebSocket(_WebSocket):
    def __init__(self, parting: _Parting, send: Any) -> None:
        super().__init__(parting)
        self._send = send

    async def send(self, message: Any) -> None:
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._is_accepted()

    async def _close(self) -> None:
        await self._send({"type": "websocket.close", "code": _COME_AGAIN})


class _RsgiWebSocket(_WebSocket):
    """RSGI's protocol, for one websocket. granian sends no code with a websocket's end that was accepted here."""

    def __init__(self, parting: _Parting, proto: Any) -> None:
        super().__init__(parting)
        self._proto = proto
        self.close = proto.close

    async def accept(self) -> Any:
        transport = await self._proto.accept()
        self._is_accepted()
        return transport

    async def _close(self) -> None:
        self._proto.close(_COME_AGAIN)


class _Rsgi:
    """An RSGI application whose answers say, once ``parting`` has begun, that their connection ends."""

    def __init__(self, application: Any, parting: _Parting) -> None:
        self._call = getattr(application, "__rsgi__", application)
        self._parting = parting
        for name in ("__rsgi_init__", "__rsgi_del__"):
            if hasattr(application, name):
                setattr(self, name, getattr(application, name))

    def __rsgi__(self, scope: Any, proto: Any) -> Any:
        parting = self._parting
        if scope.proto != "http":
            return self._talk(scope, proto)
        if scope.http_version not in _HTTP1:
            parting._spoke_http2[0] = 1
        elif parting.begun:
            proto = _Announcing(proto)
        return self._call(scope, proto)

    async def _talk(self, scope: Any, proto: Any) -> None:
        with _RsgiWebSocket(self._parting, proto) as websocket:
            await self._call(scope, websocket)


class _Announcing:
    """RSGI's protocol, for one request of such an application."""

    __slots__ = ("_proto",)

    def __init__(self, proto: Any) -> None:
        self._proto = proto

    def __call__(self) -> Any:
        return self._proto()

    def __aiter__(self) -> Any:
        return self._proto.__aiter__()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._proto, name)
        if not name.startswith("response_"):
            return found

        def respond(status: int, headers: Any, *rest: Any) -> Any:
            return found(status, [*_others(headers), ("connection", "close")], *rest)

        return respond


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
