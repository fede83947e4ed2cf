"""What a new master must know of what the last one left: a file beside the handoff path, replaced in one step."""

from __future__ import annotations

import json
import os

from ..errors import HandoffError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1


def path_of(handoff_path: str) -> str:
    return f"{handoff_path}.journal"


def write(path: str, state: dict[str, Any]) -> None:
    """Replaces the journal. 0600: it names commands."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, json.dumps({"schema": SCHEMA, **state}).encode())
    finally:
        os.close(fd)
    os.replace(temporary, path)


def read(path: str) -> dict[str, Any] | None:
    """What the last master wrote; ``None`` where there is nothing that makes sense. Only a file of ours is believed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise HandoffError(f"the journal {path} can be written by others: it is not believed; remove it")
        try:
            state = json.load(file)
        except ValueError:
            return None
    return state if isinstance(state, dict) and state.get("schema") == SCHEMA else None


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
