"""An aiohttp application by its adapter; answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys

from aiohttp import WSMsgType, web
from encrypted import context_of
from probation import SECONDS
from slow import wait_async

from fdhandoff.servers.aiohttp import SERVICE, run_app


async def answer(request: web.Request) -> web.StreamResponse:
    number = request.app[SERVICE].generation.number
    if request.path == "/ws":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str(f"{number} {message.data}")
        return socket
    size = len(await request.read())
    if request.path.startswith("/slow/"):
        await wait_async(request.path[6:])
    return web.Response(body=f"app {number} {size}".encode() + b" " * (500_000 if request.path == "/big" else 0))


async def cleanup(_: web.Application) -> None:
    print("cleaned up", flush=True)


def main() -> None:
    port, path, *files = sys.argv[1:]
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    app.on_cleanup.append(cleanup)
    run_app(
        app, host="127.0.0.1", port=int(port), handoff_path=path, handoff_probation=SECONDS, shutdown_timeout=20,
        keepalive_timeout=60, access_log=None, ssl_context=context_of(files),
    )  # fmt: skip


if __name__ == "__main__":
    main()
