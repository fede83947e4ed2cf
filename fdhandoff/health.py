"""Whether the service should get traffic, for load balancers and orchestrators: asked by HTTP, or seen by a file.

Ready is false from the first moment of a drain, before ``--pre-stop-delay``: whoever asks takes the service out of its rotation
while new connections are still accepted.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from functools import partial

from .errors import HandoffError
from .notation import dumps
from .system.fds import describe
from .system.paths import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .master.loop import Loop, Timer

_HEAD_MAX = 8192
# Who does not ask in this time is shown out; so many may be connected at once, then the one that came first goes.
_ASK_SECONDS = 5.0
_GUESTS_MAX = 32

# Out of descriptors or memory: how long nobody is accepted then.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORT_SECONDS = 0.1

READY_PATHS = ("/", "/ready", "/readyz")
LIVE_PATHS = ("/live", "/livez")
METRICS_PATH = "/metrics"


class Health:
    """What ``ready()`` and ``facts()`` say, at ``listeners`` (borrowed) and in the file ``path`` (empty: none), which is there
    while the service is ready. Everything happens in ``loop``, but for ``changed``. ``guests``: who is connected already; they
    are taken. ``say``: called with what can't be done. ``metrics()`` is the status of which they are made."""

    def __init__(
        self,
        loop: Loop,
        ready: Callable[[], bool],
        facts: Callable[[], dict[str, Any]],
        say: Callable[[str], object],
        *,
        metrics: Callable[[], dict[str, Any]],
        listeners: Iterable[socket.socket] = (),
        guests: Iterable[socket.socket] = (),
        path: str = "",
    ) -> None:
        self.loop = loop
        self.ready = ready
        self.listeners = list(listeners)
        self._facts = facts
        self._say = say
        self._metrics = metrics
        self._file = os.path.abspath(path) if path else ""
        self._shown: tuple[str, tuple[int, int] | None] | None = None  # the text, and which file it is in
        self._guests: dict[socket.socket, _Guest] = {}
        self._welcoming = False
        for sock in guests:
            self._guests[sock] = _Guest(self, sock)
        for listener in self.listeners:
            listener.setblocking(False)

    @property
    def addresses(self) -> list[str]:
        """Where it answers, the port that the kernel chose included."""
        found = [describe(listener.fileno()) for listener in self.listeners]
        return [what.address for what in found if what is not None]

    def everyone(self) -> list[socket.socket]:
        """Who is connected."""
        return list(self._guests)

    def undecided(self) -> list[socket.socket]:
        """Who is connected and has not begun to ask."""
        return [sock for sock, guest in self._guests.items() if not guest.head]

    def welcome(self, yes: bool) -> None:
        """Whether whoever connects is answered from here on; else they wait in the queue, for another process."""
        if yes == self._welcoming:
            return
        self._welcoming = yes
        for listener in self.listeners:
            if yes:
                self.loop.on_readable(listener.fileno(), partial(self._welcome, listener))
            else:
                self.loop.forget(listener.fileno())

    def close(self) -> None:
        """Nobody is answered any more; the listeners stay open, and the file what it is."""
        self.welcome(False)
        for guest in list(self._guests.values()):
            guest.close()

    def facts(self) -> dict[str, Any]:
        return {"schema": 1, "ready": self.ready(), **self._facts()}

    # --- the file -------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something happened to the service: the file follows."""
        if self._file:
            try:
                self.show()
            except HandoffError as error:
                self._say(str(error))

    def show(self) -> None:
        """The file is there while the service is ready; written beside its name and renamed, so that it is never half there.
        ``HandoffError`` when it can't be."""
        if not self._file:
            return
        if not self.ready():
            self.withdraw()
            return
        text = dumps({**self.facts(), "pid": os.getpid()}) + "\n"
        if self._shown is not None and self._shown[0] == text and self._shown[1] == identity(self._file):
            return
        beside = f"{self._file}.{os.getpid()}.new"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                file.write(text)
            self._shown = (text, identity(beside))
            os.replace(beside, self._file)
        except OSError as error:
            raise HandoffError(
                f"the health file {self._file} can't be written ({error.strerror}): whoever looks at it believes that "
                "nothing serves here"
            ) from None

    def clear(self) -> None:
        """Whoever's file is there, it goes. ``HandoffError`` when it can't be removed."""
        if self._file and os.path.isfile(self._file):
            self._remove()

    def withdraw(self) -> None:
        """Another process may have put its own file there meanwhile: that one stays. ``HandoffError`` as for ``clear``."""
        shown, self._shown = self._shown, None
        if shown is not None and identity(self._file) == shown[1]:
            self._remove()

    def withdraw_for_good(self) -> None:
        """``withdraw`` at the end, which nothing may hold up: that it can't be removed is said."""
        try:
            self.withdraw()
        except HandoffError as error:
            self._say(str(error))

    def _remove(self) -> None:
        try:
            os.unlink(self._file)
        except FileNotFoundError:
            return  # somebody else was quicker
        except OSError as error:
            raise HandoffError(
                f"the health file {self._file} can't be removed ({error.strerror}): whoever looks at it believes that the "
                "service is to get traffic"
            ) from None

    # --- HTTP -----------------------------------------------------------------------------------------------

    def _welcome(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in _SHORT:  # a probe that fails says so by itself; it is ready to be accepted all the same
                self.loop.forget(listener.fileno())
                self.loop.after(_SHORT_SECONDS, partial(self._look_again, listener))
            return  # else it has hung up
        if len(self._guests) >= _GUESTS_MAX:
            next(iter(self._guests.values())).close()
        self._guests[sock] = _Guest(self, sock)

    def _look_again(self, listener: socket.socket) -> None:
        if self._welcoming:
            self.loop.on_readable(listener.fileno(), partial(self._welcome, listener))

    def answer(self, head: bytes) -> bytes:
        """To one request: status line, headers and body. What the application's own functions do wrong is shown, and is no
        reason to be silent."""
        try:
            return self._answer(head)
        except Exception as error:
            sys.excepthook(*sys.exc_info())
            return _response(500, {"schema": 1, "error": f"{type(error).__name__}: {error}"})

    def _answer(self, head: bytes) -> bytes:
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
        elif path == METRICS_PATH:
            from .metrics import CONTENT_TYPE, exposition  # late: most are never asked

            answer = _answer(200, CONTENT_TYPE, exposition(self._metrics()).encode())
        else:
            answer = _response(404, {"schema": 1, "error": "there are /ready, /live and /metrics"})
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def forget(self, sock: socket.socket) -> None:
        self._guests.pop(sock, None)


class _Guest:
    """One connection: a request, an answer, the end."""

    def __init__(self, health: Health, sock: socket.socket) -> None:
        self._health = health
        self._loop = health.loop
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
                answer = self._health.answer(self.head)
                # All of it fits into a fresh connection's buffer: nobody waits here for a client that reads slowly.
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(_HEAD_MAX, 2 * len(answer)))
                self._sock.send(answer)
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


_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip


def _response(status: int, facts: dict[str, Any]) -> bytes:
    return _answer(status, "application/json", dumps(facts).encode() + b"\n")


def _answer(status: int, kind: str, body: bytes) -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode() + body
