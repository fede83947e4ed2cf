"""An ASGI application whose answers name the generation: ``/slow/…``, ``/big``, ``/echo`` (length of the body); ``/die`` ends
the process, ``/stubborn`` does not heed that it is cancelled, ``/behind/…`` goes on for so many seconds after its answer. A
websocket moves where its path is ``/keep``, and can't say its state where it is ``/late`` once it has been spoken to. Its
lifespan takes its time where ``BOOT`` says so, or fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from slow import wait_async

asked: list[int] = []


class Late:
    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._heard = False

    async def receive(self) -> Any:
        message = await self._receive()
        self._heard = message["type"] == "websocket.receive"
        return message

    def save(self) -> bytes | None:
        if self._heard:
            raise ValueError("it is too late")
        return None


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    generation = scope["state"]["fdhandoff"].generation.number
    if scope["type"] == "websocket":
        if scope["path"] == "/keep":
            scope["extensions"]["fdhandoff.session"].keep(lambda: b"")
        if scope["path"] == "/late":
            late = Late(receive)
            receive = late.receive
            scope["extensions"]["fdhandoff.session"].keep(late.save)
        await websocket(generation, receive, send)
        return
    asked.append(1)
    path, size = scope["path"], 0
    if path.startswith("/slow/"):
        await wait_async(path[6:])
    if path == "/stubborn":
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)
    if path == "/die":
        os._exit(9)
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = f"app {generation} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    if path.startswith("/behind/"):
        await asyncio.sleep(float(path[8:]))
        print(f"{path[8:]} seconds behind it", flush=True)


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            if os.environ.get("BOOT") == "fail":
                await send({"type": "lifespan.startup.failed", "message": "the database is not there"})
                return
            await send({"type": "lifespan.startup.complete"})
        else:
            print(f"lifespan over, {len(asked)} requests", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
            return


async def websocket(generation: int, receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{generation} {message['text']}"})
        else:
            return
