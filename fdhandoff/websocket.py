"""Websockets that move: what has to be known of one to go on with it in another process, and what the application says of it.

The other process gets the request that the websocket began with, so that its server makes the same protocol, and the same call
of the application, as here; the answer to it, which the client has had long ago, is swallowed. Behind that follow the bytes of
a message of which only a part has come: half a frame, or some of its fragments. What the conversation is about only the
application knows: it says so in a few bytes, and finds them there (``Session``).

``travelling`` is for server protocols that are given the request's head by ``data_received`` and run an ASGI application as
``self.app(scope, receive, send)``, as uvicorn's are, whichever library reads the frames. For others ``Talk`` has what they
have in common.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import sys
from typing import TYPE_CHECKING

from .listener import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Where an ASGI application finds its ``Session``: ``scope["extensions"][EXTENSION]``.
EXTENSION = "fdhandoff.session"

RESTART = 1012  # RFC 6455's registry: service restart
_RESTART_FRAME = b"\x88\x02" + struct.pack("!H", RESTART)
# Some servers answer a ping in a later turn of the loop: so long after one its websocket does not move.
_PONG_SECONDS = 0.05
_HEAD_END = b"\r\n\r\n"
_SIZES = struct.Struct(
    "!BII"
)  # format, sizes of the request's head and of the unfinished message; then these and the state
_FORMAT = 1


class Session:
    """One websocket's conversation, for its application.

    ``state``: what the application in the generation before said of it; ``None`` for a websocket that begins here. ``moved``:
    it goes on in another generation, so what ``receive`` returns next (a ``websocket.disconnect`` with code 1012) is no end.
    """

    def __init__(self, state: bytes | None) -> None:
        self.state = state
        self.moved = False
        self.save: Callable[[], bytes | None] | None = None

    def keep(self, save: Callable[[], bytes | None]) -> None:
        """From here on this websocket moves with an upgrade, unless ``save()`` returns ``None``: the bytes that it returns are
        ``state`` over there. It is called in the event loop, when the application waits in ``receive`` and has had every
        message that came whole."""
        self.save = save


class Incoming:
    """The client's frames, looked at only for where they end. ``rest`` are the bytes of the message that is not whole yet,
    ``messages`` counts those that are, ``pings`` what is to be answered, ``closing``: the client has begun to close."""

    def __init__(self) -> None:
        self.rest = bytearray()
        self.messages = 0
        self.pings = 0
        self.closing = False
        self._fragments = 0  # of rest: whole frames of the unfinished message

    def feed(self, data: bytes) -> None:
        rest = self.rest
        rest += data
        while (end := _frame_end(rest, self._fragments)) is not None:
            first = rest[self._fragments]
            if first & 0x08:  # a control frame, between two fragments perhaps: it has been heard
                self.closing = self.closing or first & 0x0F == 0x08
                self.pings += first & 0x0F == 0x09
                del rest[self._fragments : end]
            elif first & 0x80:
                self.messages += 1
                del rest[:end]
                self._fragments = 0
            else:
                self._fragments = end


def _frame_end(data: bytearray, at: int) -> int | None:
    """Where the frame that begins at ``at`` ends; ``None`` while that is not known, or not all of it is there."""
    if len(data) < at + 2:
        return None
    size, masked = data[at + 1] & 0x7F, data[at + 1] & 0x80
    head = at + 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(data) < head + width:
            return None
        size = int.from_bytes(data[head : head + width], "big")
        head += width
    end = head + (4 if masked else 0) + size
    return end if len(data) >= end else None


class Outgoing:
    """A transport, as its protocol sees it: the answer to the request is looked at, and swallowed where the client has had it;
    nothing is written while the connection is on its way."""

    def __init__(self, transport: Any, talk: Talk, *, resumed: bool) -> None:
        self._transport = transport
        self._talk = talk
        self._head = bytearray()
        self._resumed = resumed
        self._held: list[bytes] | None = None
        self._ends = False  # and then ``write_eof``
        self.answered = False
        self.accepted = False
        self.compressed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(bytes(data))
        elif self.answered:
            self._transport.write(data)
        else:
            self._answer(data)

    def write_eof(self) -> None:
        """On its way it is a connection that somebody else may have by now."""
        if self._held is not None:
            self._ends = True
        else:
            self._transport.write_eof()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def _answer(self, data: bytes) -> None:
        self._head += data
        if not self._resumed:
            self._transport.write(data)
        head, end, behind = self._head.partition(_HEAD_END)
        if not end:
            return
        self._head.clear()
        self.answered = True
        self.accepted = head.split(b" ", 2)[1:2] == [b"101"]
        self.compressed = b"\r\nsec-websocket-extensions:" in head.lower()
        if not self._resumed:
            return
        if self.accepted and not self.compressed:
            if behind:
                self._transport.write(bytes(behind))
            self._talk.resume()
        else:  # it was accepted once: what is said now would make no sense to the client
            self._transport.write(_RESTART_FRAME)
            self._transport.close()

    # --- on its way -------------------------------------------------------------------------------------------

    def hold(self) -> None:
        self._held = []

    def resume_reading(self) -> None:
        held, self._held = self._held, None
        self._transport.resume_reading()
        if held is not None:  # nobody took it
            for data in held:
                self._transport.write(data)
            if self._ends:
                self._transport.write_eof()
            self._talk.stays()

    def abort(self) -> None:
        if self._held is not None:
            self._talk.leaves()
        self._transport.abort()


class Packed:
    """What the next process is told: the request's ``head``, the ``rest`` of an unfinished message, the application's
    ``state``."""

    def __init__(self, head: bytes, rest: bytes, state: bytes) -> None:
        self.head = head
        self.rest = rest
        self.state = state

    def encode(self) -> bytes | None:
        """``None`` where it is more than a connection's state may be."""
        data = _SIZES.pack(_FORMAT, len(self.head), len(self.rest)) + self.head + self.rest + self.state
        return data if len(data) <= Connection.STATE_MAX else None

    @classmethod
    def decode(cls, data: bytes) -> Packed:
        """``ValueError`` where it is none."""
        if len(data) < _SIZES.size:
            raise ValueError("a websocket's state is cut off")
        form, head, rest = _SIZES.unpack_from(data)
        at = _SIZES.size
        if form != _FORMAT or len(data) < at + head + rest:
            raise ValueError(f"a websocket's state has the unknown format {form}, or is cut off")
        return cls(data[at : at + head], data[at + head : at + head + rest], data[at + head + rest :])


class Talk:
    """One websocket on its way between generations, whatever server reads its frames. ``resumed`` is what came with it;
    ``feed`` gets what the client sends from the moment at which the application has accepted again."""

    def __init__(self, resumed: Packed | None, feed: Callable[[bytes], object]) -> None:
        self.session = Session(None if resumed is None else resumed.state)
        self.incoming = Incoming()
        self.delivered = 0  # messages that the application had
        self.waits = False  # the application, for the next one
        self.failed = False  # it could not say its state: it is to be told to come again
        self.outgoing: Outgoing | None = None
        self._resumed = resumed
        self._late = bytearray(resumed.rest) if resumed is not None else None
        self._feed = feed if resumed is not None else None
        self._verdict: asyncio.Future[None] | None = None

    def over(self, transport: Any) -> Outgoing:
        """What the server's protocol gets in the place of ``transport``."""
        self.outgoing = Outgoing(transport, self, resumed=self._resumed is not None)
        return self.outgoing

    def hears(self, data: bytes) -> bool:
        """The client's next bytes: whether the server may have them now. Else they follow when it can."""
        if self._late is not None:
            self._late += data
            return False
        self.incoming.feed(data)
        return True

    def resume(self) -> None:
        """The application has accepted: the client goes on."""
        asyncio.get_running_loop().call_soon(self._catch_up)

    def _catch_up(self) -> None:
        data, self._late = self._late, None
        feed, self._feed = self._feed, None
        if data and feed is not None and self.outgoing is not None and not self.outgoing.is_closing():
            feed(bytes(data))

    def ended(self) -> None:
        """The connection has. What is left of it goes at once: a collection of garbage would walk through all that is there."""
        self.outgoing = self._feed = None
        self._decide()

    def packed(self, head: bytes) -> bytes | None:
        """What the next process must know, whose request began with ``head``; ``None`` where it can't move now. It is on its
        way then, until ``stays`` or ``leaves``."""
        outgoing, incoming = self.outgoing, self.incoming
        if outgoing is None or self.session.save is None or not self.waits or self._late is not None:
            return None
        if not outgoing.accepted or outgoing.compressed or incoming.closing or incoming.messages != self.delivered:
            return None
        try:
            state = self.session.save()
            data = Packed(head, bytes(incoming.rest), state).encode() if state is not None else None
            if data is None and state is not None:
                raise ValueError(f"a websocket's state is {len(state)} bytes, which is more than can move with it")
        except Exception:  # the application's fault: the others move all the same, and this one is told to come again
            sys.excepthook(*sys.exc_info())
            self.session.save = None
            self.failed = True
            return None
        if data is not None:
            outgoing.hold()
            self._verdict = asyncio.get_running_loop().create_future()
        return data

    @property
    def may_move(self) -> bool:
        """Whether it will, as soon as it comes to rest."""
        outgoing = self.outgoing
        return self.session.save is not None and not (outgoing and outgoing.answered and outgoing.compressed)

    async def decided(self) -> None:
        """Waits while it is on its way: what is sent meanwhile would come from two processes."""
        while self._verdict is not None:
            await asyncio.shield(self._verdict)

    def stays(self) -> None:
        self._decide()

    def leaves(self) -> None:
        self.session.moved = True
        self._decide()

    def _decide(self) -> None:
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            verdict.set_result(None)


def _only_trouble(logger: logging.Logger | logging.LoggerAdapter[Any]) -> logging.Logger:
    """For a client that would be said to have connected, when it only goes on."""
    parent = logger if isinstance(logger, logging.Logger) else logger.logger
    quiet = logging.Logger(parent.name, logging.WARNING)
    quiet.parent = parent
    return quiet


def travelling(base: Any) -> Any:
    """``base``, a server's protocol for websockets, that can move. The class's ``settled(protocol)`` is called when one may
    have come to rest; its ``arriving`` is what the next one that is made goes on with."""

    class Travelling(base):  # type: ignore[misc]
        logger: Any
        settled: Callable[[Any], object] = staticmethod(lambda _: None)
        arriving: Packed | None = None

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            resumed, type(self).arriving = type(self).arriving, None
            self.talk = Talk(resumed, self.data_received)
            self._request = b""
            self._now = asyncio.get_running_loop().time
            self._pinged = -_PONG_SECONDS
            self._logger = self.logger
            if resumed is not None:
                self.logger = _only_trouble(self.logger)

        @property
        def app(self) -> Any:
            return self._run_application

        @app.setter
        def app(self, application: Any) -> None:
            self._application = application

        def connection_made(self, transport: Any) -> None:
            super().connection_made(self.talk.over(transport))

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.talk.ended()

        def data_received(self, data: bytes) -> None:
            if not self._request:
                self._request, end, data = data.partition(_HEAD_END)
                self._request += end
                super().data_received(self._request)
                if not data:
                    return
            pings = self.talk.incoming.pings
            if self.talk.hears(data):
                super().data_received(data)
                if self.talk.incoming.pings != pings:
                    self._pinged = self._now()

        async def _run_application(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
            talk = self.talk
            session = talk.session

            async def receiving() -> dict[str, Any]:
                talk.waits = True
                if session.save is not None:
                    self.settled(self)
                try:
                    message = await receive()
                finally:
                    talk.waits = False
                if message["type"] == "websocket.receive":
                    talk.delivered += 1
                if session.moved:
                    return {"type": "websocket.disconnect", "code": RESTART, "reason": "moved"}
                return message

            async def sending(message: dict[str, Any]) -> None:
                await talk.decided()
                await send(message)

            async def resuming(message: dict[str, Any]) -> None:
                await sending(message)
                self.logger = self._logger

            extensions = {**(scope.get("extensions") or {}), EXTENSION: session}
            try:
                await self._application(
                    {**scope, "extensions": extensions}, receiving, sending if self.logger is self._logger else resuming
                )
            finally:
                session.save = None

        def packed(self) -> bytes | None:
            """What the next process must know; ``None`` where it can't move now."""
            if self._now() - self._pinged < _PONG_SECONDS:
                asyncio.get_running_loop().call_later(_PONG_SECONDS, self.settled, self)
                return None
            return self.talk.packed(self._request)

    Travelling.__name__ = Travelling.__qualname__ = base.__name__
    return Travelling
