"""A grpc.aio server by its adapter, without generated code: calls carry bytes, and answers name the generation."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import grpc

from fdhandoff.servers import grpc_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Echo:
    def __init__(self, generation: int) -> None:
        self.generation = generation

    async def say(self, request: bytes, _: Any) -> bytes:
        if request.startswith(b"slow"):
            await asyncio.sleep(float(request[4:]))
        return b"%d %d" % (self.generation, len(request))

    async def count(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d %d" % (self.generation, number)
            await asyncio.sleep(0.1)


def make(service: Any) -> Any:
    echo = Echo(service.generation.number)
    server = grpc.aio.server()
    calls = {
        "Say": grpc.unary_unary_rpc_method_handler(echo.say),
        "Count": grpc.unary_stream_rpc_method_handler(echo.count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", calls),))
    return server


def main() -> None:
    port, path = sys.argv[1:]
    asyncio.run(grpc_aio.serve(make, f"127.0.0.1:{port}", handoff_path=path, handoff_probation=0.5, grace=20))


if __name__ == "__main__":
    main()
