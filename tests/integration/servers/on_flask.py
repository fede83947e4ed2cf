"""A Flask application; answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys
from pathlib import Path

from flask import Flask, request

sys.path.insert(0, str(Path(__file__).parent))
from slow import wait

app = Flask(__name__)


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
def answer(path: str) -> bytes:
    size = len(request.get_data())
    if path.startswith("slow/"):
        wait(path[5:])
    generation = request.environ["fdhandoff"].generation.number
    return f"app {generation} {size}".encode() + b" " * (500_000 if path == "big" else 0)
