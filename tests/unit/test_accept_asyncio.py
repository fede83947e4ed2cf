"""The counted accept loop in asyncio: it stops in the same turn in which the gate closes."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.accept import AcceptLoop, CountedSocket, protocol_handler
from fdhandoff.counters import Counters
from fdhandoff.gate import Gate
from tests.unit.accepting import LONG, Clients, FewDescriptors

if TYPE_CHECKING:
    pass


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


async def ask(listener: socket.socket, *, close: bool = True) -> asyncio.StreamWriter | None:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.read(100), LONG) == b"hello"
    if not close:
        return writer
    writer.close()
    await writer.wait_closed()
    return None


def test_protocols_are_served_and_counted(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        with AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            running = asyncio.create_task(loop.run_async())
            await asyncio.gather(*(ask(listener) for _ in range(20)))
            writer = await ask(listener, close=False)
            assert writer is not None
            gate.close()
            await asyncio.wait_for(running, LONG)
            assert gate.active >= 1
            assert not await gate.wait_async(0)
            writer.close()
            assert await gate.wait_async(LONG)

    asyncio.run(main())
    assert gate.counters.accepted == gate.counters.finished == 21


def test_nothing_is_accepted_after_close_in_the_same_turn(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        with Clients(listener, 3), AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            running = asyncio.create_task(loop.run_async())
            gate.close()
            await asyncio.wait_for(running, LONG)
            assert select.select([listener], [], [], LONG)[0]

    asyncio.run(main())
    assert gate.counters.accepted == 0


def test_coroutines_run_as_tasks_and_their_errors_are_the_loops(listener: socket.socket, gate: Gate) -> None:
    async def handler(connection: CountedSocket, _: object) -> None:
        with connection:
            raise KeyError("bug")

    async def main() -> None:
        told: list[dict[str, Any]] = []
        failed = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: (told.append(context), failed.set()))
        with Clients(listener, 1), AcceptLoop([listener], gate, handler) as loop:
            running = asyncio.create_task(loop.run_async())
            await asyncio.wait_for(failed.wait(), LONG)
            loop.stop()
            await asyncio.wait_for(running, LONG)
        assert type(told[0]["exception"]) is KeyError

    asyncio.run(main())
    assert gate.counters == Counters(accepted=1, finished=1)


def test_the_asyncio_loop_waits_for_room(listener: socket.socket) -> None:
    gate = Gate(limit=1)

    async def main() -> None:
        with AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            running = asyncio.create_task(loop.run_async())
            await asyncio.gather(*(ask(listener) for _ in range(10)))
            gate.close()
            await asyncio.wait_for(running, LONG)
            assert await gate.wait_async(LONG)

    asyncio.run(main())
    assert gate.counters.finished == 10


def test_the_asyncio_loop_pauses_without_descriptors(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        said: list[str] = []
        loop = AcceptLoop([listener], gate, lambda c, _: c.close(), on_pause=said.append)
        running = asyncio.create_task(loop.run_async())
        await asyncio.sleep(0)
        with socket.socket() as client:
            with FewDescriptors():
                client.connect(listener.getsockname())
                while not said:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.05)
            while not gate.counters.finished:
                await asyncio.sleep(0.001)
        assert len(said) == 1
        loop.stop()
        await asyncio.wait_for(running, LONG)
        loop.close()

    asyncio.run(main())


def test_a_cancelled_loop_leaves_the_listener_alone(listener: socket.socket, gate: Gate) -> None:
    async def main() -> None:
        with AcceptLoop([listener], gate, protocol_handler(Echo)) as loop:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.run_async(), 0.01)
            running = asyncio.create_task(loop.run_async())
            await ask(listener)
            loop.stop()
            await asyncio.wait_for(running, LONG)
        gate.close()
        assert await gate.wait_async(LONG)

    asyncio.run(main())
