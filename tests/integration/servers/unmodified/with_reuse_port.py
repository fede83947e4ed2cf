"""aiohttp as its documentation shows it, at an address that it shares by SO_REUSEPORT."""

from __future__ import annotations

import os
import sys

from aiohttp import web


async def answer(_: web.Request) -> web.Response:
    return web.Response(text=f" {os.environ.get('FDHANDOFF_GENERATION', '0')} {os.getpid()}\n")


if __name__ == "__main__":
    application = web.Application()
    application.router.add_get("/", answer)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), reuse_port=True, print=None)
