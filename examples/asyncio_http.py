"""A small HTTP/1.1 server on asyncio that is replaced while it runs, without a failed request.

    python examples/asyncio_http.py --path /tmp/hello/handoff.sock          # in one terminal
    curl -i http://127.0.0.1:8000/                                          # in another
    python examples/asyncio_http.py --path /tmp/hello/handoff.sock          # in a third: it takes the service over

The first process drains and ends; kill -HUP does the same with a successor that the server starts itself. What makes it
upgradeable are the lines marked (1) to (5).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from functools import partial
from urllib.parse import parse_qs, urlsplit

from fdhandoff import Service
from fdhandoff.accept import protocol_handler


async def serve_client(
    service: Service, release: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One connection: requests and answers until one of the two sides has enough."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            request, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = request.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            await reader.readexactly(int(headers.get("content-length", "0")))

            url = urlsplit(target)
            if url.path == "/slow":  # /slow?seconds=3 is a request that straddles an upgrade
                await asyncio.sleep(float(parse_qs(url.query).get("seconds", ["1"])[0]))
            answer = {"release": release, "generation": service.generation.number, "pid": os.getpid()}
            body = json.dumps(answer).encode() + b"\n"

            # (5) While this process drains, each answer announces that its connection ends: the client's next request
            # comes on a new one, to the next generation. Never close an idle connection instead: a request may be on
            # its way already.
            close = service.draining or headers.get("connection", "").lower() == "close"
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\nConnection: {'close' if close else 'keep-alive'}\r\n\r\n".encode()
                + (b"" if method == "HEAD" else body)
            )
            await writer.drain()
            if close:
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the client has gone
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:8000", help="address, as in HOST:PORT or unix:PATH")
    parser.add_argument("--path", default="", help="the handoff path, where generations meet")
    parser.add_argument("--release", default="1", help="what the answers say")
    parser.add_argument("--probation", type=float, default=5.0, help="seconds in which a dead successor is replaced")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that a drain may last")
    parser.add_argument("--broken", action="store_true", help="be a bad release: fail the check before ready()")
    options = parser.parse_args()

    # (1) A service of this name. If one runs already, this process begins to take it over: it gets the listeners, and the
    # old process serves on.
    with Service("hello", path=options.path, probation=options.probation, grace=options.grace) as service:
        # (2) The listener: the one that came from the old process, else bound now.
        listener = service.listen("http", options.listen)

        # Load what must be loaded, check what must be checked. Failing here costs nothing.
        if options.broken:
            raise SystemExit("this release fails its own check")

        # (3) Ready: when this returns, the old process accepts nothing any more, and this one is the owner.
        await service.ready_async()

        def protocol() -> asyncio.Protocol:
            reader = asyncio.StreamReader()
            return asyncio.StreamReaderProtocol(reader, partial(serve_client, service, options.release))

        # (4) Accept through the service's gate, in place of asyncio.start_server, until this process shall end: because
        # a successor serves, or because of SIGTERM. Then finish what is inside.
        await service.serve_async(protocol_handler(protocol), [listener])
        await service.drain_async()


if __name__ == "__main__":
    asyncio.run(main())
