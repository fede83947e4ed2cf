"""Accept: draining a listener's queue, per connection.

In Python the queue ends as a list of socket objects, each counted by the gate, beside ``socket.accept`` in a loop. In C
``fdh_accept`` with a gate stands beside a bare loop of ``accept4``."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fdhandoff import Gate
from fdhandoff.accept import Acceptor
from fdhandoff.system.native import FDH_MORE

from .measure import Row, run_c, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def _backlog() -> int:
    try:
        return min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    except OSError:
        return 128


def _with_socket_accept(listener: socket.socket) -> list[socket.socket]:
    connections = []
    while True:
        try:
            connections.append(listener.accept()[0])
        except BlockingIOError:
            return connections


def _with_gate(gate: Gate, timeout: float | None) -> Callable[[socket.socket], list[socket.socket]]:
    def drain(listener: socket.socket) -> list[socket.socket]:
        acceptor = Acceptor(listener, gate, timeout=timeout)
        connections = list[socket.socket]()
        while True:
            connections += acceptor.accept()
            if acceptor.condition != FDH_MORE:
                return connections

    return drain


def _with_asyncio(listener: socket.socket) -> list[socket.socket]:
    """As far as the protocols' ``connection_made``; the transports own the connections."""
    made = took = 0
    count = _backlog()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal made
            made += 1
            transports.append(transport)
            if made == count:
                all_made.set()

    async def main() -> None:
        nonlocal took
        before = time.perf_counter_ns()
        server = await asyncio.get_running_loop().create_server(Protocol, sock=listener, backlog=count)
        await all_made.wait()
        took = time.perf_counter_ns() - before
        server.close()
        for transport in transports:
            transport.abort()  # type: ignore[attr-defined]

    transports: list[asyncio.BaseTransport] = []
    all_made = asyncio.Event()
    asyncio.run(main())
    raise _Took(took)


class _Took(Exception):
    """A way that measured itself."""


def _timed(drain: Callable[[socket.socket], list[socket.socket]], count: int) -> Callable[[], float]:
    def measure() -> float:
        with socket.create_server(("127.0.0.1", 0), backlog=count) as listener:
            listener.setblocking(False)
            clients = []
            for _ in range(count):
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                client.connect(listener.getsockname())
                clients.append(client)
            gc.collect()
            connections: list[socket.socket] = []
            before = time.perf_counter_ns()
            try:
                connections = drain(listener)
                took = time.perf_counter_ns() - before
                assert len(connections) == count
            except _Took as measured:
                took = measured.args[0]
            for sock in (*clients, *connections):
                sock.close()
        return took / count

    return measure


def run(turns: int) -> list[Row]:
    count = _backlog()
    c = run_c("accept", turns, count)
    bare = Row("C: bare accept4 loop", c["accept4"], "ns")
    gate = Gate()
    ways = {
        "accept": _with_socket_accept,
        "counted": _with_gate(gate, 0.0),
        "blocking": _with_gate(gate, None),
        "asyncio": _with_asyncio,
    }
    samples = take_turns({name: _timed(way, count) for name, way in ways.items()}, turns)
    gate.release()
    peer = Row("Python: socket.accept loop", samples["accept"], "ns")
    return [
        bare,
        Row("C: fdh_accept with a gate", c["fdh_accept"], "ns", against=bare, at_most=1.15),
        peer,
        Row("Python: counted, non-blocking", samples["counted"], "ns", against=peer, inverse=True, at_least=1.8),
        Row("Python: counted, blocking", samples["blocking"], "ns", against=peer, inverse=True),
        Row("Python: asyncio protocols (not counted)", samples["asyncio"], "ns", against=peer, inverse=True),
        Row("Python: counted, beside C", samples["counted"], "ns", against=bare),
    ]
