"""daphne, upgraded without a failed request: ``python -m fdhandoff.servers.daphne app:app …`` in place of ``daphne app:app …``,
with daphne's own options, and ``run(app, …)``.

A connection is told ``Connection: close`` with its next answer, a websocket is closed with code 1012.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from .twisted import Serving  # before daphne, which has Twisted take what tells of inherited listeners

try:
    import daphne.server  # type: ignore[import-untyped]  # installs the reactor, before anybody else can
    from daphne.cli import CommandLineInterface  # type: ignore[import-untyped]
    from daphne.ws_protocol import WebSocketProtocol  # type: ignore[import-untyped]
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import _parse
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs daphne: pip install 'daphne>=4.1' ({error})") from None

from ..adapting import address_of, dual, listeners_of, service_name, settings, split, taken
from ..errors import HandoffError
from ..service import Service
from ..websocket import RESTART

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from typing import Any


class Server(daphne.server.Server):  # type: ignore[misc]
    """``daphne.server.Server``, with its arguments, whose ``run`` lasts until a newer generation serves or this process is
    told to stop. What is inside then has ``grace`` seconds (``None``: for ever). The ``handoff_…`` keywords are
    ``fdhandoff.adapting.Handoff``'s. The application finds the ``Service`` as ``scope["state"]["fdhandoff"]``.

    ``ValueError`` for endpoints other than ``tcp:`` and ``unix:``. ``run`` raises what ``Service`` raises.
    """

    def __init__(
        self,
        application: Any,
        endpoints: Sequence[str] = (),
        *,
        grace: float | None = 30.0,
        **options: Any,
    ) -> None:
        self._addresses = [_address(endpoint) for endpoint in endpoints]
        self._options = {**settings(taken(options), service_name(None, "daphne")), "grace": grace}
        super().__init__(application, endpoints, **{**options, "ready_callable": self._begin})
        self._then = options.get("ready_callable")

    def run(self) -> None:
        self.endpoints: list[str] = []  # daphne opens none of them
        with Service(**self._options) as self.service:
            self._sockets = [
                listener
                for number, address in enumerate(self._addresses[: 1 if self.service.inherited else None])
                for listener in listeners_of(self.service, f"http{number or ''}", address)
            ]
            super().run()
        if self._serving.failure is not None:
            raise self._serving.failure

    def _begin(self) -> None:
        self._serving = Serving(
            self.service,
            self.http_factory,
            self._sockets,
            daphne.server.reactor,
            at_leave=self._close_websockets,
            at_end=self._finish,
        )
        if self._then is not None:
            self._then()

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        scope.setdefault("state", {})["fdhandoff"] = self.service
        return super().create_application(protocol, scope)

    def _close_websockets(self) -> None:
        for protocol in list(self.connections):
            if isinstance(protocol, WebSocketProtocol):
                if protocol.state == protocol.STATE_OPEN:
                    protocol.sendCloseFrame(code=RESTART)
                else:
                    protocol.onOpen = partial(_open_and_close, protocol)

    def _finish(self) -> Any:
        """What applications do behind their last answer is waited for, too, as long as daphne does it."""
        busy: list[asyncio.Future[Any]] = [
            task
            for details in self.connections.values()
            if (task := details.get("application_instance")) is not None and not task.done()
        ]
        if not busy:
            return None
        return Deferred.fromFuture(_wait(busy, self.application_close_timeout))

    def kill_all_applications(self) -> Any:
        for protocol, details in list(self.connections.items()):
            if "application_instance" not in details:
                del self.connections[protocol]
        return super().kill_all_applications()


def _wait(tasks: list[asyncio.Future[Any]], seconds: float) -> asyncio.Future[Any]:
    import asyncio

    return asyncio.ensure_future(asyncio.wait(tasks, timeout=seconds), loop=daphne.server.twisted_loop)


def _open_and_close(protocol: Any) -> None:
    type(protocol).onOpen(protocol)
    protocol.sendCloseFrame(code=RESTART)


def _address(endpoint: str) -> str:
    """Of one of Twisted's descriptions of endpoints, as ``Service.listen`` wants it."""
    (kind, *words), options = _parse(endpoint)  # type: ignore[no-untyped-call]
    if kind == "unix":
        return f"unix:{options.get('address') or words[0]}?mode=0666"  # the mode that Twisted gives it
    if kind == "tcp":
        host = options.get("interface") or (words[1] if len(words) > 1 else "")
        return dual(address_of(host, int(options.get("port") or words[0])))
    raise ValueError(
        f"the endpoint {endpoint!r} is not taken over by anybody: tcp: and unix: are, TLS is for a proxy in front, and an "
        "inherited listener comes by LISTEN_FDS"
    )


def main() -> None:
    """daphne's own command line, and our options."""
    try:
        ours, words = split(sys.argv[1:])
        line = CommandLineInterface()
        line.parser.prog = "python -m fdhandoff.servers.daphne"
        application = line.parser.parse_args(words).application
        ours.setdefault("handoff_name", service_name(application, "daphne"))
        line.server_class = partial(Server, **ours)
        line.run(words)
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
