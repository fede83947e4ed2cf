"""An RSGI application, as an object."""

from __future__ import annotations

from typing import Any


class App:
    begun = False

    def __rsgi_init__(self, _: Any) -> None:
        self.begun = True

    async def __rsgi__(self, _: Any, protocol: Any) -> None:
        assert self.begun
        body = f"app 1 {len(await protocol())}"
        protocol.response_str(200, [("content-length", str(len(body)))], body)


app = App()
