"""What aiohttp's adapter knows of a connection: whether it may move, however the client cut what it sent."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'fdhandoff[test]'")

from aiohttp import web

from fdhandoff.servers.aiohttp import Resting

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n" + b"--x\r\n\r\nGET / HTTP/1.1\r\n\r\n--x--"
DELETE = b"DELETE / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabcdef"
# Where its head ends a piece, whether anything follows its body is not known.
LONG_GET = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabcdef"
EMPTY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
REQUESTS = [GET, POST, EMPTY, CHUNKED, DELETE]
ALL = [*REQUESTS, LONG_GET]


async def _answer(request: web.BaseRequest) -> web.Response:
    return web.Response(text=str(len(await request.read())))


class Connection:
    """A protocol that gets what it is given, in these pieces, and answers to a socket."""

    def __init__(self) -> None:
        self._server = web.Server(_answer)
        self.client, self._sock = socket.socketpair()
        self.protocol = Resting(None, self._server, loop=asyncio.get_running_loop())  # type: ignore[arg-type]
        self._answers = 0

    async def open(self) -> None:
        self.client.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self.protocol, self._sock)

    async def answers(self, count: int) -> None:
        """Waits for so many more, and until the handler does for the next request."""
        text = b""
        while text.count(b"HTTP/1.1 200") < count:
            text += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 65536), 20)
        while self.protocol._waiter is None:
            await asyncio.sleep(0)

    async def close(self) -> None:
        self.protocol.force_close()
        await self._server.shutdown(1)
        self.client.close()


def _pieces(text: bytes, cuts: random.Random) -> list[bytes]:
    places = sorted(cuts.randrange(1, len(text)) for _ in range(cuts.randrange(4)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True) if a != b]


@pytest.mark.parametrize("request_", REQUESTS, ids=["get", "post", "empty", "chunked", "delete"])
def test_it_may_move_after_a_request_wherever_that_was_cut(request_: bytes) -> None:
    async def main() -> None:
        connection = Connection()
        await connection.open()
        for cut in range(len(request_)):
            for piece in (request_[:cut], request_[cut:]):
                if piece:
                    connection.protocol.data_received(piece)
            await connection.answers(1)
            assert connection.protocol.state() == b"", (cut, request_)
        await connection.close()

    asyncio.run(main())


def test_it_never_moves_with_a_part_of_a_request_and_after_whole_ones_it_does() -> None:
    async def main() -> None:
        cuts = random.Random(1)
        for _ in range(300):
            connection = Connection()
            await connection.open()
            for _ in range(4):
                whole = cuts.choices(ALL, k=cuts.randrange(1, 4))
                part = cuts.choice(ALL)
                part = part[: cuts.randrange(1, part.index(b"\r\n\r\n") + 4)]
                text = b"".join(whole) + part
                for piece in _pieces(text, cuts):
                    connection.protocol.data_received(piece)
                await connection.answers(len(whole))
                assert connection.protocol.state() is None, text
                rest = next(one for one in ALL if one.startswith(part))[len(part) :]
                connection.protocol.data_received(rest)
                await connection.answers(1)
                connection.protocol.data_received(GET)  # at the latest then it is known again
                await connection.answers(1)
                assert connection.protocol.state() == b"", text
            await connection.close()

    asyncio.run(main())
