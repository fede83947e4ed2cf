"""A tornado application by its adapter; answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys

from encrypted import context_of
from probation import SECONDS
from slow import wait_async
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from fdhandoff.servers import tornado


class Answer(RequestHandler):
    async def get(self, path: str) -> None:
        if path.startswith("slow/"):
            await wait_async(path[5:])
        number = self.settings["fdhandoff"].generation.number
        self.finish(f"app {number} {len(self.request.body)}".encode() + b" " * (500_000 if path == "big" else 0))

    post = get


class Chat(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(f"{self.settings['fdhandoff'].generation.number} {message!s}")


def main() -> None:
    port, path, *files = sys.argv[1:]
    app = Application([("/ws", Chat), ("/(.*)", Answer)], log_function=lambda handler: None)
    tornado.run(
        app,
        int(port),
        "127.0.0.1",
        handoff_path=path,
        handoff_probation=SECONDS,
        grace=20,
        ssl_options=context_of(files),
    )


if __name__ == "__main__":
    main()
