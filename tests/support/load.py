"""Clients that never stop asking: one request each, kept-alive, slow, and silent for a while before they speak."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

SILENT_SECONDS = 0.1


@dataclass
class Answer:
    kind: str
    begun: float  # before the connection
    connected: float
    ended: float
    generation: int
    accepted: float


@dataclass
class Load:
    """Each client is a thread with a kind; ``stop()`` ends them all after the request that they are in."""

    port: int
    kinds: tuple[str, ...] = ("single", "single", "kept", "kept", "slow", "silent")
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def start(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(kind,)) for kind in self.kinds]
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self, kind: str) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                self._connection(kind, begun)
            except (OSError, ValueError) as error:
                self.failures.append(f"{kind}: {error!r} after {time.monotonic() - begun:.3f} s")
                self._over.wait(0.01)

    def _connection(self, kind: str, begun: float) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connected = time.monotonic()
            with connection.makefile("rb") as stream:
                if kind == "silent":
                    self._over.wait(SILENT_SECONDS)
                while True:
                    answer = self._request(connection, stream, kind)
                    now = time.monotonic()
                    self.answers.append(
                        Answer(kind, begun, connected, now, answer["body"]["generation"], answer["body"]["accepted"])
                    )
                    if answer["last"] or kind != "kept":
                        return
                    last = self._over.is_set()
                    if last:
                        return
                    time.sleep(random.uniform(0, 0.01))

    def _request(self, connection: socket.socket, stream: Any, kind: str) -> dict[str, Any]:
        path = "/slow" if kind == "slow" else "/"
        close = "" if kind == "kept" else "Connection: close\r\n"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n{close}\r\n".encode())
        status = stream.readline()
        if status != b"HTTP/1.1 200 OK\r\n":
            raise ValueError(f"answered with {status!r}")
        length, last = 0, False
        while (line := stream.readline().strip().lower()) != b"":
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"content-length" else length
            last = last or (name, value) == (b"connection", b"close")
        body = stream.read(length)
        if len(body) != length:
            raise ValueError(f"{len(body)} of {length} bytes")
        return {"body": json.loads(body), "last": last}
