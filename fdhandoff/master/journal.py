"""What a new master must know of what the last one left: a file beside the handoff path, replaced in one step."""

from __future__ import annotations

import errno
import os

from ..errors import OLD, HandoffError, SystemCallError
from ..notation import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1


def path_of(handoff_path: str) -> str:
    return f"{handoff_path}.journal"


def write(path: str, state: dict[str, Any], *, lasting: bool = False) -> None:
    """Replaces the journal, or leaves the one that is there as it was. 0600: it names commands. ``lasting``: what is read after
    a power failure is then whole, either one."""
    temporary = f"{path}.new"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_whole(fd, encode(state))
            if lasting:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # it was not even begun, or the disk lets go of nothing
        raise


def encode(state: dict[str, Any]) -> bytes:
    return dumps({"schema": SCHEMA, **state}).encode()


def write_whole(fd: int, data: bytes) -> None:
    """A disk that becomes full takes the first part without a word, and complains of the second."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read(path: str) -> dict[str, Any] | None:
    """What the last master wrote; ``None`` where there is nothing. Only a file of ours is believed.

    ``ValueError`` says what makes no sense in it; ``HandoffError`` why it can't be believed or read.
    """
    data = read_whole(path)
    return None if data is None else decode(data)


def read_whole(path: str) -> bytes | None:
    """The same, as bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise SystemCallError("open", error.errno, doing=f"reading the journal {path}", serving=OLD) from None
        raise HandoffError(f"the journal {path} can't be read ({error.strerror}): remove it", serving=OLD) from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise HandoffError(f"the journal {path} can be written by others: it is not believed; remove it")
        return file.read()


def decode(data: bytes) -> dict[str, Any]:
    """The state again. ``ValueError`` with the first thing in it that makes no sense."""
    from .shape import fault  # late: only who begins where another ended reads one

    try:
        state = loads(data)
    except ValueError:
        raise ValueError("it is not JSON, or only a part of it") from None
    wrong = fault(state, SCHEMA)
    if wrong:
        raise ValueError(wrong)
    found: dict[str, Any] = state
    return found


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
