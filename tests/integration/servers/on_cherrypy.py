"""A CherryPy application by its adapter; answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys

import cherrypy
from cheroot.server import HTTPServer
from probation import SECONDS
from slow import wait

from fdhandoff.servers import cherrypy as adapter


class Root:
    @cherrypy.expose
    def default(self, *path: str) -> bytes:
        size = len(cherrypy.request.rfile.read(int(cherrypy.request.headers.get("Content-Length", "0"))))
        if path[:1] == ("slow",):
            wait(path[1])
        generation = cherrypy.request.wsgi_environ["fdhandoff"].generation.number
        return f"app {generation} {size}".encode() + b" " * (500_000 if path == ("big",) else 0)


def main() -> None:
    port, path = sys.argv[1:]
    HTTPServer.keep_alive_conn_limit = 1000  # cheroot's own, of 10, ends connections by itself
    options = {
        "server.socket_host": "127.0.0.1", "server.socket_port": int(port), "server.thread_pool": 24,
        "server.socket_queue_size": 100, "log.screen": False,
    }  # fmt: skip
    adapter.quickstart(
        Root(),
        config={"global": options, "/": {"request.process_request_body": False}},
        handoff_path=path,
        handoff_probation=SECONDS,
        grace=20,
    )


if __name__ == "__main__":
    main()
