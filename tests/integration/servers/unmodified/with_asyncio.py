"""``asyncio.start_server`` with a listener that it is given; nobody ends its connections."""

import asyncio
import os
import socket

NUMBER = os.environ["FDHANDOFF_GENERATION"]


async def handle(reader, writer):
    close = False
    while not close:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int((head.partition("content-length:")[2].split() or ["0"])[0])
            await reader.readexactly(size)
        except (EOFError, OSError):
            break
        path = head.split()[1]
        if path.startswith("/slow/"):
            await asyncio.sleep(float(path[6:]))
        close = "connection: close" in head
        body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(handle, sock=socket.socket(fileno=3))
    await server.serve_forever()


asyncio.run(main())
