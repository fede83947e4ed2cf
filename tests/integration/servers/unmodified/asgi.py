"""An ASGI application: ``/slow/SECONDS``, ``/big``, anything else at once."""

import asyncio
import os

NUMBER = os.environ["FDHANDOFF_GENERATION"]


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path, size = scope["path"], 0
    if path.startswith("/slow/"):
        await asyncio.sleep(float(path[6:]))
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
