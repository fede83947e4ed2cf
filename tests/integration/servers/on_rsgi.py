"""An RSGI application, as an object."""

from __future__ import annotations

from typing import Any


class App:
    begun = False

    def __rsgi_init__(self, _: Any) -> None:
        self.begun = True

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        assert self.begun
        if scope.proto == "ws":
            transport = await protocol.accept()
            while (message := await transport.receive()).kind:  # 0 is the end
                await transport.send_str(f"1 {message.data}")
            protocol.close()
            return
        body = f"app 1 {len(await protocol())}"
        protocol.response_str(200, [("content-length", str(len(body)))], body)


app = App()
