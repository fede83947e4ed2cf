"""tornado with a listener that it is given."""

import asyncio
import os
import socket

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

NUMBER = os.environ["FDHANDOFF_GENERATION"]


class Answer(RequestHandler):
    async def get(self, path):
        if path.startswith("slow/"):
            await asyncio.sleep(float(path[5:]))
        self.finish(f"app {NUMBER} {len(self.request.body)}".encode() + b" " * (500_000 if path == "big" else 0))

    post = get


async def main():
    server = HTTPServer(Application([("/(.*)", Answer)], log_function=lambda handler: None))
    listener = socket.socket(fileno=3)
    listener.setblocking(False)
    server.add_socket(listener)
    await asyncio.Event().wait()


asyncio.run(main())
