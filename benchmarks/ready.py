"""Ready: from *ready* to the first connection that the new owner has answered, in microseconds.

A chain of unrelated generations under load; each takes over, prepares everything, says *ready*, accepts in its main thread
when it is the owner, and takes the time until it has sent its first answer. A client connects without a pause all the while,
so at the commit one connection is in the queue or on its way. Beside it: the time to the return of ``ready()`` alone, and a
connection answered by an owner that was there all the time."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import fdhandoff
from fdhandoff import AcceptLoop, CountedSocket, Gate

from .measure import Row, in_child, join

if TYPE_CHECKING:
    from collections.abc import Callable


class Generation:
    """Takes over from the one before (or begins), answers until the next one takes, and says how long the start took."""

    def __init__(self, path: str, report: int) -> None:
        self.path = path
        self.report = report
        self.gate = Gate()
        self.began = self.owned = 0
        self.serving = threading.Event()

    def first(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            os.write(self.report, f"{listener.getsockname()[1]}\n".encode())
            self.serving.set()
            self.serve([listener], lambda: None)

    def later(self) -> None:
        takeover = fdhandoff.receive(self.path, timeout=30)

        def ready() -> None:
            self.began = time.perf_counter_ns()
            takeover.ready()
            self.owned = time.perf_counter_ns()

        self.serve(list(takeover.listeners), ready)

    def serve(self, listeners: list[socket.socket], ready: Callable[[], None]) -> None:
        with AcceptLoop(listeners, self.gate, self.answer) as loop:
            offering = threading.Thread(target=self.offer, args=(listeners,))
            offering.start()
            ready()
            loop.run()
            offering.join()
        self.gate.wait(10)

    def offer(self, listeners: list[socket.socket]) -> None:
        self.serving.wait()
        fdhandoff.send(self.path, listeners, gate=self.gate, timeout=30)

    def answer(self, connection: CountedSocket, _: object) -> None:
        with connection:
            connection.sendall(b"x")
        if not self.serving.is_set():
            now = time.perf_counter_ns()
            self.serving.set()
            os.write(self.report, f"{now - self.began} {self.owned - self.began}\n".encode())


def _client(address: tuple[str, int]) -> None:
    try:
        while True:
            with socket.create_connection(address, 10) as sock:
                sock.recv(1)
    except OSError:
        pass  # the last generation has ended


def _quiet(address: tuple[str, int], times: int) -> list[float]:
    """Microseconds for a connection and its answer without any handoff."""
    samples = []
    for _ in range(times):
        before = time.perf_counter_ns()
        with socket.create_connection(address, 10) as sock:
            sock.recv(1)
        samples.append((time.perf_counter_ns() - before) / 1000)
    return samples


def run(turns: int) -> list[Row]:
    for name in ("send", "receive"):
        getattr(fdhandoff, name)  # imported here, once, not by each generation after its start
    times = turns * 6
    served, owned = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/server"
        reader, writer = os.pipe()
        children = [in_child(Generation(path, writer).first)]
        with os.fdopen(reader) as reports:
            address = ("127.0.0.1", int(reports.readline()))
            quiet = _quiet(address, 200)
            client = in_child(lambda: _client(address))
            for _ in range(times):
                children.append(in_child(Generation(path, writer).later))
                first, ownership = map(int, reports.readline().split())
                served.append(first / 1000)
                owned.append(ownership / 1000)
                join(children.pop(0))
            os.close(writer)
        with fdhandoff.receive(path, timeout=30) as last:
            last.ready()
            join(children.pop())
            last.listeners.close()
        os.waitpid(client, 0)
    ordered = sorted(served)
    return [
        Row("a connection and its answer, no handoff", quiet, "us"),
        Row("until ready() returns", owned, "us"),
        Row("until the first answer", served, "us", at_most=1000),
        Row("  of these the slowest tenth", ordered[-max(1, len(ordered) // 10) :], "us"),
        Row("  of these the fastest tenth", ordered[: max(1, len(ordered) // 10)], "us"),
        Row("  quartiles", statistics.quantiles(served, n=4), "us"),
    ]
