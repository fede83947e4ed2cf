"""Where connections that move find their new owner: a directory with a reception for each process that takes some, and the
number of the generation that serves.

Where a master's generations are another user's, the directory stays the master's, who alone says which of them serves; the
receptions are in one below, which is that user's.
"""

from __future__ import annotations

import os
import socket

from .errors import PathError
from .system.paths import check_directory

_HEIR = "heir"
_DOORS = "doors"
_SLOTS = "jobs"


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


def open_to(directory: str, uid: int) -> None:
    """Lets processes of ``uid`` have receptions there, and see who serves. ``OSError``, ``PathError``."""
    make_directory(directory)
    doors = os.path.join(directory, _DOORS)
    try:
        os.mkdir(doors, 0o700)
    except FileExistsError:
        pass
    if os.stat(doors, follow_symlinks=False).st_uid != uid:
        os.chown(doors, uid, -1, follow_symlinks=False)
    os.chmod(directory, 0o711)


def place_of(directory: str) -> tuple[str, int]:
    """Where the receptions are, and their sockets' mode: the master, who is not their user, asks at them, too, where nobody
    else gets to. ``PathError`` where others could put some of their own there."""
    doors = os.path.join(directory, _DOORS)
    if not os.path.isdir(doors):
        return directory, 0o600
    check_directory(doors)
    return doors, 0o666


def user_of(directory: str) -> int:
    """Whose receptions they are."""
    try:
        return os.stat(_doors(directory)).st_uid
    except OSError:
        return os.geteuid()


def _doors(directory: str) -> str:
    doors = os.path.join(directory, _DOORS)
    return doors if os.path.isdir(doors) else directory


def slots_of(directory: str) -> str:
    """The file in which jobs are counted: beside the service's path; with the receptions where those are another user's. Empty
    where there is no directory."""
    doors = os.path.join(directory, _DOORS)
    if directory and os.path.isdir(doors):
        return os.path.join(doors, _SLOTS)
    return f"{directory.removesuffix('.connections')}.jobs" if directory else ""


def name_heir(directory: str, generation: int) -> None:
    """From here on ``generation`` serves, and takes connections over."""
    make_directory(directory)
    temporary = os.path.join(directory, f".{_HEIR}.{os.getpid()}")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{generation}\n")
        os.fchmod(file.fileno(), 0o644)  # the directory says who reads it
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
        names = os.listdir(place := _doors(directory))
    except OSError:
        return []
    return [
        os.path.join(place, name)
        for name in sorted(names)
        if name.startswith(f"{generation}-") and name.endswith((".sock", ".ask"))
    ]


def has_others(directory: str, generation: int) -> bool:
    """Whether living processes of another generation have receptions there."""
    try:
        names = os.listdir(place := _doors(directory))
    except OSError:
        return False
    others = [name for name in names if name.endswith(".sock") and not name.startswith(f"{generation}-")]
    return any(_is_alive(os.path.join(place, name)) for name in others)


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:
            return True  # it has more to do than it can
        except OSError:
            return False
        return True


def remove_directory(directory: str) -> None:
    """At the end of the last generation: with what dead processes left in it. Whoever is alive keeps it."""
    try:
        for name in os.listdir(directory):
            if name == _HEIR or name.startswith(f".{_HEIR}."):
                os.unlink(os.path.join(directory, name))
            elif name == _DOORS:
                if os.path.exists(slots := slots_of(directory)):
                    os.unlink(slots)
                os.rmdir(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        return
