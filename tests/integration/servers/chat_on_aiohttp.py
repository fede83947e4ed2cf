"""The example's chat with aiohttp: who somebody is, where, and how often they spoke moves with an upgrade."""

from __future__ import annotations

import json
import sys
from typing import Any

from aiohttp import web

from fdhandoff.adapting import split
from fdhandoff.servers.aiohttp import SERVICE, WebSocketResponse, run_app

members: dict[WebSocketResponse, dict[str, Any]] = {}


async def chat(request: web.Request) -> web.StreamResponse:
    number = request.app[SERVICE].generation.number
    socket = WebSocketResponse()
    await socket.prepare(request)
    kept = socket.session.state
    facts: dict[str, Any] = json.loads(kept) if kept else {"nick": "somebody", "room": "hall", "said": 0}
    socket.session.keep(lambda: json.dumps(facts).encode())
    members[socket] = facts
    async for message in socket:
        word, _, rest = message.data.partition(" ")
        if word in ("/nick", "/join"):
            facts["nick" if word == "/nick" else "room"] = rest
            await socket.send_str(f"{number} you are {'in ' if word == '/join' else ''}{rest}")
            continue
        facts["said"] += 1
        line = f"{number} {facts['nick']}@{facts['room']} #{facts['said']}: {message.data}"
        for other in [one for one, known in members.items() if known["room"] == facts["room"]]:
            try:
                await other.send_str(line)
            except OSError:
                members.pop(other, None)
    members.pop(socket, None)
    return socket


async def forgetful(request: web.Request) -> web.StreamResponse:
    """Keeps nothing."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"{request.app[SERVICE].generation.number} {message.data}")
    return socket


async def late(request: web.Request) -> web.StreamResponse:
    """Can't say its state once it has been spoken to."""
    heard: list[str] = []

    def save() -> bytes | None:
        if heard:
            raise ValueError("it is too late")
        return None

    socket = WebSocketResponse()
    await socket.prepare(request)
    socket.session.keep(save)
    async for message in socket:
        heard.append(message.data)
        await socket.send_str(f"{request.app[SERVICE].generation.number} {message.data}")
    return socket


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=f"chat {request.app[SERVICE].generation.number}")


def main() -> None:
    handoff, words = split(sys.argv[1:])
    app = web.Application()
    app.add_routes([web.get("/", answer), web.get("/chat", chat), web.get("/plain", forgetful), web.get("/late", late)])
    run_app(app, host="127.0.0.1", port=int(words[0]), access_log=None, handoff_name="chat", **handoff)


if __name__ == "__main__":
    main()
