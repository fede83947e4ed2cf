"""``http.server`` with a listener that it is given."""

import os
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NUMBER = os.environ["FDHANDOFF_GENERATION"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        if self.path.startswith("/slow/"):
            time.sleep(float(self.path[6:]))
        size = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if self.path == "/big" else 0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.serve_forever()
