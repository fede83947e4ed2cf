"""Clients of every kind for a server under test, and a book of all that they saw.

Nothing is retried: each request has one chance, and whatever is not a complete answer with status 200 is written down as
failed, with its reason. So is an answer by a generation that was not to give it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

ONE_REQUEST = "one request each"
KEEP_ALIVE = "keep-alive"
SLOW = "slow, straddling"
SILENT = "silent at first"
KINDS = (ONE_REQUEST, KEEP_ALIVE, SLOW, SILENT)

TIMEOUT = 20.0


class Book:
    """What the clients saw. ``answers``: kind, begin, end and generation of each; ``failures``: kind, moment, reason."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.connections: Counter[str] = Counter()
        self.answers: list[tuple[str, float, float, int]] = []
        self.failures: list[tuple[str, float, str]] = []
        self.newest = 1  # the generation that answers every connection begun from now on

    def generations(self) -> Counter[int]:
        return Counter(generation for _, _, _, generation in self.answers)

    def failed(self, kind: str) -> int:
        return sum(one == kind for one, _, _ in self.failures)


class Load:
    """Runs the clients against ``host:port`` until ``stop``."""

    def __init__(self, host: str, port: int, book: Book) -> None:
        self.address = (host, port)
        self.book = book
        self.stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, *, one_request: int = 4, keep_alive: int = 8, pause: float = 0.02) -> None:
        for _ in range(one_request):
            self._spawn(self._again_and_again(pause))
        for _ in range(keep_alive):
            self._spawn(self._kept_alive(pause))

    def slow(self, seconds: float) -> None:
        """A request that takes so long; begin it before a handoff, and it straddles."""
        self._spawn(self._once(SLOW, f"/slow?seconds={seconds:g}"))

    def silent(self, seconds: float) -> None:
        """A connection on which nothing is said for so long."""
        self._spawn(self._once(SILENT, "/", seconds))

    async def stop(self) -> None:
        """Lets every client end what it has begun."""
        self.stopping = True
        await asyncio.gather(*self._tasks)

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the clients ------------------------------------------------------------------------------------------

    async def _again_and_again(self, pause: float) -> None:
        while not self.stopping:
            await self._once(ONE_REQUEST, "/")
            await asyncio.sleep(pause)

    async def _kept_alive(self, pause: float) -> None:
        """Requests on one connection, as long as the server lets it: a new one only after ``Connection: close``."""
        while not self.stopping:
            client = await self._connect(KEEP_ALIVE)
            while client is not None and not self.stopping:
                if not await self._ask(KEEP_ALIVE, client, "/"):
                    break
                await asyncio.sleep(pause)
            _hang_up(client)

    async def _once(self, kind: str, target: str, silence: float = 0.0) -> None:
        client = await self._connect(kind)
        if client is not None:
            if silence:
                await asyncio.sleep(silence)
            await self._ask(kind, client, target, "Connection: close\r\n")
        _hang_up(client)

    async def _connect(self, kind: str) -> Client | None:
        expected = self.book.newest
        self.book.connections[kind] += 1
        try:
            streams = await asyncio.wait_for(asyncio.open_connection(*self.address), TIMEOUT)
        except (OSError, asyncio.TimeoutError) as error:
            self.book.asked[kind] += 1
            self._fail(kind, error)
            return None
        return Client(*streams, expected)

    async def _ask(self, kind: str, client: Client, target: str, more: str = "") -> bool:
        """Whether the connection is good for another request."""
        began = time.monotonic()
        self.book.asked[kind] += 1
        try:
            generation, close = await asyncio.wait_for(client.ask(target, more), TIMEOUT)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            self._fail(kind, error)
            return False
        if generation < client.expected:
            self._fail(kind, ValueError(f"generation {generation} answered, {client.expected} was the owner"))
            return False
        self.book.answers.append((kind, began, time.monotonic(), generation))
        return not close

    def _fail(self, kind: str, error: Exception) -> None:
        self.book.failures.append((kind, time.monotonic(), f"{type(error).__name__}: {error}"))


class Client:
    """One connection. ``expected``: the oldest generation that may answer on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, expected: int) -> None:
        self.reader = reader
        self.writer = writer
        self.expected = expected

    async def ask(self, target: str, more: str = "") -> tuple[int, bool]:
        """Which generation answered, and whether it will close the connection."""
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: load\r\n{more}\r\n".encode())
        await self.writer.drain()
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if " 200 " not in head.partition("\r\n")[0]:
            raise ValueError(head.partition("\r\n")[0])
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        answer = json.loads(await self.reader.readexactly(length))
        return int(answer["generation"]), "connection: close" in head


def _hang_up(client: Client | None) -> None:
    if client is not None:
        client.writer.close()
