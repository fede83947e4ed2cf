"""The messages, each as a class whose ``FIELDS`` say what goes on the wire.

A payload is a row of fields: tag (2 bytes), length (4 bytes), value. Unknown tags are skipped, so fields can be appended
in later versions; a tag is never reused. Numbers are 8 bytes, big-endian; texts are UTF-8; truth is the number 0 or 1.
The normative description, with byte tables, is ``docs/reference/protocol.md``.
"""

from __future__ import annotations

import struct

from ..errors import ProtocolError
from ..listener import Entry, check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sized
    from typing import Any, ClassVar

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        return lambda thing: thing


VERSION_MIN = 1
VERSION_MAX = 1

NUMBER = "number"
TEXT = "text"
BYTES = "bytes"
ENTRIES = "entries"

_TAG = struct.Struct("!HI")
_NUMBER_FIELD = struct.Struct("!HIQ")
_NUMBER = struct.Struct("!Q")

Field = tuple[int, str, str, object]  # tag, attribute, type, default (None: required)


@dataclass_transform(kw_only_default=True)
class Message:
    """Base: keyword arguments become attributes, what is missing gets the field's default."""

    TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    FDS: ClassVar[int] = 0  # how many descriptors may come with it at most

    def __init__(self, **values: Any) -> None:
        for _, name, kind, default in self.FIELDS:
            if name in values:
                setattr(self, name, values.pop(name))
            elif default is None:
                raise TypeError(f"{type(self).__name__} needs {name}")
            else:
                setattr(self, name, [] if kind == ENTRIES else default)
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class Hello(Message):
    """New → old: I would take the service. With one descriptor: a pidfd of the sender, where the system has them."""

    TYPE = 1
    FDS = 1
    FIELDS = (
        (1, "min_version", NUMBER, None),
        (2, "max_version", NUMBER, None),
        (3, "pid", NUMBER, 0),
        (4, "software", TEXT, ""),
        (5, "generation", NUMBER, 0),
    )
    min_version: int
    max_version: int
    pid: int = 0
    software: str = ""
    generation: int = 0


class Offer(Message):
    """Old → new: this is what you would get. With one descriptor: a pidfd of the sender, where the system has them."""

    TYPE = 2
    FDS = 1
    FIELDS = (
        (1, "version", NUMBER, None),
        (2, "generation", NUMBER, None),
        (3, "items", NUMBER, None),
        (4, "state_size", NUMBER, None),
        (5, "pid", NUMBER, 0),
        (6, "software", TEXT, ""),
        (7, "ready_ms", NUMBER, 0),
        (8, "probation_ms", NUMBER, 0),
        (9, "strict", NUMBER, 0),
    )
    version: int
    generation: int
    items: int
    state_size: int
    pid: int = 0
    software: str = ""
    ready_ms: int = 0
    probation_ms: int = 0
    strict: int = 0


class Packed:
    """Entries that are bytes already, in the place of ``Items.entries``."""

    __slots__ = ("count", "data")

    def __init__(self, data: bytes, count: int) -> None:
        self.data = data
        self.count = count

    def __len__(self) -> int:
        return self.count


class Items(Message):
    """Old → new: some of the descriptors, an entry for each, in the same order."""

    TYPE = 3
    FDS = 252
    FIELDS = ((1, "first", NUMBER, None), (2, "entries", ENTRIES, ()))
    first: int
    entries: Sized = []  # a declaration for the type checker; a list of ``Entry``, or what stands for one


class Ack(Message):
    """New → old: so many items have come and hold what their entries say, since the beginning of the conversation."""

    TYPE = 4
    FIELDS = ((1, "items", NUMBER, None),)
    items: int


class State(Message):
    """Old → new: the next piece of the state."""

    TYPE = 5
    FIELDS = ((1, "data", BYTES, None),)
    data: bytes


class Taken(Message):
    """New → old: everything came and was verified."""

    TYPE = 6
    FIELDS = ((1, "items", NUMBER, None),)
    items: int


class Ready(Message):
    """New → old: I can serve; let me."""

    TYPE = 7


class Commit(Message):
    """Old → new: you are the owner. ``final`` says that the state pieces since *ready* replace the offered state."""

    TYPE = 8
    FIELDS = ((1, "final", NUMBER, 0), (2, "state_size", NUMBER, 0))
    final: int = 0
    state_size: int = 0


class Serving(Message):
    """New → old: I accept."""

    TYPE = 9


class Progress(Message):
    """Old → new: so many are still inside, the oldest for so long; I end at the latest in ``deadline_ms`` (0: never)."""

    TYPE = 10
    FIELDS = ((1, "active", NUMBER, None), (2, "oldest_ms", NUMBER, 0), (3, "deadline_ms", NUMBER, 0))
    active: int
    oldest_ms: int = 0
    deadline_ms: int = 0


class Drained(Message):
    """Old → new: I am done; so many finished since the commit, so many were cut."""

    TYPE = 11
    FIELDS = ((1, "finished", NUMBER, 0), (2, "forced", NUMBER, 0))
    finished: int = 0
    forced: int = 0


class Abort(Message):
    """Either → other: I give it up. Whoever says it does not own the service afterwards, unless it did before."""

    TYPE = 12
    FIELDS = ((1, "code", TEXT, "aborted"), (2, "reason", TEXT, ""))
    code: str = "aborted"
    reason: str = ""


class Refused(Message):
    """Owner → whoever asked: no, for this reason; nothing has begun."""

    TYPE = 13
    FIELDS = (
        (1, "code", TEXT, None),
        (2, "reason", TEXT, ""),
        (3, "pid", NUMBER, 0),
        (4, "min_version", NUMBER, 0),
        (5, "max_version", NUMBER, 0),
    )
    code: str
    reason: str = ""
    pid: int = 0
    min_version: int = 0
    max_version: int = 0


class Request(Message):
    """Anyone allowed → owner: an operator's verb. ``body`` is a JSON object."""

    TYPE = 14
    FIELDS = (
        (1, "min_version", NUMBER, None),
        (2, "max_version", NUMBER, None),
        (3, "verb", TEXT, None),
        (4, "body", BYTES, b"{}"),
    )
    min_version: int
    max_version: int
    verb: str
    body: bytes = b"{}"


class Event(Message):
    """Owner → asker: something happened on the way to the answer. ``body`` is a JSON object."""

    TYPE = 15
    FIELDS = ((1, "body", BYTES, None),)
    body: bytes


class Response(Message):
    """Owner → asker: the answer, and the last message. ``code`` is ``ok`` or the error's word; ``body`` a JSON object."""

    TYPE = 16
    FIELDS = ((1, "code", TEXT, None), (2, "body", BYTES, b"{}"))
    code: str
    body: bytes = b"{}"


ALL: tuple[type[Message], ...] = (
    Hello, Offer, Items, Ack, State, Taken, Ready, Commit, Serving, Progress, Drained, Abort, Refused, Request, Event,
    Response,
)  # fmt: skip
BY_TYPE: dict[int, type[Message]] = {cls.TYPE: cls for cls in ALL}

# --- entries ------------------------------------------------------------------------------------------------

_ENTRY_NAME, _ENTRY_KIND, _ENTRY_SOCKET, _ENTRY_ADDRESS, _ENTRY_FILE, _ENTRY_STATE = 1, 2, 3, 4, 5, 6
_SOCKET = struct.Struct("!HHIIQ")  # family, type, protocol, flags, cookie
_FILE = struct.Struct("!IQQ")  # mode, device, inode
_FLAG_LISTENING, _FLAG_CONNECTED, _FLAG_V6ONLY = 1, 2, 4
_ENTRY_HEAD = struct.Struct("!HIQ")
_SOCKET_FIELD = struct.Struct("!HIHHIIQ")
_FILE_FIELD = struct.Struct("!HIIQQ")


def _field(tag: int, value: bytes) -> bytes:
    return _TAG.pack(tag, len(value)) + value


def encode_entry(entry: Entry) -> bytes:
    parts = [_field(_ENTRY_NAME, entry.name.encode()), _ENTRY_HEAD.pack(_ENTRY_KIND, 8, entry.kind)]
    if entry.mode:
        parts.append(_FILE_FIELD.pack(_ENTRY_FILE, _FILE.size, entry.mode, entry.device, entry.inode))
    else:
        flags = (
            (_FLAG_LISTENING if entry.listening else 0)
            | (_FLAG_CONNECTED if entry.connected else 0)
            | (_FLAG_V6ONLY if entry.v6only else 0)
        )
        parts.append(
            _SOCKET_FIELD.pack(
                _ENTRY_SOCKET, _SOCKET.size, entry.family, entry.type, entry.protocol, flags, entry.cookie
            )
        )
        parts.append(_field(_ENTRY_ADDRESS, entry.address.encode("utf-8", "surrogateescape")))
    if entry.state:
        parts.append(_field(_ENTRY_STATE, entry.state))
    return b"".join(parts)


def decode_entry(data: bytes) -> Entry:
    fields = _fields(data, "an entry")
    try:
        name = check_name(_text(fields[_ENTRY_NAME], "an entry's name"))
        entry = Entry(name, _number(fields[_ENTRY_KIND], "an entry's kind"))
    except KeyError as missing:
        raise ProtocolError(f"an entry lacks its field {missing}") from None
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    if _ENTRY_SOCKET in fields:
        if len(fields[_ENTRY_SOCKET]) < _SOCKET.size:
            raise ProtocolError(f"the entry of {name!r} has a socket field of {len(fields[_ENTRY_SOCKET])} bytes")
        entry.family, entry.type, entry.protocol, flags, entry.cookie = _SOCKET.unpack_from(fields[_ENTRY_SOCKET])
        entry.listening = bool(flags & _FLAG_LISTENING)
        entry.connected = bool(flags & _FLAG_CONNECTED)
        entry.v6only = bool(flags & _FLAG_V6ONLY)
        address = fields.get(_ENTRY_ADDRESS, b"")
        entry.address = address.decode("utf-8", "surrogateescape")
    elif _ENTRY_FILE in fields:
        if len(fields[_ENTRY_FILE]) < _FILE.size:
            raise ProtocolError(f"the entry of {name!r} has a file field of {len(fields[_ENTRY_FILE])} bytes")
        entry.mode, entry.device, entry.inode = _FILE.unpack_from(fields[_ENTRY_FILE])
    else:
        raise ProtocolError(f"the entry of {name!r} says neither what socket nor what file it is")
    entry.state = fields.get(_ENTRY_STATE, b"")
    return entry


# --- payloads -----------------------------------------------------------------------------------------------


def encode_payload(message: Message) -> bytes:
    parts: list[bytes] = []
    for tag, name, kind, default in message.FIELDS:
        value = getattr(message, name)
        if kind == NUMBER:
            if value != default:
                parts.append(_NUMBER_FIELD.pack(tag, 8, value))
        elif isinstance(value, Packed):
            parts.append(value.data)
        elif kind == ENTRIES:
            parts.extend(_field(tag, encode_entry(entry)) for entry in value)
        elif value != default:
            parts.append(_field(tag, value.encode("utf-8", "backslashreplace") if kind == TEXT else value))
    return b"".join(parts)


def decode_payload(cls: type[Message], data: bytes) -> Message:
    """The message; ``ProtocolError`` with a sentence for every way in which ``data`` can be wrong."""
    what = f"a {cls.__name__.lower()} message"
    values: dict[str, Any] = {}
    known = {tag: (name, kind) for tag, name, kind, _ in cls.FIELDS}
    for tag, raw in _walk(data, what):
        if tag not in known:
            continue
        name, kind = known[tag]
        if kind == ENTRIES:
            values.setdefault(name, []).append(decode_entry(raw))
            continue
        if name in values:
            raise ProtocolError(f"{what} says {name} twice")
        if kind == NUMBER:
            values[name] = _number(raw, f"{name} in {what}")
        elif kind == TEXT:
            values[name] = _text(raw, f"{name} in {what}")
        else:
            values[name] = raw
    for _, name, _, default in cls.FIELDS:
        if default is None and name not in values:
            raise ProtocolError(f"{what} lacks {name}")
    return cls(**values)


def _walk(data: bytes, what: str) -> list[tuple[int, bytes]]:
    found = []
    position, end = 0, len(data)
    while position < end:
        if end - position < _TAG.size:
            raise ProtocolError(f"{what} ends inside a field's head")
        tag, length = _TAG.unpack_from(data, position)
        position += _TAG.size
        if length > end - position:
            raise ProtocolError(f"{what} ends inside field {tag}: {length} bytes said, {end - position} there")
        found.append((tag, data[position : position + length]))
        position += length
    return found


def _fields(data: bytes, what: str) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    for tag, value in _walk(data, what):
        if tag in fields:
            raise ProtocolError(f"{what} has field {tag} twice")
        fields[tag] = value
    return fields


def _number(raw: bytes, what: str) -> int:
    if len(raw) != 8:
        raise ProtocolError(f"{what} has {len(raw)} bytes; a number has 8")
    return int(_NUMBER.unpack(raw)[0])


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not UTF-8") from None
