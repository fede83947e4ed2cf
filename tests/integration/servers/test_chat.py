"""Websockets with state move: the example's sessions go on through upgrades, also in the middle of a frame and of a message."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from fdhandoff.websocket import EXTENSION, travelling

from ..cli import Running, environment, free_port, stopping
from ..master import Service, quick
from . import Client

CHAT = Path(__file__).parents[3] / "examples" / "chat.py"
APP = Path(__file__).parent

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'fdhandoff[test]'")


class Talker:
    """A websocket client that can stop anywhere."""

    def __init__(self, port: int, *, path: str = "/chat", headers: str = "") -> None:
        self._client = Client(("127.0.0.1", port))
        self._client.sock.sendall(
            b"GET " + path.encode() + b" HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + headers.encode() + b"\r\n"
        )
        self.answer = self._client._until(b"\r\n\r\n")
        assert b" 101 " in self.answer.splitlines()[0]

    def close(self) -> None:
        self._client.close()

    def send(self, data: bytes) -> None:
        self._client.sock.sendall(data)

    def say(self, text: str) -> None:
        self.send(frame(text))

    def hear(self) -> tuple[int, str]:
        """The next message of the server's: generation and text. What it pings with is left alone."""
        while True:
            opcode, data = self.receive()
            if opcode == 1:
                generation, _, text = data.decode().partition(" ")
                return int(generation), text
            if opcode == 8:
                raise ConnectionError(f"closed with {struct.unpack('!H', data[:2])[0]}")

    def receive(self) -> tuple[int, bytes]:
        first, size = self._client._take(2)
        if size == 126:
            size = int.from_bytes(self._client._take(2), "big")
        return first & 15, self._client._take(size)

    def ask(self, text: str) -> tuple[int, str]:
        self.say(text)
        return self.hear()


def frame(text: str | bytes, *, opcode: int = 1, last: bool = True) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
    return bytes([(0x80 if last else 0) | opcode]) + size + mask + masked


class Chat(Running):
    """With uvicorn and the ``library`` for websockets, or with aiohttp."""

    def __init__(self, folder: Path, port: int, library: str, number: int) -> None:
        path = str(folder / "h.sock")
        program = (
            [str(APP / "chat_on_aiohttp.py"), str(port)] if library == "aiohttp" else [str(CHAT), str(port), library]
        )
        words = [*program, "--handoff-path", path, "--handoff-probation", "0"]
        self._start([sys.executable, *words], env=environment())
        self.says(f"generation {number} serves")


class Program(Running):
    def __init__(self, words: list[str]) -> None:
        self._start([sys.executable, *words], env=environment())


@pytest.mark.parametrize(
    ("library", "upgrades"),
    [("websockets-sansio", 10), ("wsproto", 3), ("websockets", 3), ("aiohttp", 10)],
    ids=lambda value: str(value),
)
def test_sessions_go_on_through_upgrades_also_in_the_middle_of_a_frame_and_of_a_message(
    tmp_path: Path, library: str, upgrades: int
) -> None:
    pytest.importorskip(library.partition("-")[0], reason=f"needs {library}: pip install 'fdhandoff[test]'")
    port = free_port()
    with contextlib.ExitStack() as stack:
        old = Chat(tmp_path, port, library, 1)
        stack.callback(old.stop)
        anna, ben, carl = (stack.enter_context(contextlib.closing(Talker(port))) for _ in range(3))
        for talker, name, room in ((anna, "anna", "tea"), (ben, "ben", "rum"), (carl, "carl", "gin")):
            assert talker.ask(f"/nick {name}") == (1, f"you are {name}")
            assert talker.ask(f"/join {room}") == (1, f"you are in {room}")
        for number in range(2, upgrades + 2):
            ending = frame(" of it", opcode=0)
            half, said = frame("a" * (200 if number % 2 else 20)), number - 1
            cut = (1, 3, 7, len(half) - 1)[number % 4]  # in the head, the length, the mask, the text
            ben.send(half[:cut])
            carl.send(frame("three ", last=False))
            carl.send(frame(b"are you there?", opcode=9))  # a control frame may come between
            carl.send(frame("parts", opcode=0, last=False) + ending[:9])
            assert carl.receive()[0] in (9, 10), "so all of that was read"
            new = Chat(tmp_path, port, library, number)
            stack.callback(new.stop)
            assert old.ends() == 0, old.text()
            assert "3 connections moved on, 0 ended here" in old.text()
            ben.send(half[cut:])
            assert ben.hear() == (number, f"ben@rum #{said}: {'a' * (200 if number % 2 else 20)}")
            assert anna.ask("hello") == (number, f"anna@tea #{said}: hello")
            carl.send(ending[9:])
            assert carl.hear() == (number, f"carl@gin #{said}: three parts of it")
            old = new
        assert ben.ask("/join tea") == (number, "you are in tea")
        assert ben.ask("here I am") == (number, f"ben@tea #{said + 1}: here I am")
        assert anna.hear() == (number, f"ben@tea #{said + 1}: here I am"), "a room is whole again behind the upgrade"


def test_under_the_master_websockets_move_with_each_upgrade(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--ready", "http:/"), command=[sys.executable, str(CHAT), "0"]) as service:
        port = service.address()[1]
        with contextlib.closing(Talker(port)) as anna:
            assert anna.ask("hello") == (1, "somebody@hall #1: hello")
            for number in (2, 3):
                half = frame("hello again")
                anna.send(half[:5])
                service.upgrade()
                service.settled(number)
                anna.send(half[5:])
                assert anna.hear() == (number, f"somebody@hall #{number}: hello again")
        assert service.stop() == 0


def test_a_websocket_that_can_not_move_is_told_to_come_again_and_counted(tmp_path: Path) -> None:
    """One compresses, and the other's application keeps nothing."""
    port, path = free_port(), str(tmp_path / "h.sock")
    words = ["app:app", "--app-dir", str(APP), "--port", str(port), "--handoff-path", path, "--handoff-probation", "0"]

    class App(Running):
        def __init__(self, number: int) -> None:
            self._start([sys.executable, "-m", "fdhandoff.servers.uvicorn", *words], env=environment())
            self.says(f"generation {number} serves")

    old = App(1)
    with stopping(old), contextlib.ExitStack() as stack:
        plain = stack.enter_context(contextlib.closing(Talker(port)))
        keeping = stack.enter_context(contextlib.closing(Talker(port, path="/keep")))
        offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
        compressed = stack.enter_context(contextlib.closing(Talker(port, path="/keep", headers=offer)))
        assert b"permessage-deflate" in compressed.answer
        assert plain.ask("a") == (1, "a")
        assert keeping.ask("b") == (1, "b")
        new = App(2)
        with stopping(new):
            assert old.ends() == 0, old.text()
            assert "1 connections moved on, 2 ended here, of which 2 were websockets that could not move" in old.text()
            for talker in (plain, compressed):
                with pytest.raises(ConnectionError, match="closed with 1012"):
                    talker.hear()
            assert keeping.ask("c") == (2, "c")


def test_of_aiohttps_websockets_too_one_that_can_not_move_is_told_to_come_again(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'fdhandoff[test]'")
    port = free_port()
    old = Chat(tmp_path, port, "aiohttp", 1)
    with stopping(old), contextlib.ExitStack() as stack:
        plain = stack.enter_context(contextlib.closing(Talker(port, path="/plain")))
        keeping = stack.enter_context(contextlib.closing(Talker(port)))
        offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
        compressed = stack.enter_context(contextlib.closing(Talker(port, headers=offer)))
        assert b"permessage-deflate" in compressed.answer
        assert plain.ask("a") == (1, "a")
        assert keeping.ask("/join tea") == (1, "you are in tea")
        new = Chat(tmp_path, port, "aiohttp", 2)
        with stopping(new):
            for talker in (plain, compressed):
                with pytest.raises(ConnectionError, match="closed with 1012"):
                    talker.hear()
                talker.close()
            assert old.ends() == 0, old.text()
            assert "1 connections moved on, 2 ended here, of which 2 were websockets that could not move" in old.text()
            assert keeping.ask("c") == (2, "somebody@tea #1: c")


@pytest.mark.parametrize("library", ["websockets-sansio", "wsproto", "websockets", "aiohttp"])
def test_a_websocket_that_turns_out_to_be_unable_to_move_is_told_to_come_again(tmp_path: Path, library: str) -> None:
    """And holds up nobody's end until then."""
    pytest.importorskip(library.partition("-")[0], reason=f"needs {library}: pip install 'fdhandoff[test]'")
    port = free_port()
    if library == "aiohttp":
        command = [str(APP / "chat_on_aiohttp.py"), str(port)]
    else:
        command = [
            "-m",
            "fdhandoff.servers.uvicorn",
            "app:app",
            "--app-dir",
            str(APP),
            "--port",
            str(port),
            "--ws",
            library,
        ]
    command += ["--handoff-path", str(tmp_path / "h.sock"), "--handoff-probation", "0"]
    old, new = Program(command), None
    with stopping(old), contextlib.ExitStack() as stack:
        old.says("generation 1 serves")
        late = stack.enter_context(contextlib.closing(Talker(port, path="/late")))
        new = Program(command)
        with stopping(new):
            new.says("generation 2 serves")
            late.send(frame("hello"))
            assert late.hear() == (1, "hello")
            with pytest.raises(ConnectionError, match="closed with 1012"):
                late.hear()
            late.close()
            assert old.ends() == 0, old.text()
            assert "of which 1 were websockets that could not move" in old.text()
            assert "ValueError: it is too late" in old.text()


@pytest.mark.parametrize("library", ["websockets-sansio", "wsproto"])
def test_what_has_ended_leaves_nothing_to_a_collection_of_garbage(library: str) -> None:
    import uvicorn
    from uvicorn.server import ServerState

    over = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = scope["extensions"][EXTENSION]
        await receive()
        session.keep(lambda: repr(send).encode())
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
        over.set()

    async def talk() -> weakref.ref[Any]:
        config = uvicorn.Config(app, ws=library, log_config=None)
        config.load()
        protocols = [travelling(config.ws_protocol_class)(config=config, server_state=ServerState(), app_state={})]
        found = weakref.ref(protocols[0])
        client, server = socket.socketpair()
        with client:
            await asyncio.get_running_loop().connect_accepted_socket(protocols.pop, server)
            client.setblocking(False)
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b" 101 " in await asyncio.get_running_loop().sock_recv(client, 4096)
        await over.wait()
        await asyncio.sleep(0)  # the task is over
        return found

    gc.disable()
    try:
        assert asyncio.run(talk())() is None
    finally:
        gc.enable()


REQUEST = (
    b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize("library", ["websockets", "websockets-sansio", "wsproto"])
@pytest.mark.filterwarnings("ignore")  # that one of them is deprecated
def test_none_moves_with_a_ping_that_is_not_answered(library: str) -> None:
    """One library answers in a later turn of the loop."""
    import uvicorn
    from uvicorn.server import ServerState

    pytest.importorskip(library.partition("-")[0], reason=f"needs {library}: pip install 'fdhandoff[test]'")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["extensions"][EXTENSION].keep(lambda: b"state")
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass

    async def main() -> None:
        config = uvicorn.Config(app, ws=library, ws_per_message_deflate=False, lifespan="off", log_config=None)
        config.load()
        kind = travelling(config.ws_protocol_class)
        settled: list[object] = []
        kind.settled = staticmethod(settled.append)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            theirs.settimeout(20)
            loop = asyncio.get_running_loop()
            make = lambda: kind(config=config, server_state=ServerState(), app_state={})  # noqa: E731
            transport, protocol = await loop.connect_accepted_socket(make, ours)
            protocol.data_received(REQUEST)
            while protocol.packed() is None:
                await asyncio.sleep(0.01)
            protocol.talk.outgoing.resume_reading()
            assert b" 101 " in theirs.recv(4096)
            settled.clear()
            protocol.data_received(frame(b"hello", opcode=9))
            assert protocol.packed() is None
            while not settled:
                await asyncio.sleep(0.01)
            assert protocol.packed() is not None
            assert theirs.recv(4096) == b"\x8a\x05hello"
            protocol.talk.outgoing.resume_reading()
            transport.abort()
            await asyncio.sleep(0.05)

    asyncio.run(main())
