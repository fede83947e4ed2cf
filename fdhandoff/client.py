"""The asker's side of an operator's verb: connect, ask, hear events, return the answer."""

from __future__ import annotations

import os

from .deadline import after
from .errors import (
    NOBODY,
    UNKNOWN,
    DeadlineExceeded,
    PathError,
    PeerGone,
    PeerRefused,
    PeerUntrusted,
    ProtocolError,
)
from .notation import dumps, loads
from .protocol import frames
from .protocol.messages import VERSION_MAX, VERSION_MIN, Event, Message, Refused, Request, Response
from .system.channel import Channel, wait
from .system.fds import close_all
from .system.paths import connect_control
from .system.process import peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def ask(
    sock_path: str | os.PathLike[str],
    verb: str,
    body: dict[str, Any] | None = None,
    *,
    timeout: float | None = 10.0,
    allow_uids: Iterable[int] = (),
    on_event: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Asks the owner at ``sock_path`` and returns its answer. ``timeout``: seconds for the whole (``None``: as long as it
    takes).

    ``PathError`` (``serving="nobody"``) when nobody answers there, ``PeerRefused`` with the refusal's ``code``,
    ``PeerUntrusted``, ``PeerGone``, ``DeadlineExceeded``.
    """
    path = os.fspath(sock_path)
    deadline = after(timeout)
    connection = connect_control(path, deadline)
    if connection.sock is None:
        raise PathError(
            f"nobody answers at {path}: "
            + (
                "there is no such socket" if connection.why == "absent" else "its owner has ended (the socket is stale)"
            ),
            path=path,
            serving=NOBODY,
        )
    channel = Channel(connection.sock)
    decoder = frames.Decoder()
    try:
        owner = peer(connection.sock)
        if owner.uid not in {os.geteuid(), 0, *allow_uids}:
            raise PeerUntrusted(
                f"the owner at {path} runs as uid {owner.uid}, which is not trusted here: ask as that user, or say that it "
                f"is (--allow-uid {owner.uid})",
                serving=UNKNOWN,
            )
        request = Request(
            min_version=VERSION_MIN,
            max_version=VERSION_MAX,
            verb=verb,
            body=dumps(body or {}).encode(),
        )
        try:
            channel.send([(frames.encode(request), 0)], (), deadline)
        except PeerGone:
            pass  # it refused before it heard the question: the reason lies in the channel
        return _listen(channel, decoder, path, verb, deadline, on_event)
    except DeadlineExceeded as error:
        raise DeadlineExceeded(f"the owner at {path} did not answer {verb!r} in time", serving=UNKNOWN) from error
    finally:
        close_all(decoder.pending_fds)
        channel.close()


def _listen(
    channel: Channel,
    decoder: frames.Decoder,
    path: str,
    verb: str,
    deadline: int,
    on_event: Callable[[dict[str, Any]], object] | None,
) -> dict[str, Any]:
    while True:
        wait((channel.fileno(),), (), deadline)
        arrived = channel.receive()
        if arrived is None:
            continue
        if not arrived[0]:
            raise PeerGone(f"the owner at {path} hung up before it answered {verb!r}", serving=UNKNOWN)
        decoder.feed(*arrived)
        for message, fds in decoder.messages():
            close_all(fds)
            if isinstance(message, Event):
                if on_event is not None:
                    on_event(_body(message.body))
            else:
                return _answer(message, path, verb)


def _answer(message: Message, path: str, verb: str) -> dict[str, Any]:
    if isinstance(message, Refused):
        raise PeerRefused(f"the owner at {path} refuses: {message.reason or message.code}", code=message.code)
    if not isinstance(message, Response):
        raise ProtocolError(f"the owner at {path} answered {verb!r} with {type(message).__name__}")
    body = _body(message.body)
    if message.code != "ok":
        serving = body.get("serving", UNKNOWN)
        refused = PeerRefused(str(body.get("error", message.code)), code=message.code, serving=str(serving))
        refused.answer = body
        raise refused
    return body


def _body(raw: bytes) -> dict[str, Any]:
    try:
        body = loads(raw)
    except ValueError as error:
        raise ProtocolError(f"the owner's answer is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ProtocolError("the owner's answer is not a JSON object")
    return body
