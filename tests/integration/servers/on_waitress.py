"""The WSGI application under waitress with its adapter."""

from __future__ import annotations

import sys
from pathlib import Path

from fdhandoff.servers.waitress import serve

sys.path.insert(0, str(Path(__file__).parent))
from probation import SECONDS
from wsgi import app


def main() -> None:
    port, path = sys.argv[1:]
    serve(
        app, host="127.0.0.1", port=int(port), threads=8, connection_limit=1000,
        handoff_path=path, handoff_probation=SECONDS, grace=20,
    )  # fmt: skip


if __name__ == "__main__":
    main()
