"""Clients that speak HTTP/2, by prior knowledge or by ALPN: several requests at a time, and another connection after GOAWAY."""

from __future__ import annotations

import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

from ...conftest import needs
from ..cli import DEADLINE
from . import Crowd

if TYPE_CHECKING:
    from pathlib import Path

STREAMS = 4


class Http2(Crowd):
    """``count`` clients; ``answers`` by generation, ``failures`` by kind, ``reconnects`` after GOAWAY."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None, count: int = 3) -> None:
        super().__init__(count)
        self.reconnects = 0
        self._address = address
        self._context = context

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with self._connect() as sock:
                    self._use(sock)
            except OSError as error:
                with self._lock:
                    self.failures[f"{type(error).__name__}: {error}"] += 1

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=DEADLINE)
        if self._context is None:
            return sock
        wrapped = self._context.wrap_socket(sock, server_hostname="127.0.0.1")
        assert wrapped.selected_alpn_protocol() == "h2"
        return wrapped

    def _use(self, sock: socket.socket) -> None:
        from h2.connection import H2Connection

        connection = H2Connection()
        connection.initiate_connection()
        while not self._over.is_set():
            asked = [self._ask(connection) for _ in range(STREAMS)]
            sock.sendall(connection.data_to_send())
            if self._hear(sock, connection, asked):
                with self._lock:
                    self.reconnects += 1
                return

    @staticmethod
    def _ask(connection: Any) -> int:
        stream = int(connection.get_next_available_stream_id())
        fields = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "test"}
        connection.send_headers(stream, list(fields.items()), end_stream=True)
        return stream

    def _hear(self, sock: socket.socket, connection: Any, asked: list[int]) -> bool:
        """Every answer; whether the connection is to be left."""
        from h2 import events

        bodies = dict.fromkeys(asked, b"")
        open_streams, last, goaway = set(asked), 2**31 - 1, False
        while open_streams:
            frame = _take(sock, 9)
            frame += _take(sock, int.from_bytes(frame[:3], "big"))
            for event in connection.receive_data(frame):
                if isinstance(event, events.DataReceived):
                    bodies[event.stream_id] += event.data
                elif isinstance(event, events.StreamEnded):
                    open_streams.discard(event.stream_id)
                elif isinstance(event, events.StreamReset):
                    raise ConnectionError(f"a request was reset ({event.error_code})")
                elif isinstance(event, events.ConnectionTerminated):
                    goaway, last = True, min(last, event.last_stream_id)
            if goaway:  # the library takes the connection for closed; what is under way is answered all the same
                connection.state_machine.state = type(connection.state_machine.state).CLIENT_OPEN
            sock.sendall(connection.data_to_send())
            if any(stream > last for stream in open_streams):
                raise ConnectionError(f"GOAWAY refused a request that was under way: {last}, {sorted(open_streams)}")
        with self._lock:
            for body in bodies.values():
                self.answers[int(body.split()[1])] += 1
        return goaway


def _take(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("closed with requests unanswered")
        data += part
    return data


def certificate(folder: Path) -> tuple[list[str], ssl.SSLContext]:
    """A server's options, as uvicorn and hypercorn have them, and its clients' context."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [needs("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    return [str(certificate), str(key)], ssl.create_default_context(cafile=str(certificate))
