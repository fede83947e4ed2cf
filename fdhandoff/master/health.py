"""Whether the service should get traffic, for load balancers and orchestrators: asked by HTTP, or seen by a file.

Ready is false from the first moment of a drain, before ``--pre-stop-delay``: whoever asks takes the service out of its rotation
while new connections are still accepted.
"""

from __future__ import annotations

import os
import socket
from functools import partial

from ..errors import HandoffError
from ..notation import dumps
from ..system.fds import describe
from ..system.paths import identity, unlink_control
from ..system.sockets import bind, parse_bind
from .run import SERVING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .loop import Timer
    from .master import Master

_HEAD_MAX = 8192
# Who does not ask in this time is shown out; so many may be connected at once, then the one that came first goes.
_ASK_SECONDS = 5.0
_GUESTS_MAX = 32

READY_PATHS = ("/", "/ready", "/readyz")
LIVE_PATHS = ("/live", "/livez")


class Health:
    """The answers of ``master``, at the HTTP address ``address`` and in the file ``path``; either may be empty."""

    def __init__(self, master: Master, address: str, path: str, kept: Sequence[socket.socket] | None = None) -> None:
        """``HandoffError`` when the address can't be bound or the file can't be written. ``kept``: the ``sockets`` of
        the master that this one was before an exec; they are taken."""
        self._master = master
        self._file = os.path.abspath(path) if path else ""
        self._shown: tuple[str, tuple[int, int] | None] | None = None  # the text, and which file it is in
        self._guests: dict[socket.socket, _Guest] = {}
        self._listeners: list[socket.socket] = []
        if kept is None:
            self._listeners = bind(parse_bind(address)) if address else []
        for sock in kept or ():
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._listeners.append(sock)
            else:
                self._guests[sock] = _Guest(self, master, sock)
        try:
            if self._file:
                self._show()
        except BaseException:
            self.close()
            raise
        for listener in self._listeners:
            listener.setblocking(False)
            master.loop.on_readable(listener.fileno(), partial(self._welcome, listener))

    @property
    def addresses(self) -> list[str]:
        """Where it answers, the port that the kernel chose included."""
        found = [describe(listener.fileno()) for listener in self._listeners]
        return [what.address for what in found if what is not None]

    def sockets(self) -> list[socket.socket]:
        """What outlives an exec of the master: the listeners, and who is connected and has not begun to ask."""
        return [*self._listeners, *(sock for sock, guest in self._guests.items() if not guest.head)]

    def ready(self) -> bool:
        """Whether new connections are answered, and welcome."""
        master = self._master
        return master.state == SERVING and master.current is not None and master.current.alive

    def changed(self) -> None:
        """Something happened to the master or a generation: the file follows."""
        if self._file:
            try:
                self._show()
            except HandoffError as error:
                self._master.say(str(error))

    def close(self) -> None:
        for listener in self._listeners:
            self._master.loop.forget(listener.fileno())
            if listener.family == socket.AF_UNIX and isinstance(listener.getsockname(), str):
                unlink_control(listener.getsockname(), listener)
            listener.close()
        self._listeners = []
        for guest in list(self._guests.values()):
            guest.close()
        self._withdraw()

    def facts(self) -> dict[str, Any]:
        master = self._master
        return {
            "schema": 1,
            "ready": self.ready(),
            "state": master.state,
            "generation": master.current.number if master.current is not None else 0,
            "service": master.options.name,
        }

    # --- the file -------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """The file is there while the service is ready; written beside its name and renamed, so that it is never half there."""
        if not self.ready():
            self._withdraw()
            return
        text = dumps({**self.facts(), "pid": os.getpid()}) + "\n"
        if self._shown is not None and self._shown[0] == text:
            return
        try:
            with open(f"{self._file}.new", "w", encoding="utf-8") as file:
                file.write(text)
            self._shown = (text, identity(file.name))
            os.replace(f"{self._file}.new", self._file)
        except OSError as error:
            raise HandoffError(
                f"the health file {self._file} can't be written ({error.strerror}): whoever looks at it believes that "
                "nothing serves here"
            ) from None

    def _withdraw(self) -> None:
        """Another master may have put its own file there meanwhile: that one stays."""
        if self._shown is not None and identity(self._file) == self._shown[1]:
            os.unlink(self._file)
        self._shown = None

    # --- HTTP -----------------------------------------------------------------------------------------------

    def _welcome(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # it has hung up, or there is no descriptor left: a probe that fails says so by itself
        if len(self._guests) >= _GUESTS_MAX:
            next(iter(self._guests.values())).close()
        self._guests[sock] = _Guest(self, self._master, sock)

    def answer(self, head: bytes) -> bytes:
        """To one request: status line, headers and body."""
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, {"schema": 1, "error": "this is no HTTP/1 request"})
        method, path = words[0], words[1].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return _response(405, {"schema": 1, "error": "only GET and HEAD are answered here"})
        if path in READY_PATHS:
            answer = _response(200 if self.ready() else 503, self.facts())
        elif path in LIVE_PATHS:
            answer = _response(200, self.facts())  # who reads this is alive
        else:
            answer = _response(404, {"schema": 1, "error": "there are /ready and /live"})
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def forget(self, sock: socket.socket) -> None:
        self._guests.pop(sock, None)


class _Guest:
    """One connection: a request, an answer, the end."""

    def __init__(self, health: Health, master: Master, sock: socket.socket) -> None:
        self._health = health
        self._loop = master.loop
        self._sock = sock
        self.head = b""
        sock.setblocking(False)
        self._late: Timer = self._loop.after(_ASK_SECONDS, self.close)
        self._loop.on_readable(sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._sock.recv(_HEAD_MAX)
            self.head += data
            if b"\r\n\r\n" in self.head:
                # A few hundred bytes always fit into a fresh connection's buffer.
                self._sock.send(self._health.answer(self.head))
            elif data and len(self.head) < _HEAD_MAX:
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # it has hung up: nobody is there to be told
        self.close()

    def close(self) -> None:
        self._late.cancel()
        self._loop.forget(self._sock.fileno())
        self._health.forget(self._sock)
        self._sock.close()


_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def _response(status: int, facts: dict[str, Any]) -> bytes:
    body = dumps(facts).encode() + b"\n"
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode() + body
