"""Sanic in one process, with a listener that it is given."""

import asyncio
import os
import socket

from sanic import Sanic
from sanic.response import raw

NUMBER = os.environ["FDHANDOFF_GENERATION"]
app = Sanic("app", configure_logging=False)


@app.route("/<path:path>", methods=["GET", "POST"])
async def answer(request, path):
    if path.startswith("slow/"):
        await asyncio.sleep(float(path[5:]))
    return raw(f"app {NUMBER} {len(request.body)}".encode() + b" " * (500_000 if path == "big" else 0))


if __name__ == "__main__":
    app.run(sock=socket.socket(fileno=3), single_process=True, access_log=False, motd=False)
