"""Git repositories that are somewhere else: on loopback, served by git's own programs."""

from __future__ import annotations

import contextlib
import os
import socketserver
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = 30


class GitDaemon:
    """``git daemon``, one for each connection. All that is below ``root`` is served, and nothing taken."""

    def __init__(self, root: Path) -> None:
        words = ["git", "daemon", "--inetd", "--export-all", f"--base-path={root}", str(root)]

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(None)
                fd = self.request.fileno()
                subprocess.run(words, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL, timeout=_SECONDS, check=False)

        self._serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler), "git")

    def _serve(self, server: socketserver.TCPServer, scheme: str) -> None:
        self._server = server
        self.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GitOverHttp(GitDaemon):
    """``git http-backend`` behind the smallest of web servers."""

    def __init__(self, root: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                path, _, query = self.path.partition("?")
                facts = {
                    "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command,
                    "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_LENGTH": str(length),
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                }  # fmt: skip
                done = subprocess.run(
                    ["git", "http-backend"], input=self.rfile.read(length), capture_output=True, timeout=_SECONDS,
                    env={**os.environ, **facts}, check=False,
                )  # fmt: skip
                head, _, body = done.stdout.partition(b"\r\n\r\n")
                lines = [line.partition(": ") for line in head.decode().split("\r\n")]
                status = next((value for name, _, value in lines if name == "Status"), "200")
                with contextlib.suppress(ConnectionError):
                    self.send_response(int(status.split()[0]))
                    for name, _, value in lines:
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            do_POST = do_GET

        self._serve(ThreadingHTTPServer(("127.0.0.1", 0), Handler), "http")


SERVERS = {"git": GitDaemon, "http": GitOverHttp}
