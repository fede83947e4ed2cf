"""aiohttp, upgraded without a failed request: ``run_app(app, …)`` in place of ``aiohttp.web.run_app(app, …)``.

A connection that rests moves to the new generation; any other is told ``Connection: close`` with its next answer, and a
websocket is closed with code 1012.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, cast

try:
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs aiohttp: pip install 'aiohttp>=3.10' ({error})") from None

from ..adapting import address_of, listeners_of, service_name
from ..passage import Passage
from ..service import Service

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Awaitable
    from typing import Any

#: The running application's ``Service``: ``request.app[SERVICE]``.
SERVICE = web.AppKey("fdhandoff", Service)

_RESTART = 1012  # RFC 6455's registry: service restart
_END = b"\r\n\r\n"


def run_app(
    app: web.Application | Awaitable[web.Application],
    *,
    host: str | None = None,
    port: int | None = None,
    path: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    backlog: int = 128,
    shutdown_timeout: float = 60.0,
    handoff_name: str = "",
    handoff_path: str = "",
    handoff_probation: float = 5.0,
    **options: Any,
) -> None:
    """``aiohttp.web.run_app`` until a newer generation serves, or until it is told to stop. ``host`` (all addresses) and
    ``port`` (8080; 8443 with ``ssl_context``) or a Unix socket's ``path``; ``shutdown_timeout``: how many seconds what is
    inside may take. ``handoff_name`` is the service's (default: the program's), ``handoff_path`` its handoff path,
    ``handoff_probation`` the seconds in which it takes the service back from a successor that dies. Other ``options`` are
    ``AppRunner``'s. Handlers find the ``Service`` as ``request.app[fdhandoff.servers.aiohttp.SERVICE]``. Raises what
    ``Service`` raises.
    """
    if path is not None:
        address = f"unix:{path}?backlog={backlog}"
    else:
        number = port if port is not None else 8443 if ssl_context is not None else 8080
        address = f"{address_of('' if host in (None, '::') else str(host), number)}?backlog={backlog}"
    with Service(
        handoff_name or service_name(None, "aiohttp"),
        path=handoff_path,
        probation=handoff_probation,
        grace=shutdown_timeout,
    ) as service:
        listeners_of(service, "http", address)
        asyncio.run(_serve(service, app, ssl_context, options))


async def _serve(
    service: Service,
    app: web.Application | Awaitable[web.Application],
    ssl_context: ssl.SSLContext | None,
    options: dict[str, Any],
) -> None:
    application = app if isinstance(app, web.Application) else await app
    application[SERVICE] = service
    sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        if isinstance(response, web.WebSocketResponse):
            sockets.add(response)
        elif passage.announced or (service.draining and request.body_exists):  # behind a body it is not known to rest
            response.headers["Connection"] = "close"
            response.force_close()

    application.on_response_prepare.append(prepare)
    runner = web.AppRunner(application, handle_signals=False, **options)
    await runner.setup()
    try:
        server = cast("web.Server", runner.server)

        def factory() -> Resting:
            return Resting(passage, server, loop=asyncio.get_running_loop(), **server._kwargs)

        passage = Passage(
            service, factory, everyone=lambda: server.connections, movable=lambda one: one.state(), ssl=ssl_context
        )
        await service.ready_async()
        accepting = asyncio.create_task(passage.serve())
        await service.wait_async()
        await passage.leave()
        for one in list(sockets):
            await one.close(code=_RESTART, message=b"service restart")
        report = await service.drain_async()
        await accepting
        service.say(f"{passage.moved} connections moved on, {report.finished - passage.moved} ended here")
        runner._shutdown_timeout = 0.01  # it has had its time; 0 would be without end
    finally:
        await runner.cleanup()


class Resting(RequestHandler):
    """aiohttp's protocol, which knows when its connection rests."""

    def __init__(self, passage: Passage, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._passage = passage
        self._whole = True  # what has come ends with the end of a request's head: nothing is half read

    def data_received(self, data: bytes) -> None:
        if data:
            self._whole = data.endswith(_END)
        super().data_received(data)

    def state(self) -> bytes | None:
        """``None`` where it does not rest, or where that can't be known: behind a request's body the beginning of the next
        request may lie in the parser."""
        waiter = self._waiter
        rests = waiter is not None and not waiter.done() and not self._messages and not self._upgraded
        return b"" if rests and self._whole and self._payload_parser is None else None

    async def finish_response(self, *arguments: Any) -> Any:
        result = await super().finish_response(*arguments)
        # When this turn is over the handler waits for the next request, if the connection is kept.
        self._passage.later(self)
        return result
