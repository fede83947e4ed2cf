"""The application's state as a file, for a command that can't be handed it otherwise."""

from __future__ import annotations

import os


def write_state(file: str, state: bytes) -> None:
    """All of it or nothing, for our eyes only."""
    temporary = f"{file}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as out:
            out.write(state)
            out.flush()
            os.fsync(fd)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
