"""What is on the wire when a grpc.aio server stops under clients that keep their channels: ``python -m benchmarks.grpc_trace``.

One client calls without a pause, through a proxy that notes the frames, and the server is stopped with a grace period of a
second, as at an upgrade; again until a call fails. What was said of that call's stream and of the connection's end is printed,
milliseconds before the client noticed: ``→`` goes to the server, ``←`` to the client."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from hpack import Decoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

_TRIES = 50
_CALLS = 4
_CANCELLED = "1"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Wire:
    """What went by: when, and in words."""

    def __init__(self) -> None:
        self.noted: list[tuple[float, int, str]] = []
        self.refused = 0  # the first stream whose call was cancelled

    async def passes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, arrow: str) -> None:
        decoder, left = Decoder(), b""
        if arrow == "→":
            writer.write(await reader.readexactly(len(_PREFACE)))
        while data := await reader.read(1 << 16):
            writer.write(data)
            left += data
            while len(left) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(left[:9]))
                if len(left) < 9 + length:
                    break
                frame.parse_body(memoryview(left[9 : 9 + length]))
                left = left[9 + length :]
                if words := self._words(frame, decoder):
                    self.noted.append((time.monotonic(), frame.stream_id, f"{arrow} {words}"))
        writer.close()

    def _words(self, frame: Frame, decoder: Decoder) -> str:
        if isinstance(frame, HeadersFrame):
            headers = dict(decoder.decode(frame.data))
            if headers.get("grpc-status") == _CANCELLED:
                self.refused = self.refused or frame.stream_id
            said = headers.get(":path") or ", ".join(
                f"{name} {headers[name]}" for name in headers if "grpc-status" in name
            )
            return f"HEADERS, stream {frame.stream_id}: {said}".rstrip(" :")
        return _others(frame)


def _others(frame: Frame) -> str:
    if isinstance(frame, GoAwayFrame):
        return f"GOAWAY, last stream {frame.last_stream_id}, error {frame.error_code}"
    if isinstance(frame, RstStreamFrame):
        return f"RST_STREAM, stream {frame.stream_id}, error {frame.error_code}"
    if isinstance(frame, DataFrame):
        return f"DATA, stream {frame.stream_id}"
    return ""


async def once() -> list[str]:
    """The frames around the first call that failed; none where none did."""
    import grpc

    async def say(*_: Any) -> bytes:
        return b"said"

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("Hello", {"Say": grpc.unary_unary_rpc_method_handler(say)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    wire, tasks = Wire(), set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", port)
        for way in (wire.passes(reader, ours, "→"), wire.passes(theirs, writer, "←")):
            tasks.add(asyncio.create_task(way))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, proxy_port = proxy.sockets[0].getsockname()
    failed: list[tuple[float, str]] = []
    async with grpc.aio.insecure_channel(f"{host}:{proxy_port}") as channel:
        call = channel.unary_unary("/Hello/Say")

        async def calls() -> None:
            while not failed:
                try:
                    await call(b"")
                except grpc.aio.AioRpcError as error:
                    failed.append((time.monotonic(), f"{error.code().name}: {error.details()}"))

        calling = [asyncio.create_task(calls()) for _ in range(_CALLS)]
        await asyncio.sleep(0.1)
        wire.noted.append((time.monotonic(), 0, "· server.stop(1) is called"))
        await server.stop(1)
        await asyncio.wait(calling, timeout=1)
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)
    proxy.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if not wire.refused or not failed:
        return []
    when, why = failed[0]
    noted = [(at, words) for at, stream, words in wire.noted if at <= when and stream in (0, wire.refused)]
    return [why, *(f"{(at - when) * 1000:9.2f} ms  {words}" for at, words in noted)]


def main() -> int:
    for _ in range(_TRIES):
        if found := asyncio.run(once()):
            print("\n".join(found))
            return 0
    print(f"no call failed in {_TRIES} ends", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
