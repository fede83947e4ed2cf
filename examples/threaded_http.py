"""``http.server`` with threads, replaced while it runs, without a failed request.

    python examples/threaded_http.py --path /tmp/hello/handoff.sock         # in one terminal
    curl -i http://127.0.0.1:8000/                                          # in another
    python examples/threaded_http.py --path /tmp/hello/handoff.sock         # in a third: it takes the service over

The server class is the standard library's; only its accept loop is replaced, by one that counts what it lets in.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from fdhandoff import Service


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    service: Service
    release = "1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/slow":  # /slow?seconds=3 is a request that straddles an upgrade
            time.sleep(float(parse_qs(url.query).get("seconds", ["1"])[0]))
        answer = {"release": self.release, "generation": self.service.generation.number, "pid": os.getpid()}
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        # While this process drains, each answer announces that its connection ends, so that the client's next request
        # comes to the next generation. An idle connection is never closed: a request may be on its way already.
        if self.service.draining:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:8000", help="address, as in HOST:PORT")
    parser.add_argument("--path", default="", help="the handoff path, where generations meet")
    parser.add_argument("--release", default="1", help="what the answers say")
    parser.add_argument("--probation", type=float, default=5.0, help="seconds in which a dead successor is replaced")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that a drain may last")
    parser.add_argument("--broken", action="store_true", help="be a bad release: fail the check before ready()")
    options = parser.parse_args()

    with Service("hello", path=options.path, probation=options.probation, grace=options.grace) as service:
        server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
        server.socket.close()  # it never listens: the service has the listener
        server.socket = service.listen("http", options.listen)
        server.server_name, server.server_port = server.socket.getsockname()[:2]
        Handler.service, Handler.release = service, options.release

        if options.broken:
            raise SystemExit("this release fails its own check")
        service.ready()  # from here on this process is the owner

        # In place of server.serve_forever(). Each connection gets its thread as ever; when the server closes it, it
        # leaves the gate, and when all have left the drain is over.
        service.serve(lambda connection, _: server.process_request(connection, connection.getpeername()))
        service.drain()


if __name__ == "__main__":
    main()
