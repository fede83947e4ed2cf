"""waitress, upgraded without a failed request: ``serve(app, …)`` in place of ``waitress.serve(app, …)``, and
``python -m fdhandoff.servers.waitress …`` in place of ``waitress-serve …``, with waitress's own options.

A connection that rests moves to the new generation. Where nobody takes it, answers say ``Connection: close``.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

try:
    from waitress import runner, wasyncore
    from waitress.adjustments import Adjustments
    from waitress.channel import HTTPChannel
    from waitress.server import BaseWSGIServer, create_server
    from waitress.task import WSGITask
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs waitress: pip install 'waitress>=3' ({error})") from None

from ..adapting import address_of, listeners_of, service_name, settings, split, taken, with_service
from ..departure import Departure, Pauses
from ..errors import HandoffError
from ..gated import GatedListener
from ..listener import Connection
from ..service import DrainReport, Service

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Any

    from ..connection import CountedSocket

_LISTENING = ("listen", "host", "port", "unix_socket", "unix_socket_perms", "ipv4", "ipv6", "sockets")


def serve(
    app: Any,
    *,
    grace: float | None = 30.0,
    **options: Any,
) -> None:
    """``waitress.serve(app, **options)`` until a newer generation serves, or until it is told to stop; what is inside then may
    take ``grace`` seconds (``None``: for ever). The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. The
    application finds the ``Service`` as ``environ["fdhandoff"]``. Raises what ``Service`` raises; ``ValueError`` for
    waitress's ``sockets``: listeners are inherited (``LISTEN_FDS``), or bound here."""
    if options.get("sockets"):
        raise ValueError(
            "sockets: listeners come by LISTEN_FDS, or are bound here; give listen, host and port, or unix_socket"
        )
    with Service(**settings(taken(options), service_name(None, "waitress")), grace=grace) as service:
        adjustments = Adjustments(**options)
        addresses = _addresses(adjustments)
        listeners = [
            listener
            for number, address in enumerate(addresses[:1] if service.inherited else addresses)
            for listener in listeners_of(service, f"http{number or ''}", address)
        ]
        kept = {name: value for name, value in options.items() if name not in _LISTENING}
        _Serving(service, with_service(app, service), listeners, kept).run()


def _addresses(adjustments: Adjustments) -> list[str]:
    backlog = f"backlog={adjustments.backlog}"
    if adjustments.unix_socket:
        return [f"unix:{adjustments.unix_socket}?mode={adjustments.unix_socket_perms:04o}&{backlog}"]
    found = []
    for *_, address in adjustments.listen:
        only = "v6only=1&" if ":" in address[0] else ""  # as waitress has it
        found.append(f"{address_of(*address[:2])}?{only}{backlog}")
    return found


class _Serving:
    """A waitress server whose loop is turned here."""

    def __init__(self, service: Service, app: Any, listeners: list[socket.socket], options: dict[str, Any]) -> None:
        self._service = service
        self._departure = Departure(service)
        self._map: dict[int, Any] = {}
        sockets = [_Listener(listener, self) for listener in listeners]
        self._whole = create_server(app, map=self._map, sockets=sockets, **options)
        self._task = type("Task", (WSGITask,), {})  # also of those that are under way when the drain begins
        self._servers = [one for one in self._map.values() if isinstance(one, BaseWSGIServer)]
        for server in self._servers:
            server.channel_class = type("Channel", (HTTPChannel,), {"task_class": self._task})
        self._timeout = self._servers[0].adj.asyncore_loop_timeout
        # With few descriptors it costs less than poll(), which waitress gives each anew.
        self._poll = wasyncore.poll2 if self._servers[0].adj.asyncore_use_poll else wasyncore.poll
        self._leaving = False
        service.receive_connections(self._take)

    def run(self) -> None:
        service = self._service
        service.ready()
        outcome: list[DrainReport | BaseException] = []

        def end() -> None:
            self._leaving = True
            self._turn_soon()
            try:
                outcome.append(service.drain())
            except BaseException as error:
                outcome.append(error)
            self._turn_soon()

        ending = threading.Thread(target=end, name="fdhandoff-waitress", daemon=True)
        service.when_draining(ending.start)
        pauses, retry = Pauses(), 0.0
        while not self._leaving:
            self._turn(self._timeout)
        self._announce()
        while not outcome:
            now = time.monotonic()
            self._turn(max(0.0, min(self._timeout, retry - now)) if retry > now else self._timeout)
            if time.monotonic() < retry:
                continue
            if not self._departure.hopeful:
                retry = math.inf  # who rests is told with the next answer
            elif self._leave():
                pauses.reset()
            else:
                retry = time.monotonic() + pauses.next()
        ending.join()
        if not isinstance(outcome[0], BaseException):
            service.say(str(outcome[0]))
        self._whole.task_dispatcher.shutdown(timeout=0)
        for one in list(self._map.values()):
            one.close()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]

    def _turn(self, timeout: float) -> None:
        try:
            self._poll(timeout, self._map)
        except ValueError:
            if self._poll is wasyncore.poll2:
                raise
            self._poll = wasyncore.poll2  # select() knows descriptors below 1024 alone

    def _turn_soon(self) -> None:
        self._servers[0].pull_trigger()

    def accept_later(self) -> None:
        """An accept found the gate closed: the listeners are not waited for until it is open again. To look at the gate lets
        another thread run first, for which this one waits, so it is not asked in a turn before that."""
        for server in self._servers:
            server.readable = partial(self._accepts, server)

    def _accepts(self, server: Any) -> bool:
        if self._service.gate.closed:
            return False
        del server.readable
        return bool(server.readable())

    # --- connections come and go --------------------------------------------------------------------------------

    def _take(self, connections: Iterable[Connection]) -> None:
        """What an older generation gives; in a thread of its own."""
        for counted in self._departure.admitted(connections):
            self._servers[0].trigger.pull_trigger(partial(self._begin, counted))

    def _begin(self, sock: socket.socket) -> None:
        """As ``handle_accept`` does with what it has accepted."""
        server = next((one for one in self._servers if one.socket.family == sock.family), self._servers[0])
        try:
            server.set_socket_options(sock)
            address = server.fix_addr(sock.getpeername())
        except OSError:
            sock.close()  # the client has hung up
            return
        server.channel_class(server, sock, address, server.adj, map=self._map)

    def _leave(self) -> bool:
        """Who rests moves; false when somebody had to stay."""
        resting = {
            id(one.socket): one for one in list(self._map.values()) if isinstance(one, HTTPChannel) and _rests(one)
        }
        offered = [Connection("connection", one.socket) for one in resting.values()]
        staying = {id(one.target) for one in self._departure.give(offered)} if offered else set()
        for identity, channel in resting.items():
            if identity not in staying:
                channel.handle_close()  # without a shutdown, which its new owner would feel
        return not staying

    def _announce(self) -> None:
        """From here on a connection ends with its next answer, unless it may move after that."""
        departure = self._departure

        def build_response_header(task: Any) -> Any:
            if not departure.hopeful:
                task.request.headers["CONNECTION"] = "close"
            return WSGITask.build_response_header(task)

        self._task.build_response_header = build_response_header  # type: ignore[attr-defined]


class _Listener(GatedListener):
    def __init__(self, listener: socket.socket, serving: _Serving) -> None:
        super().__init__(listener, serving._service.gate)
        self._serving = serving

    def accept(self) -> tuple[CountedSocket, Any]:
        try:
            return super().accept()
        except BlockingIOError:
            if self.gate.closed:
                self._serving.accept_later()
            raise


def _rests(channel: Any) -> bool:
    with channel.requests_lock:
        return not (
            channel.requests
            or channel.request is not None
            or channel.total_outbufs_len
            or channel.close_when_flushed
            or channel.will_close
            or not channel.connected
        )


def main() -> None:
    """waitress's own command line, our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        application = words[-1] if words else ""
        ours.setdefault("handoff_name", service_name(application, "waitress"))
        sys.exit(runner.run(["python -m fdhandoff.servers.waitress", *words], _serve=partial(serve, **ours)))
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
