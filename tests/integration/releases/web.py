"""A web server for releases, as good or as bad as a test wants it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Web:
    """``files`` by path. ``validators``: "both", "modified" or "none". ``cuts``: how many more bodies break off in the
    middle; ``errors``: how many more answers are 503, and ask for ``patience``; ``ranges``: whether it knows them;
    ``statuses``: what is answered whatever was asked. ``asked``: the requests, as (path, headers, status). ``certificate``:
    for TLS, with its key beside it."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.validators = "both"
        self.cuts = 0
        self.errors = 0
        self.patience = "0"
        self.longer = 0
        self.ranges = True
        self.statuses: dict[str, int] = {}
        self.before_range: Callable[[], object] = lambda: None
        self.asked: list[tuple[str, dict[str, str], int]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that was killed
                    super().handle()

            def do_GET(self) -> None:
                try:
                    web.answer(self)
                except OSError:
                    self.close_connection = True  # it had seen enough

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' * (certificate is not None)}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, name: str, data: bytes) -> None:
        """With its checksum, which is there first."""
        self.files[f"/{name}.sha256"] = f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode()
        self.files[f"/{name}"] = data

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        status, headers, body, cut = self._decide(request)
        self.asked.append((request.path, dict(request.headers), status))
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if status != 304:
            request.send_header("Content-Length", str(len(body) + self.longer))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if cut else body)
        request.close_connection = cut or bool(self.longer)

    def _decide(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes, bool]:
        if request.path in self.redirects:
            return 302, {"Location": self.redirects[request.path]}, b"", False
        if self.errors:
            self.errors -= 1
            return 503, {"Retry-After": self.patience}, b"", False
        if "Range" in request.headers:
            self.before_range()
        data = self.files.get(request.path)
        if data is None:
            return 404, {}, b"", False
        digest = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {
            "both": {"ETag": digest, "Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"},
            "modified": {
                "Last-Modified": f"Thu, 26 Nov 2026 00:{int(digest[1:4], 16) % 60:02}:{int(digest[4:7], 16) % 60:02} GMT"
            },
            "none": {},
        }[self.validators]
        asked = request.headers
        if "ETag" in headers and asked.get("If-None-Match") == digest:
            return 304, headers, b"", False
        if "ETag" not in headers and headers and asked.get("If-Modified-Since") == headers["Last-Modified"]:
            return 304, headers, b"", False
        cut = self.cuts > 0 and not request.path.endswith((".sha256", ".minisig"))
        self.cuts -= cut
        if request.path in self.statuses:
            return self.statuses[request.path], headers, b"", False
        if self.ranges and asked.get("Range") and asked.get("If-Range") == digest:
            start = int(asked["Range"].removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return 206, headers, data[start:], cut
        return 200, headers, data, cut


class Proxy:
    """A web proxy: what it was asked for, and by whom, is in ``asked``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                proxy.note(self)
                parts = urlsplit(self.path)
                there = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
                with contextlib.closing(there), contextlib.suppress(ConnectionError):  # who asked may have seen enough
                    there.request("GET", parts.path, headers=dict(self.headers))
                    answer = there.getresponse()
                    body = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def do_CONNECT(self) -> None:
                proxy.note(self)
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host, int(port)), 30) as there:
                    self.send_response(200)
                    self.end_headers()
                    back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
                    back.start()
                    _pump(self.connection, there)
                    back.join()
                self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def note(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append((request.command, request.path, request.headers.get("Proxy-Authorization", "")))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _pump(here: socket.socket, there: socket.socket) -> None:
    """All that comes, until no more does."""
    with contextlib.suppress(OSError):
        while data := here.recv(65536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)
