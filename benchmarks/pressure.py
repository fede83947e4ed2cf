"""The clients of the swaps, as a program: all kinds at once, none retries. Says ``begun`` once each kind
has had an answer, runs until its standard input ends, and prints JSON.

A request fails when it was sent, in whole or in part, and no whole answer came. A connection that the server had closed before
anything was sent on it is no failure, if the client could know: it connects again, and that is counted. The silent ones say
nothing for a while after they connected, and fail when they are closed meanwhile: they were accepted to be heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter

PATIENCE = 30.0
POST = b"x" * 16_384

#: Kind: how many clients, the request's path and body, the pause after each answer, and whether the connection is kept.
KINDS = {
    "one-shot": (4, "/", b"", 0.01, False),
    "busy": (8, "/", b"", 0.005, True),
    "idle": (6, "/", b"", 0.7, True),
    "slow": (2, "/slow/0.3", b"", 0.01, False),
    "big": (2, "/big", b"", 0.05, True),
    "post": (2, "/", POST, 0.05, True),
    "silent": (2, "/", b"", 0.0, False),
    "half": (2, "/", b"", 0.0, False),
}
#: How long those wait in the middle.
PAUSES = {"silent": 1.5, "half": 1.0}
#: How many examples of each kind of trouble are named.
EXAMPLES = 5


class Failed(Exception):
    """How."""


class Pressure:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.over = asyncio.Event()
        self.answers: Counter[str] = Counter()
        self.failures: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.reconnects: Counter[str] = Counter()
        self.unannounced = 0
        self.examples: dict[str, list[tuple[float, int]]] = {}
        self.begun = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(0, lambda: self.over.set() if not sys.stdin.buffer.raw.read(1) else None)
        await asyncio.gather(*(self._client(kind) for kind, row in KINDS.items() for _ in range(row[0])))

    async def _client(self, kind: str) -> None:
        _, path, body, pause, kept = KINDS[kind]
        connection: Connection | None = None
        connected = False
        while not self.over.is_set():
            if connection is not None and connection.reader.at_eof():
                self.unannounced += 1
                self._remember(kind, "its end was not announced", connection)
                connection.close()
                connection = None
            try:
                if connection is None:
                    connection = await Connection.to(self.host, self.port)
                    self.reconnects[kind] += kept and connected
                    connected = True
                ended = await asyncio.wait_for(
                    connection.ask(path, body, kept, PAUSES.get(kind, 0.0), silent=kind == "silent"), PATIENCE
                )
                self.answers[kind] += 1
                if ended and kept:
                    self._remember(kind, "its end was announced", connection)
                if not self.begun and set(self.answers) == set(KINDS):
                    self.begun = True
                    print("begun", flush=True)
            except (OSError, Failed, EOFError, asyncio.TimeoutError) as error:
                self.failures[kind][describe(error)] += 1
                self._remember(kind, describe(error), connection)
                ended = True
            if ended and connection is not None:
                connection.close()
                connection = None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.over.wait(), max(pause, 0.001))
        if connection is not None:
            connection.close()

    def _remember(self, kind: str, how: str, connection: Connection | None) -> None:
        """For who looks up what happened on the wire: when it was, and the client's port."""
        known = self.examples.setdefault(f"{kind}: {how}", [])
        if connection is not None and len(known) < EXAMPLES:
            known.append((time.time(), connection.port))

    def results(self) -> dict[str, object]:
        return {
            "answers": dict(self.answers),
            "failures": {kind: dict(found) for kind, found in self.failures.items() if found},
            "reconnects": sum(self.reconnects.values()),
            "reconnects_of": {kind: count for kind, count in self.reconnects.items() if count},
            "unannounced": self.unannounced,
            "examples": self.examples,
        }


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.port = int(writer.get_extra_info("sockname")[1])

    @classmethod
    async def to(cls, host: str, port: int) -> Connection:
        try:
            return cls(*await asyncio.wait_for(asyncio.open_connection(host, port, limit=1 << 20), PATIENCE))
        except ConnectionRefusedError:
            raise Failed("refused") from None

    def close(self) -> None:
        self.writer.transport.abort()

    async def ask(self, path: str, body: bytes, kept: bool, pause: float, *, silent: bool) -> bool:
        """Whether the connection is to end."""
        method = "POST" if body else "GET"
        close = "" if kept else "Connection: close\r\n"
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: swaps\r\n{close}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        at = 0 if silent else len(request) // 2 if pause else len(request)
        self.writer.write(request[:at])
        if pause:
            await asyncio.sleep(pause)
            if self.reader.at_eof():
                raise Failed("closed while it was silent" if silent else "closed within the request")
            self.writer.write(request[at:])
        await self.writer.drain()
        head = await self._head()
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if " 200 " not in f"{lines[0]} ":
            raise Failed(f"answered {lines[0][9:12]}")
        try:
            await self.reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError:
            raise Failed("cut within the answer") from None
        said = headers.get("connection", "").lower()
        return not kept or said == "close" or (lines[0].startswith("HTTP/1.0") and said != "keep-alive")

    async def _head(self) -> bytes:
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise Failed("cut within the answer" if error.partial else "closed without an answer") from None


def describe(error: BaseException) -> str:
    if isinstance(error, Failed):
        return str(error)
    if isinstance(error, ConnectionError):
        return "reset"
    return "no answer in time" if isinstance(error, asyncio.TimeoutError) else f"{type(error).__name__}: {error}"


async def main() -> None:
    pressure = Pressure(sys.argv[1], int(sys.argv[2]))
    await pressure.run()
    print(json.dumps(pressure.results()))


if __name__ == "__main__":
    asyncio.run(main())
