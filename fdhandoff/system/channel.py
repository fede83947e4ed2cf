"""A connected AF_UNIX stream socket that carries bytes and descriptors, and never blocks past a deadline."""

from __future__ import annotations

import errno
import select

from ..deadline import FOREVER, remaining
from ..errors import DeadlineExceeded, PeerGone, ProtocolError, SystemCallError
from .native import FDH_AGAIN, FDH_EOF, FDH_FDS_MAX, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_BUFFER = 256 * 1024
# Room for one message's descriptors and no more: then the first is acknowledged while the next is under way, instead of
# the sender waiting until all that its window allows was read.
_FDS = 253
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})

_allocate = ffi.new_allocator(should_clear_after_alloc=False)


class Woken(Exception):
    """The wake descriptor became readable while waiting."""


def descriptors_in_flight() -> int:
    """How many descriptors this process may well have sent that nobody has received yet. The kernel refuses (ETOOMANYREFS)
    when all of a user's together exceed the sender's open-files limit, so a quarter of it is ours; beyond two thousand
    nothing is gained."""
    most = 8 * FDH_FDS_MAX
    return max(2 * FDH_FDS_MAX, min(open_files_limit() // 4, most))


def open_files_limit() -> int:
    """How many files this process may have open."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 31 if limit == resource.RLIM_INFINITY else limit


class Channel:
    """Owns the socket. One thread uses it at a time."""

    __slots__ = ("_buffer", "_counts", "_fd", "_fds", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._fd = sock.fileno()
        self._buffer = _allocate("char[]", _BUFFER)
        self._fds = _allocate("int[]", _FDS)
        self._counts = ffi.new("size_t[2]")

    def fileno(self) -> int:
        return self._fd

    @property
    def socket(self) -> socket.socket:
        return self._socket

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        self._socket.close()
        self._fd = -1
        self._buffer = self._fds = None  # also where something remembers this channel for longer

    def send(
        self, frames: Sequence[tuple[bytes, int]], fds: Sequence[int] = (), deadline: int = FOREVER, wake_fd: int = -1
    ) -> None:
        """Sends frames, each ``(bytes, number of descriptors that travel with its first byte)``; ``fds`` are all of them in
        order, and stay the caller's. ``PeerGone``, ``DeadlineExceeded``, ``Woken`` (then the stream is cut somewhere)."""
        marks = []
        offset = 0
        for data, n_fds in frames:
            if n_fds:
                marks.append((offset, n_fds))
            offset += len(data)
        data = frames[0][0] if len(frames) == 1 else b"".join([data for data, _ in frames])
        # What owns the memory stays in `owned` while the pointers move on.
        descriptors = ffi.new("int[]", fds) if isinstance(fds, (list, tuple)) else ffi.from_buffer("int[]", fds)
        owned = (ffi.from_buffer(data), descriptors, ffi.new("struct fdh_mark[]", marks))
        c_data, c_fds, c_marks = owned
        n_bytes, n_fds, n_marks = len(data), len(fds), len(marks)
        counts = self._counts
        while True:
            rc = lib.fdh_channel_send(self._fd, c_data, n_bytes, c_fds, n_fds, c_marks, n_marks, 0, counts, counts + 1)
            if rc == 0:
                return
            if rc != FDH_AGAIN:
                raise self._failure("sendmsg", rc)
            sent, sent_fds = counts[0], counts[1]
            while n_marks and c_marks[0].offset < sent:
                c_marks, n_marks = c_marks + 1, n_marks - 1
            for index in range(n_marks):
                c_marks[index].offset -= sent
            c_data, n_bytes = c_data + sent, n_bytes - sent
            c_fds, n_fds = c_fds + sent_fds, n_fds - sent_fds
            wait((), (self._fd,), deadline, wake_fd, "the peer does not read")

    def receive(self) -> tuple[bytes, list[int]] | None:
        """What is there, without waiting: bytes and descriptors (now the caller's); ``None`` where nothing is; no bytes at
        the end of the stream. ``ProtocolError`` when descriptors were lost, ``PeerGone`` when the stream broke."""
        counts = self._counts
        rc = lib.fdh_channel_receive(self._fd, self._buffer, _BUFFER, self._fds, _FDS, 0, counts, counts + 1)
        if rc == 0:
            n_fds = counts[1]
            return ffi.buffer(self._buffer, counts[0])[:], ffi.unpack(self._fds, n_fds) if n_fds else []
        if rc == FDH_AGAIN:
            return None
        if rc == FDH_EOF:
            return b"", []
        raise self._failure("recvmsg", rc)

    def _failure(self, call: str, rc: int) -> Exception:
        error = SystemCallError(call, -rc, doing="on the handoff channel")
        if -rc in _GONE:
            return PeerGone(f"the peer hung up ({error.strerror})")
        if -rc == errno.EBADMSG:
            return ProtocolError(
                "descriptors were lost on the way: this process is out of descriptors (see its open-files limit), "
                "a security module withheld some, or the peer sent control data that the protocol does not know"
            )
        return error


def wait(
    readable: Sequence[int], writable: Sequence[int], deadline: int, wake_fd: int = -1, what: str = "the wait"
) -> set[int]:
    """Waits until one of the descriptors is ready and returns those that are; ``Woken`` when ``wake_fd`` is,
    ``DeadlineExceeded`` at the deadline."""
    poller = select.poll()
    for fd in readable:
        poller.register(fd, select.POLLIN)
    for fd in writable:
        poller.register(fd, select.POLLOUT)
    if wake_fd >= 0:
        poller.register(wake_fd, select.POLLIN)
    while True:
        left = remaining(deadline)
        events = poller.poll(None if left is None else min(left * 1000 + 1, 1e8))
        ready = {fd for fd, _ in events}
        if wake_fd in ready:
            raise Woken
        if ready:
            return ready
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"{what}: the deadline passed")
