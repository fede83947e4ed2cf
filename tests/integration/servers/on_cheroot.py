"""The WSGI application under cheroot with its adapter."""

from __future__ import annotations

import sys
from pathlib import Path

from cheroot.ssl.builtin import BuiltinSSLAdapter

from fdhandoff.servers.cheroot import Server

sys.path.insert(0, str(Path(__file__).parent))
from probation import SECONDS
from wsgi import app


def main() -> None:
    port, path, *files = sys.argv[1:]
    server = Server(
        ("127.0.0.1", int(port)), app, timeout=60, request_queue_size=100,
        handoff_path=path, handoff_probation=SECONDS, grace=20,
    )  # fmt: skip
    server.keep_alive_conn_limit = 1000
    if files:
        server.ssl_adapter = BuiltinSSLAdapter(*files)
    server.start()


if __name__ == "__main__":
    main()
