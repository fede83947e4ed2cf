"""The service manager's notification socket, both ends: what ``sd_notify(3)`` says, and who listens to a child saying it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deadline import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

NOTIFY_SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"


class Notifier:
    """Speaks to the service manager. Without an address it is false, and every method does nothing.

    Each method sends one datagram at once. Errors: ``SystemCallError`` (the manager is gone, its socket is not writable
    for us), ``DeadlineExceeded`` when its queue stays full until ``deadline``.
    """

    __slots__ = ("address", "watchdog_interval", "_deadline")

    def __init__(self, address: str | None, *, watchdog_interval: float | None = None) -> None: ...

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], *, unset: bool = True) -> Notifier: ...

    def __bool__(self) -> bool: ...
    def send(self, *lines: str, fds: Sequence[int] = (), pid: int | None = None, deadline: int | None = None) -> None: ...
    def ready(self, status: str = "") -> None: ...
    def reloading(self, status: str = "") -> None: ...
    def stopping(self, status: str = "") -> None: ...
    def status(self, text: str) -> None: ...
    def main_pid(self, pid: int, pidfd: int | None = None, *, ready: bool = False) -> None: ...
    def watchdog(self) -> None: ...
    def extend_timeout(self, seconds: float) -> None: ...
    def barrier(self, deadline: int = FOREVER) -> None: ...
    def fdstore(self, name: str, fds: Sequence[int], *, poll: bool = True) -> None: ...
    def fdstore_remove(self, name: str) -> None: ...


class NotifyMessage:
    """One datagram: who sent it, as the kernel says, its ``KEY=value`` lines, and the descriptors that came with it."""

    __slots__ = ("pid", "uid", "gid", "fields", "fds")

    pid: int
    uid: int
    gid: int
    fields: dict[str, str]
    fds: list[int]

    def claim(self) -> list[int]:
        """The descriptors become the caller's."""
        ...

    def close(self) -> None: ...


class NotifyListener:
    """The receiving end. ``address`` is the value for a child's ``NOTIFY_SOCKET``."""

    __slots__ = ("address", "_socket", "_path")

    def __init__(self, path: str | None = None) -> None: ...
    def fileno(self) -> int: ...
    def receive(self) -> Iterator[NotifyMessage]:
        """What has arrived, without waiting. Iterate with ``for``: a message's descriptors that the loop's body did not
        claim are closed when it asks for the next one, which is also what acknowledges a ``BARRIER=1``."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> NotifyListener: ...
    def __exit__(self, *_: object) -> None: ...
