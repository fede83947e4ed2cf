"""``python -m http.server``, upgraded without a failed request: ``python -m fdhandoff.servers.http_server [port]``, with the
same options.
"""

from __future__ import annotations

import argparse
import os
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..adapting import HELP, split
from ..errors import HandoffError
from .socketserver import serve


def main() -> None:
    """Serves the files below a directory until it is told to stop, or a newer process takes over."""
    parser = argparse.ArgumentParser(
        prog="python -m fdhandoff.servers.http_server",
        epilog=f"the handoff's own:\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-b", "--bind", metavar="ADDRESS", default="", help="all interfaces")
    parser.add_argument("-d", "--directory", default=os.getcwd(), help="the current directory")
    parser.add_argument("-p", "--protocol", default="HTTP/1.0", help="HTTP/1.0; with HTTP/1.1 connections are kept")
    parser.add_argument("port", default=8000, type=int, nargs="?", help="8000")
    try:
        ours, words = split(sys.argv[1:])
        options = parser.parse_args(words)
        name = f"http_server-{options.port}"

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = options.protocol

            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=options.directory)

        serve(ThreadingHTTPServer, (options.bind, options.port), Handler, **{"handoff_name": name, **ours})
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
