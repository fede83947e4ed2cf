"""A Sanic application by its adapter; answers name the generation: ``/slow/…``, ``/big``, ``/loop`` the event
loop, anything else at once."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from sanic import Request, Sanic, Websocket
from sanic.response import raw

from fdhandoff.servers import sanic

sys.path.insert(0, str(Path(__file__).parent))
from probation import SECONDS
from slow import wait_async

app = Sanic("app", configure_logging=False)
app.config.update(GRACEFUL_SHUTDOWN_TIMEOUT=20, KEEP_ALIVE_TIMEOUT=60)


async def chat(request: Request, socket: Websocket) -> None:
    async for message in socket:
        await socket.send(f"{request.app.ctx.fdhandoff.generation.number} {message}")


if "NO_WEBSOCKETS" not in os.environ:  # Sanic has another protocol then
    app.add_websocket_route(chat, "/ws")


@app.get("/loop")
async def loop(_: Request) -> Any:
    return raw(type(asyncio.get_running_loop()).__module__)


@app.route("/<path:path>", methods=["GET", "POST"])
async def answer(request: Request, path: str) -> Any:
    if path.startswith("slow/"):
        await wait_async(path[5:])
    body = f"app {request.app.ctx.fdhandoff.generation.number} {len(request.body)}".encode()
    return raw(body + b" " * (500_000 if path == "big" else 0))


@app.before_server_stop
async def stopping(*_: object) -> None:
    print("stopping", flush=True)


def main() -> None:
    port, path, *files = sys.argv[1:]
    tls = dict(zip(("cert", "key"), files, strict=False)) or None
    sanic.run(app, "127.0.0.1", int(port), access_log=False, ssl=tls, handoff_path=path, handoff_probation=SECONDS)


if __name__ == "__main__":
    main()
