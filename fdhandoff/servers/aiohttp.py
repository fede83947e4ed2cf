"""aiohttp, upgraded without a failed request: ``run_app(app, …)`` in place of ``aiohttp.web.run_app(app, …)``.

A connection that rests moves to the new generation; any other is told ``Connection: close`` with its next answer. A websocket
that is a ``WebSocketResponse`` of this module, and whose application keeps its state, moves; any other is closed with code
1012.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, cast

try:
    from aiohttp import WSMessage, web
    from aiohttp.streams import EMPTY_PAYLOAD
    from aiohttp.web_protocol import RequestHandler
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs aiohttp: pip install 'aiohttp>=3.10' ({error})") from None

from ..adapting import address_of, listeners_of, service_name, settings, taken
from ..passage import Passage
from ..service import Service
from ..websocket import RESTART, Packed, Talk

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Awaitable, Iterable, Iterator
    from typing import Any

    from aiohttp.abc import AbstractStreamWriter

    from ..websocket import Session

#: The running application's ``Service``: ``request.app[SERVICE]``.
SERVICE = web.AppKey("fdhandoff", Service)

_END = b"\r\n\r\n"
_CR, _LF, _G = b"\r\nG"
_received = RequestHandler.data_received


_REFUSED = {
    "sock": "listeners come by LISTEN_FDS; what host and port say is bound where none came",
    "reuse_port": "each generation would have a queue of its own; workers are fdhandoff-cli run --workers",
}
_WITHOUT_EFFECT = ("print", "loop", "reuse_address", "handle_signals")


def run_app(
    app: web.Application | Awaitable[web.Application],
    *,
    host: str | None = None,
    port: int | None = None,
    path: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    backlog: int = 128,
    shutdown_timeout: float = 60.0,
    **options: Any,
) -> None:
    """``aiohttp.web.run_app`` until a newer generation serves, or until it is told to stop. ``host`` (all addresses) and
    ``port`` (8080; 8443 with ``ssl_context``) or a Unix socket's ``path``; ``shutdown_timeout``: how many seconds what is
    inside may take. The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s, other ``options`` are ``AppRunner``'s;
    of ``web.run_app``'s own ``print``, ``loop``, ``reuse_address`` and ``handle_signals`` have no effect, and ``sock`` and
    ``reuse_port`` are refused: ``ValueError``.
    Handlers find the ``Service`` as ``request.app[fdhandoff.servers.aiohttp.SERVICE]``. Raises what ``Service`` raises.
    """
    if path is not None:
        address = f"unix:{path}?backlog={backlog}"
    else:
        number = port if port is not None else 8443 if ssl_context is not None else 8080
        address = f"{address_of('' if host in (None, '::') else str(host), number)}?backlog={backlog}"
    for name, instead in _REFUSED.items():
        if options.pop(name, None):
            raise ValueError(f"{name}: {instead}")
    for name in _WITHOUT_EFFECT:
        options.pop(name, None)
    debug = bool(options.pop("debug", False))
    handoff = settings(taken(options), service_name(None, "aiohttp"))
    with Service(**handoff, grace=shutdown_timeout) as service:
        listeners_of(service, "http", address)
        asyncio.run(_serve(service, app, ssl_context, options), debug=debug or None)


async def _serve(
    service: Service,
    app: web.Application | Awaitable[web.Application],
    ssl_context: ssl.SSLContext | None,
    options: dict[str, Any],
) -> None:
    application = app if isinstance(app, web.Application) else await app
    application[SERVICE] = service
    ending: dict[web.WebSocketResponse, asyncio.Task[bool]] = {}

    def end(them: Iterable[web.WebSocketResponse]) -> None:
        """1012: come again. Each waits a while for its client's answer, and none for another's."""
        for one in them:
            if not one.closed and one not in ending:
                ending[one] = asyncio.create_task(one.close(code=RESTART, message=b"service restart"))

    def movable(one: Resting) -> bytes | None:
        state = one.state()
        if one.talk is not None and one.talk.failed and one._websocket is not None:
            end([one._websocket])
        return state

    def announce() -> None:
        _announce(application)
        end(list(websockets))

    runner = web.AppRunner(application, handle_signals=False, **options)
    await runner.setup()
    try:
        server = cast("web.Server", runner.server)

        def factory() -> Resting:
            return Resting(passage, server, loop=asyncio.get_running_loop(), **server._kwargs)

        passage = Passage(
            service,
            factory,
            everyone=lambda: server.connections,
            movable=movable,
            restore=lambda one, state: one.restore(state),
            watch=Resting.watch,
            announce=announce,
            ssl=ssl_context,
        )
        factory()  # an option that is none is known before anything is taken over, and not with the first connection
        with _websockets() as websockets:
            await service.ready_async()
            accepting = asyncio.create_task(passage.serve())
            await service.wait_async()
            await passage.leave()
            end([one for one in websockets if not (isinstance(one, WebSocketResponse) and one.may_move)])
            report = await service.drain_async()
            await accepting
            if report.forced:
                end(list(websockets))
                await asyncio.sleep(0)  # says so, and waits for no answer
        words = str(report)
        if ending:
            words += f", of which {len(ending)} were websockets that could not move"
        service.say(words)
        runner._shutdown_timeout = 0.01  # it has had its time; 0 would be without end
    finally:
        for task in ending.values():
            task.cancel()
        await asyncio.gather(*ending.values(), return_exceptions=True)
        await runner.cleanup()


# What an answer does not need costs it nothing: aiohttp's signal is not used while the service serves.


@contextlib.contextmanager
def _websockets() -> Iterator[weakref.WeakSet[web.WebSocketResponse]]:
    """Those that are open, of all applications."""
    found: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()
    websocket: Any = web.WebSocketResponse
    prepare = websocket.prepare

    @wraps(prepare)
    async def noting(self: web.WebSocketResponse, request: web.BaseRequest) -> Any:
        writer = await prepare(self, request)
        found.add(self)
        return writer

    websocket.prepare = noting
    try:
        yield found
    finally:
        websocket.prepare = prepare


def _announce(application: web.Application) -> None:
    """From here on each answer says that its connection ends. The application's own signal is frozen since it started."""

    async def end(_: web.Request, response: web.StreamResponse) -> None:
        if not isinstance(response, web.WebSocketResponse):
            response.headers["Connection"] = "close"
            response.force_close()

    signal = type(application.on_response_prepare)(application)
    signal.extend([*application.on_response_prepare, end])
    signal.freeze()
    application._on_response_prepare = signal


_waiter = vars(RequestHandler)["_waiter"]  # its slot


class Resting(RequestHandler):
    """aiohttp's protocol, which knows when its connection rests.

    The parser keeps the beginning of a request's head to itself. So it is counted where requests end: what has come is whole
    when that is also where it ends.
    """

    def __init__(self, passage: Passage, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._passage = passage
        self._missing = 0  # bytes of a body that are to come; -1 where that is not known, as in a head
        self._head = b""  # then: the last bytes of it
        self.talk: Talk | None = None  # of a websocket that may move
        self._websocket: WebSocketResponse | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.talk is not None:
            self.talk.ended()

    def data_received(self, data: bytes) -> None:
        # Nearly always it is the whole head of a GET, or several: LF, CR, LF at its end. After that nothing is half read where
        # aiohttp waits for a request, even if it was of a body. Looked at byte by byte: what else could be asked (``endswith``,
        # the messages) takes a busy server up to one per cent more.
        if len(data) > 3 and data[-1] == data[-3] == _LF and data[-2] == _CR and data[0] == _G and not self._missing:
            _received(self, data)
            return
        messages = self._messages
        before = len(messages)
        _received(self, data)
        self._count(data, islice(messages, before, None))

    def _count(self, data: bytes, found: Iterable[Any]) -> None:
        """``data`` came, and the parser found these messages in it. Of a body whose head was not looked at the end is sought
        too early: then it is not known whether anything follows."""
        if self._upgraded:
            return
        text = self._head + data
        end: int | None = self._missing if self._missing >= 0 else 0 if self._head else None
        for message, payload in found:
            end = None if end is None else _end_of(message, payload, text, end, self._head)
            self._head = b""
        if end is not None and end >= len(text):
            self._missing, self._head = end - len(text), b""
        elif text.endswith(_END):  # of a head, or of a body that came in chunks
            self._missing, self._head = 0, b""
        elif data:
            self._missing, self._head = -1, text[max(end or 0, len(text) - 3) :]

    def begin_talk(self, websocket: WebSocketResponse) -> Talk:
        """Before its request is answered."""
        talk = self.talk
        if talk is None:
            self.watch()
            talk = self.talk = Talk(None, self.data_received)
            talk.incoming.feed(self._message_tail)  # a client in a hurry
            self.transport = cast("asyncio.Transport", talk.over(self.transport))
        self._websocket = websocket
        return talk

    def no_talk(self) -> None:
        """It became none: the request was wrong."""
        self._websocket = None

    def settled(self) -> None:
        self._passage.settled(self)

    def restore(self, state: bytes) -> None:
        """``state`` is what ``state`` said. A websocket begins as it did at first, with its request."""
        if not state:
            return
        try:
            packed = Packed.decode(state)
        except ValueError as error:
            self._passage.service.say(f"{error}: it is closed")
            cast("asyncio.Transport", self.transport).abort()
            return
        self.watch()
        talk = Talk(packed, self.data_received)
        self.transport = cast("asyncio.Transport", talk.over(self.transport))
        self.data_received(packed.head)
        self.talk = talk

    def state(self) -> bytes | None:
        """``None`` where it does not rest, or where that is not known."""
        if self._websocket is not None:
            return self._websocket.packed()
        waiter = self._waiter
        rests = waiter is not None and not waiter.done() and not self._messages and not self._upgraded
        return b"" if rests and not self._missing and self._payload_parser is None else None

    def watch(self) -> None:
        self.__class__ = Watched


class Watched(Resting):
    """The same in a process that drains, or of a websocket that may move: it says when it comes to rest, when it begins to wait
    for the next request, and a websocket's ``talk`` hears what the client sends."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        if self.talk is None or not data or self.talk.hears(data):
            super().data_received(data)

    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        return _waiter.__get__(self)  # type: ignore[no-any-return]

    @_waiter.setter
    def _waiter(self, waiter: asyncio.Future[None] | None) -> None:
        _waiter.__set__(self, waiter)
        if waiter is not None:
            self._passage.later(self)


class WebSocketResponse(web.WebSocketResponse):
    """``aiohttp.web.WebSocketResponse``, that moves: from ``prepare()`` on there is a ``session``
    (``fdhandoff.websocket.Session``): ``session.state`` is what was kept in the generation before, and with
    ``session.keep(save)`` it moves. In the old process ``receive`` ends then, and ``session.moved`` is true.

    Behind ``fdhandoff.servers.aiohttp.run_app`` alone: elsewhere it is aiohttp's, and its session never moves.
    """

    _talk: Talk | None = None

    @property
    def session(self) -> Session:
        """``RuntimeError`` before ``prepare()``."""
        if self._talk is None:
            raise RuntimeError("there is a session from prepare() on")
        return self._talk.session

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        if self._talk is None:
            protocol = request.protocol
            self._request = request
            self._talk = (
                protocol.begin_talk(self) if isinstance(protocol, Resting) else Talk(None, protocol.data_received)
            )
        try:
            return await super().prepare(request)
        except web.HTTPException:
            if isinstance(request.protocol, Resting):
                request.protocol.no_talk()
            raise

    async def receive(self, timeout: float | None = None) -> Any:
        talk = self._talk
        if talk is None:
            return await super().receive(timeout)
        protocol = self._request.protocol
        talk.waits = True
        if talk.session.save is not None and isinstance(protocol, Resting):
            protocol.settled()
        try:
            message = await super().receive(timeout)
        finally:
            talk.waits = False
        if message.type in (web.WSMsgType.TEXT, web.WSMsgType.BINARY):
            talk.delivered += 1
        return WSMessage(web.WSMsgType.CLOSED, None, None) if talk.session.moved else message

    @property
    def may_move(self) -> bool:
        """Whether it will, as soon as it comes to rest."""
        return self._talk is not None and self._talk.may_move

    def packed(self) -> bytes | None:
        """What the next process must know; ``None`` where it can't move now."""
        # A ping that was read is not answered yet, say.
        if self._talk is None or self._reader is None or self._reader._buffer:
            return None
        return self._talk.packed(_head(self._request))

    async def send_frame(self, *arguments: Any, **options: Any) -> None:
        await self._decided()
        await super().send_frame(*arguments, **options)

    async def send_str(self, *arguments: Any, **options: Any) -> None:
        await self._decided()
        await super().send_str(*arguments, **options)

    async def send_bytes(self, *arguments: Any, **options: Any) -> None:
        await self._decided()
        await super().send_bytes(*arguments, **options)

    async def ping(self, message: bytes = b"") -> None:
        await self._decided()
        await super().ping(message)

    async def pong(self, message: bytes = b"") -> None:
        await self._decided()
        await super().pong(message)

    async def close(self, **options: Any) -> bool:
        await self._decided()
        return await super().close(**options)

    async def _decided(self) -> None:
        if self._talk is not None:
            await self._talk.decided()


def _head(request: web.BaseRequest) -> bytes:
    """The request as it came, but for white space."""
    lines = [f"{request.method} {request.raw_path} HTTP/1.1".encode("utf-8", "surrogateescape")]
    lines += [name + b": " + value for name, value in request.raw_headers]
    return b"\r\n".join(lines) + _END


def _end_of(message: Any, payload: Any, text: bytes, start: int, head: bytes) -> int | None:
    """Where in ``text`` a message ends that begins at ``start``, or in the ``head`` that ``text`` begins with."""
    if not head:
        while text.startswith(b"\r\n", start):  # empty lines before it
            start += 2
    end = text.find(_END, start)
    if end < 0 or getattr(message, "chunked", True):
        return None
    length = "0" if payload is EMPTY_PAYLOAD else message.headers.get("Content-Length", "")
    return end + len(_END) + int(length) if length.isdecimal() else None
