"""A chat over websockets, whose sessions go on in the next generation: who somebody is, where, and how often they spoke.

    pip install 'uvicorn[standard]'
    python examples/chat.py 8000                     # and the same line again, in another shell: the sessions move
    fdhandoff-cli run --bind tcp:127.0.0.1:8000 -- python examples/chat.py

Clients send lines: ``/nick NAME``, ``/join ROOM``, anything else is said to the room. Each line of the server's begins with
the generation that sent it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fdhandoff.adapting import split
from fdhandoff.servers.uvicorn import run
from fdhandoff.websocket import EXTENSION

members: set[Member] = set()


class Member:
    """A session: all that must survive an upgrade is ``facts``."""

    def __init__(self, send: Any, generation: int, state: bytes | None) -> None:
        self._send = send
        self._generation = generation
        self.facts: dict[str, Any] = json.loads(state) if state else {"nick": "somebody", "room": "hall", "said": 0}

    def save(self) -> bytes:
        return json.dumps(self.facts).encode()

    async def tell(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": f"{self._generation} {text}"})

    async def hear(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "/nick":
            self.facts["nick"] = rest
            await self.tell(f"you are {rest}")
        elif word == "/join":
            self.facts["room"] = rest
            await self.tell(f"you are in {rest}")
        else:
            self.facts["said"] += 1
            nick, room, said = self.facts["nick"], self.facts["room"], self.facts["said"]
            for member in [one for one in members if one.facts["room"] == room]:
                try:
                    await member.tell(f"{nick}@{room} #{said}: {line}")
                except OSError:
                    members.discard(member)  # hung up, or moved on, a moment ago


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    generation = scope["state"]["fdhandoff"].generation.number
    if scope["type"] == "http":
        await receive()
        body = f"chat {generation}\n".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    session = scope["extensions"][EXTENSION]
    member = Member(send, generation, session.state)
    await receive()  # websocket.connect, also of one that has moved here
    session.keep(member.save)
    await send({"type": "websocket.accept"})
    members.add(member)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            await member.hear(text if text is not None else message["bytes"].decode(errors="replace"))
    finally:
        members.discard(member)  # session.moved says whether it goes on elsewhere


if __name__ == "__main__":
    handoff, words = split(sys.argv[1:])  # --handoff-path and its like
    port, library = words + ["8000", "auto"][len(words) :]
    # What a compressing websocket remembers of past messages can't move: without compression all of them do.
    options = {"port": int(port), "ws": library, "ws_per_message_deflate": False, "timeout_keep_alive": 300}
    run(app, **options, **{"handoff_name": "chat", **handoff})
