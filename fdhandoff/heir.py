"""Where connections that move find their new owner: a directory with a reception for each process that takes some, and the
number of the generation that serves.
"""

from __future__ import annotations

import os

from .errors import PathError
from .system.paths import check_directory

_HEIR = "heir"


def make_directory(directory: str) -> None:
    """0700. ``PathError`` when it can't be made, or when others could put sockets of their own there."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise PathError(
            f"the directory {directory} for connections on the move can't be made: {error.strerror}", path=directory
        ) from None
    check_directory(directory)


def name_heir(directory: str, generation: int) -> None:
    """From here on ``generation`` serves, and takes connections over."""
    make_directory(directory)
    temporary = os.path.join(directory, f".{_HEIR}.{os.getpid()}")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{generation}\n")
    os.replace(temporary, os.path.join(directory, _HEIR))


def heir_of(directory: str) -> int:
    """The generation that takes connections over; 0 where there is none."""
    try:
        with open(os.path.join(directory, _HEIR), encoding="ascii") as file:
            text = file.read(32).strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isascii() and text.isdigit() else 0


def receptions_of(directory: str, generation: int) -> list[str]:
    """The paths of a generation's receptions, one for each of its processes."""
    return [path for path in doors_of(directory, generation) if path.endswith(".sock")]


def doors_of(directory: str, generation: int) -> list[str]:
    """Where its processes can be asked to drain: their receptions, and what those have who take no connections."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [
        os.path.join(directory, name)
        for name in sorted(names)
        if name.startswith(f"{generation}-") and name.endswith((".sock", ".ask"))
    ]


def remove_directory(directory: str) -> None:
    """At the end of the last generation: with what dead processes left in it. Whoever is alive keeps it."""
    try:
        for name in os.listdir(directory):
            if name == _HEIR or name.startswith(f".{_HEIR}."):
                os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        return
