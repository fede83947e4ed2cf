"""A WSGI application whose answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from slow import wait


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    generation = environ["fdhandoff"].generation.number
    size = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    path = environ["PATH_INFO"]
    if path.startswith("/slow/"):
        wait(path[6:])
    body = f"app {generation} {size}".encode() + b" " * (500_000 if path == "/big" else 0)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
