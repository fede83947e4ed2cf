"""Whether a master's service should get traffic: the master's answers to whoever asks, by HTTP or by a file."""

from __future__ import annotations

import socket

from ..health import Health
from ..system.paths import unlink_control
from ..system.sockets import bind, parse_bind
from .report import status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .master import Master


class MasterHealth(Health):
    """The answers of ``master``, at the HTTP address ``address`` and in the file ``path``; either may be empty."""

    def __init__(self, master: Master, address: str, path: str, kept: Sequence[socket.socket] | None = None) -> None:
        """``HandoffError`` when the address can't be bound or the file can't be written. ``kept``: the ``sockets`` of
        the master that this one was before an exec; they are taken."""
        listening = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in kept or ()]
        pairs = list(zip(kept or (), listening, strict=True))
        bound = bind(parse_bind(address)) if address and kept is None else []
        self._master = master
        super().__init__(
            master.loop,
            self._is_ready,
            self._described,
            master.say,
            metrics=lambda: status(master),
            listeners=[*bound, *(sock for sock, listens in pairs if listens)],
            guests=[sock for sock, listens in pairs if not listens],
            path=path,
        )
        try:
            self.show()
        except BaseException:
            self.close()
            raise
        self.welcome(True)

    def sockets(self) -> list[socket.socket]:
        """What outlives an exec of the master: the listeners, and who is connected and has not begun to ask."""
        return [*self.listeners, *self.undecided()]

    def close(self) -> None:
        super().close()
        for listener in self.listeners:
            if listener.family == socket.AF_UNIX and isinstance(listener.getsockname(), str):
                unlink_control(listener.getsockname(), listener)
            listener.close()
        self.listeners = []
        self.withdraw_for_good()

    def _is_ready(self) -> bool:
        return self._master.wants_traffic

    def _described(self) -> dict[str, Any]:
        master = self._master
        return {
            "state": master.state,
            "generation": master.current.number if master.current is not None else 0,
            "service": master.options.name,
        }
