"""The WSGI application under wsgiref with its adapter, a thread for each request."""

from __future__ import annotations

import sys
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from fdhandoff.servers.wsgiref import make_server

sys.path.insert(0, str(Path(__file__).parent))
from wsgi import app


class Threading(ThreadingMixIn, WSGIServer):
    pass


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    port, path = sys.argv[1:]
    options = {"handoff_path": path, "handoff_probation": 0.5, "grace": 20}
    with make_server("127.0.0.1", int(port), app, Threading, Quiet, **options) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
