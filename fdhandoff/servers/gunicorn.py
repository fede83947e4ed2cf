"""gunicorn, upgraded without a failed request: ``python -m fdhandoff.servers.gunicorn app:app …`` in place of
``gunicorn app:app …``, with gunicorn's own options and settings.

Its sync, gthread and asgi workers accept through the gate: the new generation's once that serves, the old one's no more from
that moment on. HUP is gunicorn's reload as ever; USR2 is an upgrade.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import threading
import weakref
from typing import TYPE_CHECKING

try:
    from gunicorn import sock
    from gunicorn.app.wsgiapp import WSGIApplication
    from gunicorn.arbiter import Arbiter
    from gunicorn.asgi.protocol import ASGIProtocol
    from gunicorn.ctl.server import ControlSocketServer
    from gunicorn.workers.gasgi import ASGIWorker
    from gunicorn.workers.gthread import ThreadWorker
    from gunicorn.workers.sync import SyncWorker
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs gunicorn: pip install 'gunicorn>=27' ({error})") from None

from ..accept import AcceptLoop, protocol_handler
from ..adapting import address_of, dual, listeners_of, service_name, split, with_service
from ..awaiting import in_thread
from ..errors import Aborted, HandoffError
from ..gated import GatedListener
from ..http2 import GoingAway
from ..service import REOPEN_SECONDS, Service
from ..successor import BLOCKED
from ..websocket import RESTART

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any, ClassVar

    from ..gate import Gate

# How often an arbiter that waits for its first workers looks after them, and a worker that waits says that it lives.
_LOOK_SECONDS = 0.05
_NOTIFY_SECONDS = 0.5
_CLOSE_SECONDS = 5.0  # as gunicorn waits for a client's own close


class Application(WSGIApplication):  # type: ignore[misc]
    """gunicorn's own, with our arbiter. ``handoff``: ``handoff_name`` and so on."""

    def __init__(self, handoff: dict[str, Any]) -> None:
        self.handoff = handoff
        super().__init__("%(prog)s [OPTIONS] [APP_MODULE]", prog="python -m fdhandoff.servers.gunicorn")

    def run(self) -> None:
        if self.cfg.daemon:
            raise ValueError("--daemon hides the process that serves: use fdhandoff-cli run --daemon -- …")
        if any(isinstance(one, int) for one in self.cfg.address):
            raise ValueError("fd://N: listeners come by LISTEN_FDS; what --bind says is bound where none came")
        with _arbiter_of_gunicorn(HandedArbiter):
            super().run()


@contextlib.contextmanager
def _arbiter_of_gunicorn(arbiter: type[Arbiter]) -> Iterator[None]:
    """gunicorn's application names the class itself."""
    from gunicorn.app import base

    base.Arbiter = arbiter
    try:
        yield
    finally:
        base.Arbiter = Arbiter


class HandedArbiter(Arbiter):  # type: ignore[misc]
    """An arbiter that has its listeners from a ``Service``, and whose workers accept once that is the owner."""

    # The others are the service's.
    SIGNALS: ClassVar[list[int]] = [one for one in Arbiter.SIGNALS if one not in (signal.SIGTERM, signal.SIGUSR2)]

    service: Service | None = None
    _watcher: threading.Thread | None = None
    _came_back = False
    _bind: list[str]
    worker_class: Any

    def setup(self, app: Application) -> None:
        """At the start, and at each HUP."""
        cfg = app.cfg
        if self.service is not None:
            if cfg.address != self.address:
                self.log.warning("The listeners are the service's: another --bind needs another service")
            cfg.set("bind", self._bind)
        self._bind = cfg.settings["bind"].get()
        self._pidfile = cfg.pidfile  # which changes hands with the service
        cfg.set("pidfile", None)
        cfg.set("reuse_port", False)  # each worker would bind a queue of its own
        super().setup(app)
        self.worker_class = _waiting(self.worker_class, self)

    def start(self) -> None:
        cfg = self.cfg
        self._main = os.getpid()
        self._booted, self._started = os.pipe(), os.pipe()
        os.set_blocking(self._booted[1], False)  # nobody reads it any more when this generation serves
        self.service = service = Service(
            **self.app.handoff, grace=float(cfg.graceful_timeout), pidfile=self._pidfile,
            signals={"SIGTERM": "stop", "SIGUSR2": "upgrade"},
        )  # fmt: skip
        service.drains_when_asked()
        service.after("rollback", self._come_back)
        addresses = cfg.address[:1] if service.inherited else cfg.address
        listeners = [
            listener
            for number, address in enumerate(addresses)
            for listener in listeners_of(service, f"http{number or ''}", self._text(address))
        ]
        self.LISTENERS = [self._wrapped(one, service.gate) for one in listeners]
        self.systemd = True  # so that it unlinks no path: the service does, if nobody comes after us
        super().start()

    def _text(self, address: Any) -> str:
        cfg = self.cfg
        if isinstance(address, tuple):
            return dual(f"{address_of(*address[:2])}?backlog={cfg.backlog}")
        text = f"unix:{address}?mode={0o777 & ~cfg.umask:04o}&backlog={cfg.backlog}"
        if cfg.uid != os.geteuid():
            text += f"&owner={cfg.uid}"
        if cfg.gid != os.getegid():
            text += f"&group={cfg.gid}"
        return text

    def _wrapped(self, listener: socket.socket, gate: Gate) -> Any:
        """As the workers know it."""
        address = listener.getsockname()
        wrapped = sock._sock_type(address)(address, self.cfg, self.log, fd=listener.dup().detach())
        wrapped.sock.close()
        wrapped.sock = GatedListener(listener, gate) if self._gates() else listener.dup()
        wrapped.sock.setblocking(False)
        return wrapped

    def _gates(self) -> bool:
        return issubclass(self.cfg.worker_class, (SyncWorker, ThreadWorker, ASGIWorker))

    def run(self) -> None:
        try:
            super().run()
        finally:
            if self.service is not None and os.getpid() == self._main:
                self.service.stop()  # wherever the end came from
                if self._watcher is not None:
                    self._watcher.join()
            if self.service is not None:
                self.service.close()

    def manage_workers(self) -> None:
        super().manage_workers()
        if self._watcher is None:
            self._become_ready()
        if self._came_back:
            self._came_back = False
            self._stop_control_server()
            self._start_control_server()

    def _become_ready(self) -> None:
        """The workers have loaded the application: takes the service over, and lets them accept."""
        service = self.service
        assert service is not None
        booted = 0
        while booted < self.num_workers:
            if select.select([self._booted[0]], [], [], _LOOK_SECONDS)[0]:
                booted += len(os.read(self._booted[0], 4096))
            self.reap_workers()
            self.murder_workers()
            while not self.SIG_QUEUE.empty():
                number = self.SIG_QUEUE.get_nowait()
                if number in (signal.SIGINT, signal.SIGQUIT):
                    self.handle_quit()
            if service.wait(0):
                raise StopIteration
            super().manage_workers()
        try:
            service.ready()
        except Aborted:
            raise StopIteration from None
        self._watcher = threading.Thread(target=self._watch, name="fdhandoff-gunicorn", daemon=True)
        self._watcher.start()
        os.write(self._started[1], b"!")

    def _watch(self) -> None:
        """Has the arbiter drain once the service does, and cut what is left when that has lasted too long."""
        service = self.service
        assert service is not None
        service.wait()
        self.SIG_QUEUE.put_nowait(signal.SIGTERM)
        if service.drain().forced:
            self.SIG_QUEUE.put_nowait(signal.SIGQUIT)

    def _come_back(self) -> None:
        """Another generation had the control socket's path, and has died."""
        self._came_back = True

    def _start_control_server(self) -> None:
        if not self.cfg.control_socket_disable:
            self._control_server = _ControlServer(self, self._get_control_socket_path(), self.cfg.control_socket_mode)
            self._control_server.start()

    def stop(self, graceful: bool = True) -> None:
        if not graceful and self.service is not None:
            self.service.stop()
        os.close(self._started[1])  # who waits for it ends, and has not started
        self._started = (self._started[0], os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        super().stop(graceful)

    def handle_usr2(self) -> None:
        """The service's, which has the signal."""


def _waiting(base: Any, arbiter: HandedArbiter) -> Any:
    """gunicorn's worker, that accepts nothing before the service is ours, and then through the gate."""

    class Waiting(base):  # type: ignore[misc]
        asgi: Any
        wsgi: Any

        def init_process(self) -> None:
            os.close(arbiter._started[1])  # else nobody would hear that the arbiter has gone
            super().init_process()

        def load_wsgi(self) -> None:
            # It has its own handlers by now. The arbiter may have these blocked until it is ready.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
            super().load_wsgi()
            service = arbiter.service
            assert service is not None
            if issubclass(base, ASGIWorker):
                self.protocols: weakref.WeakSet[_Announcing] = weakref.WeakSet()
                self.asgi = _asgi_with_service(self.asgi, service)
                self.loop.create_server = self._create_server
            else:
                self.wsgi = self._announcing(with_service(self.wsgi, service))

        def _announcing(self, application: Any) -> Any:
            """gunicorn decides when a request comes whether its connection is kept; by the answer it may be known better."""

            def announcing(environ: Any, start_response: Any) -> Any:
                def start(*arguments: Any) -> Any:
                    if not self.alive:
                        start_response.__self__.force_close()
                    return start_response(*arguments)

                return application(environ, start)

            return announcing

        def run(self) -> None:
            # An asgi worker first lets its application start.
            if issubclass(base, ASGIWorker) or self._await_start():
                super().run()

        def _await_start(self) -> bool:
            """Whether this generation serves; false where the arbiter stops, or has died, before it did."""
            started = arbiter._started[0]
            with contextlib.suppress(BlockingIOError):  # full of those before us, and the arbiter waits for nobody
                os.write(arbiter._booted[1], b"!")
            # Another process that the arbiter forked may have the pipe's other end, so that its end is not heard.
            while self.alive and self.ppid == os.getppid():
                if select.select([started], [], [], _NOTIFY_SECONDS)[0]:
                    break
                self.notify()
            self.notify()
            return _holds_something(started)

        async def _create_server(self, _: Any, *, sock: Any, ssl: Any = None, **others: Any) -> _Accepting:  # noqa: ARG002
            starts = await in_thread(self._await_start, lambda: None)
            accepting = _Accepting(sock, lambda: _Announcing(self), ssl)
            if not starts:
                accepting.close()  # before its task has begun
                self.alive = False
            return accepting

        if issubclass(base, ASGIWorker):
            leaving = False

            def handle_exit_signal(self) -> None:
                """gunicorn's own closes also a connection whose last answer did not announce it."""
                if not self.leaving:
                    self.leaving = True
                    for server in self.servers:
                        server.close()
                    self._leaving = self.loop.create_task(self._leave())

            async def _leave(self) -> None:
                until = self.loop.time() + self.cfg.graceful_timeout
                while self.nr_conns and self.loop.time() < until:
                    for protocol in list(self.protocols):
                        protocol.leave()
                    await asyncio.sleep(_LOOK_SECONDS)
                self.alive = False

    Waiting.__name__ = Waiting.__qualname__ = base.__name__
    return Waiting


def _holds_something(pipe: int) -> bool:
    """Not so at the end of a pipe, which is readable as well. What is in it stays there, for the other workers."""
    count = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return any(count)


class _ControlServer(ControlSocketServer):  # type: ignore[misc]
    """gunicorn's own, that leaves its path alone once another generation has it."""

    def __init__(self, arbiter: HandedArbiter, path: str, mode: int) -> None:
        super().__init__(arbiter, "", mode)  # it would remove whatever is at the path that it knows
        self._path = path
        self._bound: tuple[int, int] | None = None

    def _found(self) -> tuple[int, int] | None:
        """What is at the path."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    async def _serve(self) -> None:
        """At the start, and again after each fork."""
        if self._bound is not None and self._found() not in (None, self._bound):
            return
        self._loop = asyncio.get_running_loop()
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._handle_client, path=self._path)  # in place of another's
        os.chmod(self._path, self.socket_mode)
        self._bound = self._found()
        self.arbiter.log.info("Control socket listening at %s", self._path)
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            async with self._server:
                await self._server.serve_forever()

    def _shutdown(self) -> None:
        if self._found() == self._bound:  # while the socket is open no other has its inode
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        super()._shutdown()


class _Announcing(ASGIProtocol):  # type: ignore[misc]
    """Ends a connection after an answer that said so, and after no other; a websocket is told to come again, a client of HTTP/2
    to open no stream."""

    _decided: Any = None
    _ends = False
    _going_away: GoingAway | None = None
    _closing: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.worker.protocols.add(self)

    def leave(self) -> None:
        """Says so where it has not been said, and can be now."""
        websocket, http2 = self._websocket, getattr(self, "_h2_conn", None)
        if self._closing is not None:
            return
        if websocket is not None:
            if websocket.accepted and not websocket.closed:
                self._closing = self.worker.loop.create_task(self._close(websocket))
        elif http2 is not None:
            self._leave_http2(http2)

    def _leave_http2(self, http2: Any) -> None:
        if self._going_away is None:
            self._going_away = GoingAway(http2.h2_conn, http2.writer.write)
            self._going_away.listen()
        elif self._going_away.heard and not self._h2_tasks and not http2.streams:
            last = http2.h2_conn.highest_inbound_stream_id
            self._closing = self.worker.loop.create_task(http2.close(last_stream_id=last))

    async def _close(self, websocket: Any) -> None:
        """The application hears of it when the client has answered, or as soon as it sends something."""
        await websocket._send_close(RESTART, "service restart")
        websocket.closed = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(websocket._close_event.wait(), _CLOSE_SECONDS)
        self.transport.close()

    def _will_close(self, request: Any, *arguments: Any) -> bool:
        if self._decided is not request:  # asked when the answer begins, and again when it is complete
            self._decided, self._ends = request, self.worker.leaving
        return self._ends or bool(super()._will_close(request, *arguments))


class _Accepting:
    """What ``create_server`` returns, for connections that come through the gate, in any event loop."""

    def __init__(self, listener: GatedListener, factory: Any, ssl: Any) -> None:
        self._loop = AcceptLoop([listener], listener.gate, protocol_handler(factory, ssl=ssl))
        self._over = False
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while not self._over:
            await self._loop.run_async()
            while self._loop.gate.closed and not self._over:  # until a rollback
                await asyncio.sleep(REOPEN_SECONDS)

    def close(self) -> None:
        self._over = True
        self._loop.stop()

    async def wait_closed(self) -> None:
        await self._task
        self._loop.close()


def _asgi_with_service(application: Any, service: Service) -> Any:
    async def handed(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["fdhandoff"] = service
        await application(scope, receive, send)

    return handed


def main() -> None:
    """gunicorn's own command line, our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        sys.argv[1:] = words
        application = Application(ours)
        ours.setdefault("handoff_name", service_name(application.app_uri, "gunicorn"))
        application.handoff = {name.removeprefix("handoff_"): value for name, value in ours.items()}
        application.run()
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
