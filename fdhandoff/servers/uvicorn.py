"""uvicorn, upgraded without a failed request: ``run(app, …)`` in place of ``uvicorn.run(app, …)``, and
``python -m fdhandoff.servers.uvicorn app:app …`` in place of ``uvicorn app:app …``, with uvicorn's own options.

An idle connection moves to the new generation, a busy one between two of its requests: no client is told to reconnect. For TLS,
and where nobody takes connections over, answers say ``Connection: close``. A websocket moves where its application keeps its
state (``fdhandoff.websocket.Session``), and is closed with code 1012 otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import weakref
from functools import partial
from typing import TYPE_CHECKING

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs uvicorn: pip install 'uvicorn>=0.54' ({error})") from None

from ..adapting import address_of, listeners_of, service_name, settings, split, taken
from ..crew import run_crew
from ..errors import HandoffError
from ..passage import Passage
from ..service import Service
from ..websocket import Packed, travelling

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

    from ..prefork import PreforkWorker

# Where the protocols are defined of which is known when a connection rests; the second needs a package of its own.
_KNOWN = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")
_STARTUP_FAILURE = 3  # uvicorn's own exit status for it
_CLOSE = (b"connection", b"close")
# Where --timeout-graceful-shutdown does not say it: uvicorn would wait for ever.
_GRACE_SECONDS = 30.0
# For the end of what is cut; and how often it is looked whether somebody hurries.
_CUT_SECONDS = 3.0
_LOOK_SECONDS = 0.1


def run(
    app: Any,
    *,
    app_dir: str | None = None,
    **options: Any,
) -> None:
    """``uvicorn.run(app, **options)``, until a newer generation serves or it is told to stop. The ``handoff_…`` keywords are
    ``fdhandoff.adapting.Handoff``'s. The application finds the ``Service`` in its lifespan's state, as
    ``scope["state"]["fdhandoff"]``. Raises what ``Service`` raises; ``SystemExit`` (3) where the application does not start.

    With ``workers`` above 1 so many processes serve, whose application finds a ``PreforkWorker`` there: its generation, whether
    it drains. uvicorn's ``reload`` is refused: ``ValueError``.
    """
    if app_dir is not None:
        sys.path.insert(0, app_dir)
    handoff = settings(taken(options), service_name(app, "uvicorn"))
    config = uvicorn.Config(app, **options)
    if config.should_reload:
        raise ValueError("reload is for development: use uvicorn itself for that")
    grace = config.timeout_graceful_shutdown
    with Service(**handoff, grace=_GRACE_SECONDS if grace is None else float(grace)) as service:
        if config.fd is not None and not service.inherited:
            raise ValueError("--fd: listeners come by LISTEN_FDS; what --host and --port say is bound where none came")
        listeners = listeners_of(service, "http", _address(config))
        if config.workers == 1:
            Server(config, service).run()
            return
        status = run_crew(service, listeners, config.workers, lambda member: Server(config, member).run())
    if status:
        sys.exit(status)


def _address(config: uvicorn.Config) -> str:
    """What uvicorn's options say."""
    if config.uds is not None:
        return f"unix:{config.uds}?mode=0666&backlog={config.backlog}"  # the mode that uvicorn gives it
    return f"{address_of(config.host, config.port)}?backlog={config.backlog}"


class Server(uvicorn.Server):
    """A uvicorn server that accepts from ``service``, whose owner it becomes."""

    def __init__(self, config: uvicorn.Config, service: Service | PreforkWorker) -> None:
        super().__init__(config)
        self.service = service
        self.passage: Passage | None = None
        self._ended_websockets: weakref.WeakSet[Any] = weakref.WeakSet()
        self.websockets_ended = 0
        self._is_known = False  # by us, uvicorn's protocol
        self._accepting: asyncio.Task[str] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the service's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        self.lifespan.state["fdhandoff"] = self.service
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(_STARTUP_FAILURE)
        config = self.config
        base: Any = config.http_protocol_class
        if not hasattr(base, "on_response_complete"):
            raise ValueError(f"uvicorn's {base.__name__} is not served here: say --http h11 or --http httptools")
        self._is_known = any(one.__module__ in _KNOWN for one in base.__mro__)
        protocol_class = _passing(base)
        websocket_class: Any = config.ws_protocol_class
        if websocket_class is not None:
            websocket_class = config.ws_protocol_class = travelling(websocket_class)

        def factory() -> asyncio.Protocol:
            return protocol_class(  # type: ignore[no-any-return]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        self.servers = []
        self.passage = Passage(
            self.service,
            factory,
            everyone=lambda: list(self.server_state.connections),
            movable=self._movable,
            restore=partial(_restore, websocket_class),
            announce=self._announce,
            ssl=config.ssl,
        )
        protocol_class.passage = self.passage
        if websocket_class is not None:
            websocket_class.settled = staticmethod(self.passage.settled)
        try:
            await self.service.ready_async()
        except BaseException:
            await self.lifespan.shutdown()
            raise
        self.started = True
        self._accepting = asyncio.create_task(self.passage.serve())

    async def main_loop(self) -> None:
        assert self._accepting is not None
        ticking, ending = asyncio.create_task(super().main_loop()), asyncio.create_task(self.service.wait_async())
        await asyncio.wait({ticking, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():  # as many requests as it may answer: it drains, and whoever started it starts another
            self.service.stop()
            await ending
        ticking.cancel()  # it looks at the clock only: what is to happen now need not wait for that
        await asyncio.gather(ticking, return_exceptions=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        passage = self.passage
        assert passage is not None
        if not self._is_known:
            self._announce()  # nobody can say when such a connection rests: it does not move
        await passage.leave()
        for websocket in self._websockets():
            if not websocket.talk.may_move:
                self._end(websocket)
        report = await self.service.drain_async()
        if self._accepting is not None:
            await self._accepting
        if report.forced:
            self._end_websockets()
            for connection in list(self.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            for task in list(self.server_state.tasks):
                task.cancel()
        words = str(report)
        if self.websockets_ended:
            words += f", of which {self.websockets_ended} were websockets that could not move"
        self.service.say(words)
        if self.server_state.connections or self.server_state.tasks:
            await self._finish(report.seconds)
        else:  # nobody is left for whom it would wait, a tenth of a second at least
            logging.getLogger("uvicorn.error").info("Shutting down")
            await self.lifespan.shutdown()

    async def _finish(self, spent: float) -> None:
        """What the application does behind its last answers has the rest of the grace period, and what was cut a moment."""
        grace = self.service.grace
        if grace is not None:
            self.config.timeout_graceful_shutdown = math.ceil(max(_CUT_SECONDS, grace - spent))
        ending = asyncio.create_task(super().shutdown())
        while not (await asyncio.wait({ending}, timeout=_LOOK_SECONDS))[0]:
            self.force_exit = self.force_exit or self.service.hurried
        await ending

    def _announce(self) -> None:
        """From here on each answer says that its connection ends, and so do the websockets."""
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        self._end_websockets()

    def _movable(self, protocol: Any) -> bytes | None:
        """Nothing has to be said of a connection between two requests, and of a websocket what its application keeps."""
        if _is_http(protocol):
            if _rests(protocol):
                return b""
            protocol.watch()
            return None
        state: bytes | None = protocol.packed()
        if protocol.talk.failed:
            self._end(protocol)
        return state

    def _end_websockets(self) -> None:
        for websocket in self._websockets():
            self._end(websocket)

    def _websockets(self) -> list[Any]:
        return [connection for connection in self.server_state.connections if not _is_http(connection)]

    def _end(self, websocket: Any) -> None:
        """1012: come again."""
        if websocket not in self._ended_websockets:
            self._ended_websockets.add(websocket)
            self.websockets_ended += 1
            websocket.shutdown()


def _passing(base: Any) -> Any:
    """uvicorn's protocol for HTTP/1, which knows whether a connection rests."""

    response_complete = base.on_response_complete

    class Passing(base):  # type: ignore[misc]
        # Nothing is added that a request would pay for. That is also a class's value for what instances have: the
        # interpreter finds theirs by the slower way then.
        passage: Passage
        cycle: Any

        def watch(self) -> None:
            """From here on it says when it has come to rest."""
            self.__class__ = Leaving
            for cycle in (self.cycle, *[cycle for cycle, _ in getattr(self, "pipeline", ())]):
                if cycle is not None and not cycle.response_complete:
                    cycle.on_response = self.on_response_complete

    class Leaving(Passing):
        def on_response_complete(self, *stream: int) -> None:
            response_complete(self, *stream)
            self.passage.settled(self)

    Passing.__name__ = Passing.__qualname__ = Leaving.__name__ = Leaving.__qualname__ = base.__name__
    return Passing


def _is_http(protocol: Any) -> bool:
    return hasattr(protocol, "watch")


def _restore(websocket_class: Any, protocol: Any, state: bytes) -> None:
    """``state`` is what ``Server._movable`` said. A websocket begins as it did at first, with its request."""
    if not state:
        # uvicorn does so behind an answer only, and this one has had its last one elsewhere.
        protocol.timeout_keep_alive_task = protocol.loop.call_later(
            protocol.timeout_keep_alive, protocol.timeout_keep_alive_handler
        )
        return
    try:
        if websocket_class is None:
            raise ValueError("a websocket came, and this release has none")
        websocket_class.arriving = Packed.decode(state)
        protocol.data_received(websocket_class.arriving.head)
        if websocket_class.arriving is not None:
            raise ValueError("a websocket came, whose request begins none here")
    except ValueError as error:
        protocol.passage.service.say(f"{error}: it is closed")
        protocol.transport.abort()
    finally:
        if websocket_class is not None:
            websocket_class.arriving = None


def _rests(protocol: Any) -> bool:
    if protocol.transport.get_protocol() is not protocol:
        return False  # a websocket by now
    cycle = protocol.cycle
    if cycle is not None and not cycle.response_complete:
        return False
    if isinstance(protocol, H11Protocol):
        from h11 import IDLE

        conn = protocol.conn
        return conn.our_state is IDLE and conn.their_state is IDLE and not conn.trailing_data[0]
    if not hasattr(protocol, "pipeline"):
        return False  # httptools has one; nothing is known of others
    if cycle is None:
        return protocol.scope is None
    # A request's first byte makes the scope, its head the cycle. One that was answered before its body had come leaves it open
    # whether that has come since: such a connection moves after its next request.
    return protocol.scope is cycle.scope and not cycle.more_body and not protocol.pipeline


def main() -> None:
    """uvicorn's own command line, with ``run`` in the place of its ``run``, and our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        sys.modules["uvicorn.main"].run = partial(run, **ours)  # type: ignore[attr-defined]
        uvicorn.main(words, prog_name="python -m fdhandoff.servers.uvicorn")
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
