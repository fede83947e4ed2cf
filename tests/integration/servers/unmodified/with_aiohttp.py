"""aiohttp with a listener that it is given."""

import asyncio
import os
import socket

from aiohttp import web

NUMBER = os.environ["FDHANDOFF_GENERATION"]


async def answer(request):
    if request.path.startswith("/slow/"):
        await asyncio.sleep(float(request.path[6:]))
    size = len(await request.read())
    return web.Response(body=f"app {NUMBER} {size}".encode() + b" " * (500_000 if request.path == "/big" else 0))


app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, sock=socket.socket(fileno=3), print=None, access_log=None)
