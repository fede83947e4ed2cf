"""A grpc.aio server as anybody would write it: it knows nothing of whoever starts it, binds its address itself, and lets its
calls end at SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import grpc

NUMBER = int(os.environ.get("FDHANDOFF_GENERATION", "0"))  # the only thing that is there for the tests


async def say(request: bytes, _: Any) -> bytes:
    return b"%d %d" % (NUMBER, len(request))


async def serve(address: str, *options: str) -> None:
    pairs = [(name, int(value)) for name, _, value in (option.partition("=") for option in options)]
    server = grpc.aio.server(options=pairs)
    calls = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", calls),))
    server.add_insecure_port(address)
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop(5)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
