"""Servers whose connections move, and whose answers are their pid: ``raw`` is an asyncio protocol on ``Passage``, ``uvicorn``
the adapter. Arguments: which, port, handoff path."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from fdhandoff import Service
from fdhandoff.passage import Passage

BODY = f"{os.getpid()}\n".encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Protocol(asyncio.Protocol):
    def __init__(self, passage: Passage, everyone: set[Protocol]) -> None:
        self.transport: Any = None
        self.rest = b""
        self._passage = passage
        self._everyone = everyone

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._everyone.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._everyone.discard(self)

    def data_received(self, data: bytes) -> None:
        *heads, self.rest = (self.rest + data).split(b"\r\n\r\n")
        self.transport.write(ANSWER * len(heads))

    def restore(self, state: bytes) -> None:
        self.rest = state


async def raw(port: int, path: str) -> None:
    with Service("moving", path=path, probation=0.0) as service:
        service.listen("http", f"127.0.0.1:{port}?backlog=1024")
        everyone: set[Protocol] = set()
        passage = Passage(
            service,
            lambda: Protocol(passage, everyone),
            everyone=lambda: everyone,
            movable=lambda protocol: protocol.rest,
            restore=lambda protocol, state: protocol.restore(state),
        )
        await service.ready_async()
        print("serving", flush=True)
        accepting = asyncio.create_task(passage.serve())
        await service.wait_async()
        await passage.leave()
        await service.drain_async()
        await accepting


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    message = await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    assert not message.get("more_body")
    headers = [(b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def main() -> None:
    kind, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "raw":
        asyncio.run(raw(port, path))
        return
    import fdhandoff.servers.uvicorn as adapter

    class Saying(adapter.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print("serving", flush=True)

    adapter.Server = Saying  # type: ignore[misc]
    adapter.run(app, port=port, handoff_path=path, handoff_probation=0.0, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
