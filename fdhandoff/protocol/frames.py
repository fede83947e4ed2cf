"""Frames: how messages lie in the byte stream, and how the descriptors find theirs.

A frame is a header of 12 bytes (magic ``FDHO``, type, flags, number of descriptors, length of the payload) and the
payload. Its descriptors travel with its first byte, so a receiver that reads the stream in any pieces has them at the
latest when it has the header; the decoder keeps them in a queue and gives each frame as many as its header says.
Too few when the header is complete: some were lost. Any left when no frame is begun: somebody sent too many.
"""

from __future__ import annotations

import struct

from ..errors import ProtocolError
from .messages import BY_TYPE, Items, Message, decode_payload, encode_payload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    Open = Callable[[bytes, list[int]], Any]

MAGIC = b"FDHO"
HEADER = struct.Struct("!4sBBHI")  # magic, type, flags (0), descriptors, length

# Room for 252 entries with long names and unix paths, or one connection's state; far below any socket's patience.
PAYLOAD_MAX = 1 << 20
FDS_MAX = 252


def encode(message: Message, n_fds: int = 0) -> bytes:
    """The frame's bytes. ``n_fds`` descriptors are to be sent with the first of them."""
    if n_fds > message.FDS:
        raise ValueError(f"{type(message).__name__} carries at most {message.FDS} descriptors, not {n_fds}")
    payload = encode_payload(message)
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload has at most {PAYLOAD_MAX} bytes, not {len(payload)}")
    return HEADER.pack(MAGIC, message.TYPE, 0, n_fds, len(payload)) + payload


class Decoder:
    """Turns chunks of bytes and descriptors into messages. Never performs I/O; it only holds descriptor *numbers*:
    whoever feeds it closes them when it fails (``pending_fds`` are those that no message has yet)."""

    def __init__(self, open_items: Open | None = None) -> None:
        """``open_items(payload, descriptors)`` may read an ITEMS message itself: what stands for its entries, which is sized
        and has the message's ``first``, or ``None`` where it can't."""
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._open_items = open_items

    @property
    def pending_fds(self) -> list[int]:
        return self._fds

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Adds what was read together. Take the messages out with ``messages()``."""
        self._buffer += data
        self._fds.extend(fds)

    def messages(self) -> Iterator[tuple[Message, list[int]]]:
        """The complete messages so far, each with its descriptors. ``ProtocolError`` at the first nonsense."""
        buffer = self._buffer
        while len(buffer) >= HEADER.size:
            magic, kind, flags, n_fds, length = HEADER.unpack_from(buffer)
            if magic != MAGIC:
                raise ProtocolError(f"the peer does not speak this protocol: a frame begins with {bytes(magic)!r}")
            cls = BY_TYPE.get(kind)
            if cls is None:
                raise ProtocolError(f"a message of the unknown type {kind}")
            if flags:
                raise ProtocolError(f"a message with the unknown flags {flags:#x}")
            if length > PAYLOAD_MAX:
                raise ProtocolError(f"a payload of {length} bytes; at most {PAYLOAD_MAX} are allowed")
            if n_fds > cls.FDS:
                raise ProtocolError(f"{n_fds} descriptors with {cls.__name__}; at most {cls.FDS} are allowed")
            if n_fds > len(self._fds):
                raise ProtocolError(
                    f"{n_fds} descriptors were sent with {cls.__name__}, {len(self._fds)} arrived: "
                    "the process is out of descriptors (see its open-files limit), or a security module withheld some"
                )
            if len(buffer) < HEADER.size + length:
                return
            message = self._decode(cls, bytes(buffer[HEADER.size : HEADER.size + length]), n_fds)
            if isinstance(message, Items) and len(message.entries) != n_fds:
                raise ProtocolError(f"{len(message.entries)} entries with {n_fds} descriptors")
            fds, self._fds[:n_fds] = self._fds[:n_fds], []
            del buffer[: HEADER.size + length]
            yield message, fds
        if not buffer and self._fds:
            raise ProtocolError(f"{len(self._fds)} descriptors came that belong to no message")

    def _decode(self, cls: type[Message], payload: bytes, n_fds: int) -> Message:
        if cls is Items and self._open_items is not None:
            entries = self._open_items(payload, self._fds[:n_fds])
            if entries is not None:
                return Items(first=entries.first, entries=entries)
        return decode_payload(cls, payload)
