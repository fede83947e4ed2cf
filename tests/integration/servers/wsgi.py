"""A WSGI application whose answers name the generation: ``/slow/SECONDS``, ``/big``, anything else at once."""

from __future__ import annotations

import time
from typing import Any


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    generation = environ["fdhandoff"].generation.number
    size = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    path = environ["PATH_INFO"]
    if path.startswith("/slow/"):
        time.sleep(float(path[6:]))
    body = f"app {generation} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
