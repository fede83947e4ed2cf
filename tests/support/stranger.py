"""A peer that says whatever a test wants: frames by hand, descriptors by hand, on either side of the path."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Hello, Message
from fdhandoff.system.fds import close_all

HELLO = Hello(min_version=1, max_version=1)
SECONDS = 15.0


class Stranger:
    """One end of a handoff channel, blocking, without any rules."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(SECONDS)
        self.decoder = frames.Decoder()
        self.fds: list[int] = []

    @classmethod
    def connected(cls, path: str) -> Stranger:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def raw(self, data: bytes, fds: list[int] | None = None) -> None:
        """Put into the channel as it is; a peer that hung up already is no news."""
        try:
            if fds:
                socket.send_fds(self.sock, [data], fds)
            else:
                self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def say(self, message: Message, fds: list[int] | None = None, n_fds: int | None = None) -> None:
        """``n_fds``: what the header says, if that shall differ."""
        told = len(fds or []) if n_fds is None else n_fds
        header = bytearray(frames.encode(message))
        header[6:8] = told.to_bytes(2, "big")
        self.raw(bytes(header), fds)

    def hear(self) -> Message | None:
        """The next message, its descriptors kept in ``fds``; ``None`` at the end."""
        while True:
            for message, own in self.decoder.messages():
                self.fds += own
                return message
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 65536, 253)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.decoder.feed(data, fds)

    def hear_until(self, kind: type[Message]) -> Message:
        while True:
            message = self.hear()
            if isinstance(message, kind):
                return message
            assert message is not None, f"the peer hung up before it said {kind.__name__}"

    def at_end(self) -> bool:
        """Waits until the peer has hung up."""
        while self.hear() is not None:
            pass
        return True

    def close(self) -> None:
        close_all([*self.fds, *self.decoder.pending_fds])
        self.fds = []
        self.decoder.pending_fds.clear()
        self.sock.close()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeOwner:
    """Listens at ``path`` and lets ``play(stranger)`` speak with the first who connects."""

    def __init__(self, path: str, play: Callable[[Stranger], object]) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.play = play
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            sock, _ = self.listener.accept()
            with Stranger(sock) as stranger:
                self.play(stranger)
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> FakeOwner:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.thread.join(SECONDS)
        os.unlink(self.path)
        assert not self.errors, self.errors
