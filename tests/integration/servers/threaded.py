"""A threaded HTTP server by its adapter; answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

from encrypted import context_of
from probation import SECONDS
from slow import wait

from fdhandoff.servers.socketserver import serve


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = len(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        if self.path.startswith("/slow/"):
            wait(self.path[6:])
        body = f"app {self.server.service.generation.number} {size}".encode() + b" " * (
            500_000 if self.path == "/big" else 0
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Echo(BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(b"%d %b" % (self.server.service.generation.number, data))


def main() -> None:
    kind, port, path, *options = sys.argv[1:]
    grace = float(options.pop(0)) if options else 20.0
    kinds = {"http": (ThreadingHTTPServer, Handler), "single": (HTTPServer, Handler), "tcp": (ThreadingTCPServer, Echo)}
    server, handler = kinds[kind]
    serve(
        server, ("127.0.0.1", int(port)), handler, handoff_path=path, handoff_probation=SECONDS, grace=grace,
        ssl_context=context_of(options),
    )  # fmt: skip


if __name__ == "__main__":
    main()
