"""Sanic, upgraded without a failed request: ``run(app, …)`` in place of ``app.run(…)``, and
``python -m fdhandoff.servers.sanic module:app …`` in place of ``sanic module:app …``, with Sanic's own options.

One process, without Sanic's manager: that shuts the listener down for everybody who has it. A connection that rests moves to
the new generation; any other is told ``Connection: close`` with its next answer. A websocket is closed with code 1012.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import TYPE_CHECKING

try:
    from sanic.application.constants import ServerStage
    from sanic.application.state import ApplicationServerInfo
    from sanic.cli.app import SanicCLI
    from sanic.helpers import _default
    from sanic.http import Http, Stage
    from sanic.http.constants import HTTP
    from sanic.http.tls import process_to_context
    from sanic.models.server_types import Signal
    from sanic.server.protocols.http_protocol import HttpProtocol
    from sanic.server.protocols.websocket_protocol import WebSocketProtocol
    from sanic.server.runners import _build_protocol_kwargs
    from sanic.worker.loader import AppLoader
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs sanic: pip install 'sanic>=25.3' ({error})") from None

from ..adapting import address_of, dual, listeners_of, service_name, settings, split, taken
from ..errors import HandoffError
from ..passage import Passage
from ..service import Service
from ..websocket import RESTART

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

# They start processes, or threads that do; what they do can't be had with one process whose successor is another's to start.
_MANAGED = ("workers", "fast", "auto_reload", "reload_dir", "dev")
# Options of the command line alone that would be ignored here, as they are called there, and what to do instead.
_DAEMON = "the adapter stays in the foreground: use fdhandoff-cli run --daemon --pidfile FILE --log FILE -- …"
_USER = "the adapter stays the user who has started it: use fdhandoff-cli run --user USER --group GROUP -- …"
_REFUSED = {
    "auto_tls": ("--auto-tls", "it is for development: make a certificate, as with mkcert, and give --cert and --key"),
    "daemon": ("--daemon", _DAEMON),
    "pidfile": ("--pidfile", _DAEMON),
    "logfile": ("--logfile", _DAEMON),
    "daemon_user": ("--user", _USER),
    "daemon_group": ("--group", _USER),
    "repl": ("--repl", "it is for development: use Sanic itself for that"),
}


def run(
    app: Any,
    host: str | None = None,
    port: int | None = None,
    *,
    unix: str | None = None,
    ssl: Any = None,
    backlog: int = 100,
    **options: Any,
) -> None:
    """``app.run`` in this process, until a newer generation serves or it is told to stop; then what is inside has the
    application's ``GRACEFUL_SHUTDOWN_TIMEOUT``. ``host`` (127.0.0.1) and ``port`` (8000), or a ``unix`` socket's path; ``ssl``
    as Sanic takes it; other ``options`` are those of ``app.create_server`` (``debug``, ``access_log``, …). The ``handoff_…``
    keywords are ``fdhandoff.adapting.Handoff``'s. Handlers find the ``Service`` as ``request.app.ctx.fdhandoff``.

    ``ValueError`` where Sanic would start processes (``workers``, ``fast``, ``auto_reload``, ``dev``). Raises what ``Service``
    raises.
    """
    managed = {name: options.pop(name, None) for name in _MANAGED}
    asked = [name for name, value in managed.items() if value and (name != "workers" or value != 1)]
    if asked:
        raise ValueError(
            f"{asked[0].replace('_', '-')} is for Sanic's manager, which shuts the listener down for all who have it: "
            "use fdhandoff-cli run --workers N -- … for several processes, and Sanic itself for development"
        )
    if unix:
        where = f"unix:{unix}?mode=0666&backlog={backlog}"
    else:
        where = dual(f"{_where(host or '127.0.0.1', 8000 if port is None else port)}?backlog={backlog}")
    handoff = settings(taken(options), service_name(app.name, "sanic"))
    with Service(**handoff, grace=float(app.config.GRACEFUL_SHUTDOWN_TIMEOUT)) as service:
        listeners = listeners_of(service, "http", where)
        app.ctx.fdhandoff = service
        app.setup_loop()  # uvloop where it is there, as under Sanic itself
        context = process_to_context(ssl)
        # As app.run notes it: where it can't see that there is HTTP/1 alone, each answer gets an empty alt-svc.
        there = {"host": host, "port": port, "unix": unix, "sock": listeners[0], "ssl": context}
        noted = ApplicationServerInfo({"version": HTTP.VERSION_1, **there}, ServerStage.SERVING)
        app.state.server_info.append(noted)
        asyncio.run(_serve(service, app, listeners[0], context, options))


def _where(host: str, port: int) -> str:
    """The one address that Sanic itself would bind."""
    with contextlib.suppress(OSError):  # whoever binds it says so
        host = host if ":" in host else socket.gethostbyname(host)
    return address_of(host, port)


async def _serve(service: Service, app: Any, listener: socket.socket, ssl: Any, options: dict[str, Any]) -> None:
    connections: set[Any] = set()
    # Sanic's own server is there for its events, and accepts nothing. It would say that the choice of a loop is not heeded.
    loops, app.config.USE_UVLOOP = app.config.USE_UVLOOP, _default
    server = await app.create_server(sock=listener.dup(), asyncio_server_kwargs={"start_serving": False}, **options)
    app.config.USE_UVLOOP = loops
    await server.startup()
    await server.before_start()
    protocol_class = RestingWebSocket if app.websocket_enabled else Resting
    loop = asyncio.get_running_loop()
    settings: dict[str, Any] = _build_protocol_kwargs(protocol_class, app.config)

    def factory() -> Any:
        protocol: Any = protocol_class(
            loop=loop, connections=connections, signal=Signal(), app=app, unix=None, state=None, **settings
        )
        protocol.passage = passage
        return protocol

    passage = Passage(service, factory, everyone=lambda: list(connections), movable=_movable, watch=_watch, ssl=ssl)
    try:
        await service.ready_async()
        await server.after_start()
        accepting = asyncio.create_task(passage.serve())
        await service.wait_async()
        await passage.leave()
        await server.before_stop()
        for connection in list(connections):
            if connection.websocket is not None:
                connection.websocket.fail_connection(code=RESTART)
        report = await service.drain_async()
        await accepting
        service.say(str(report))
        for connection in list(connections):
            connection.abort()
    finally:
        app.shutdown_tasks(0)
        await server.close()
        await server.after_stop()


class Resting(HttpProtocol):
    """Sanic's protocol, and nothing else as long as the service serves."""

    __slots__ = ("passage",)

    websocket = None


class RestingWebSocket(WebSocketProtocol):
    """The same where the application has websockets: Sanic, too, has a protocol that costs more for that."""

    __slots__ = ("passage",)


class _WatchedHttp(Http):
    """In a process that drains: Sanic's reader of a connection's requests, which knows when it begins to wait for one."""

    __slots__ = ()

    def init_for_request(self) -> None:
        super().init_for_request()  # type: ignore[no-untyped-call]
        protocol: Any = self.protocol
        protocol.passage.later(protocol)

    async def http1_response_header(self, data: Any, end_stream: bool) -> None:
        protocol: Any = self.protocol
        if protocol.passage.announced and not self.recv_buffer:
            self.keep_alive = False
        await super().http1_response_header(data, end_stream)


class _Watched(Resting):
    __slots__ = ()

    HTTP_CLASS = _WatchedHttp


class _WatchedWebSocket(RestingWebSocket):
    __slots__ = ()

    HTTP_CLASS = _WatchedHttp


def _watch(protocol: Any) -> None:
    protocol.__class__ = _WatchedWebSocket if isinstance(protocol, RestingWebSocket) else _Watched
    http = protocol.http
    if http is None:
        return  # it has just come
    head = http.http1_response_header
    http.__class__ = _WatchedHttp
    if getattr(http, "response_func", None) == head:  # of a request that is being answered
        http.response_func = http.http1_response_header


def _movable(protocol: Any) -> bytes | None:
    http = protocol.http
    rests = http is not None and http.stage is Stage.IDLE and not protocol.recv_buffer and protocol.websocket is None
    return b"" if rests else None


def _refuse(arguments: Namespace) -> None:
    """``ValueError`` for what would be another server than the one that was asked for."""
    given = vars(arguments)
    for name, (option, instead) in _REFUSED.items():
        if given.get(name):
            raise ValueError(f"{option} is not for here, {instead}")
    if 3 in (given.get("http") or ()):
        raise ValueError("--http 3 is not for here, HTTP/1.1 is what the adapter serves: use Sanic itself for HTTP/3")
    action = given.get("action", "serve")
    if action != "serve":
        raise ValueError(f"{action} is not for here, only serving is: use Sanic itself for that")


def main() -> None:
    """Sanic's own command line, and our options."""
    try:
        ours, words = split(sys.argv[1:])
        line: Any = SanicCLI()
        line.attach()
        line.args = line.parser.parse_args(words)
        _refuse(line.args)
        line._precheck()
        app = line._get_app(AppLoader(line.args.target, line.args.factory, line.args.simple, line.args))
        options = line._build_run_kwargs()
        app.state.verbosity = options.pop("verbosity")
        for name in ("coffee", "motd", "single_process", "auto_tls"):
            options.pop(name, None)
        run(app, **options, **ours)
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
