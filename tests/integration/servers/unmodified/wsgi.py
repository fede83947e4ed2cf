"""A WSGI application: ``/slow/SECONDS``, ``/big``, anything else at once."""

import os
import time

NUMBER = os.environ["FDHANDOFF_GENERATION"]


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/slow/"):
        time.sleep(float(path[6:]))
    size = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    body = f"app {NUMBER} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
