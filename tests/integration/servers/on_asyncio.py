"""HTTP by an asyncio protocol whose connections move, or (``streams``) by a handler that announces the end; answers name the
generation and how many requests the connection has had: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from encrypted import context_of
from probation import SECONDS
from slow import wait_async

from fdhandoff.servers.asyncio import create_server, draining, start_server, start_unix_server


def answer(generation: int, path: str, count: int, close: bool) -> bytes:
    body = f"app {generation} {count}".encode() + b" " * (500_000 if path == "/big" else 0)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n" + "Connection: close\r\n" * close
    return head.encode() + b"\r\n" + body


def length(head: bytes) -> int:
    lines = head.decode("latin-1").lower().split("\r\n")
    return next((int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")), 0)


class Http(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: Any = None
        self.buffer = b""
        self.count = 0
        self.path = ""
        self.busy: asyncio.Task[None] | None = None
        self.ending = False

    # --- what moves it

    def handoff_state(self) -> bytes | None:
        if self.path == "/bug":
            raise KeyError("the state's own fault")
        return str(self.count).encode() if not self.buffer and self.busy is None else None

    def handoff_restore(self, state: bytes) -> None:
        self.count = int(state)

    def handoff_ending(self) -> None:
        self.ending = True

    # --- what serves

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.go_on()

    def go_on(self) -> None:
        head, mark, rest = self.buffer.partition(b"\r\n\r\n")
        if self.busy is not None or not mark or len(rest) < (size := length(head)):
            return
        self.buffer = rest[size:]
        path = self.path = head.split()[1].decode()
        self.busy = asyncio.get_running_loop().create_task(self.work(path, b"connection: close" in head.lower()))

    async def work(self, path: str, close: bool) -> None:
        if path.startswith("/slow/"):
            await wait_async(path[6:])
        self.reply(path, close)

    def reply(self, path: str, close: bool) -> None:
        self.busy = None
        self.count += 1
        close = close or (self.ending and not self.buffer)
        self.transport.write(answer(server.service.generation.number, path, self.count, close))
        if close:
            self.transport.close()
        else:
            self.go_on()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    count = 0
    close = False
    while not close:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            break
        size = length(head)
        await reader.readexactly(size)
        path = head.split()[1].decode()
        if path.startswith("/slow/"):
            await wait_async(path[6:])
        if path == "/fail":
            raise ValueError("the handler's own fault")
        count += 1
        close = draining() or b"connection: close" in head.lower()
        writer.write(answer(server.service.generation.number, path, count, close))
        await writer.drain()
    writer.close()


async def main() -> None:
    global server
    kind, port, path, *options = sys.argv[1:]
    grace = float(options.pop(0)) if options else 20.0
    handoff: dict[str, Any] = {
        "handoff_path": path,
        "handoff_probation": SECONDS,
        "grace": grace,
        "ssl": context_of(options),
    }
    if kind == "protocol":
        server = await create_server(Http, "127.0.0.1", int(port), **handoff)
    elif kind == "unix":
        server = await start_unix_server(handle, port, **handoff)
    else:
        server = await start_server(handle, "127.0.0.1", int(port), **handoff)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        sys.argv[1] = "protocol"
        uvloop.run(main())
    else:
        asyncio.run(main())
