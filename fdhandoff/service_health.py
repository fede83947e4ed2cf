"""Whether a ``Service`` should get traffic, for whoever asks: by HTTP, in a thread of its own, and by a file.

The endpoint speaks for the service, not for one process: its listener goes from generation to generation, and who owns the
service answers. Who waits in between waits in the listener's queue.
"""

from __future__ import annotations

import threading
import time

from .health import Health
from .master.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .service import Service

# How long our end waits for those who have connected and not asked yet.
_QUIET_SECONDS = 1.0


class ServiceHealth:
    """The answers of ``service``, at the listeners that it holds for that and in the file ``path`` (empty: none)."""

    def __init__(self, service: Service, path: str) -> None:
        """``HandoffError`` when the file can't be written."""
        self._service = service
        self._loop = Loop()
        self._lock = threading.Lock()
        self._closed = False
        self._health = Health(
            self._loop,
            self._is_ready,
            self._described,
            service.say,
            metrics=service.status,
            listeners=service.holdings.health,
            path=path,
        )
        self._thread: threading.Thread | None = None
        if service.holdings.health:
            self._thread = threading.Thread(target=self._loop.run, name="fdhandoff-health", daemon=True)
            self._thread.start()

    @property
    def addresses(self) -> list[str]:
        """Where it answers, the port that the kernel chose included."""
        return self._health.addresses

    def clear(self) -> None:
        """Nobody serves: the file of one that was killed goes. ``HandoffError`` when it can't be removed."""
        self._health.clear()

    def changed(self) -> None:
        """Something happened to the service. From any thread."""
        with self._lock:
            if self._closed:
                return
            if self._service.answers_for_health:  # else the file is somebody else's to write, or to take away
                self._health.changed()
        self._loop.call(self._attend)

    def close(self, *, final: bool) -> None:
        """Idempotent. ``final``: nobody serves after this."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if final:
                self._health.withdraw_for_good()
        if self._thread is not None:
            self._loop.call(self._begin_to_end)
            self._thread.join()
        self._health.close()
        self._loop.close()

    def forget_in_child(self) -> None:
        """After fork, in the child: nobody runs the loop here, and its descriptors are its parent's."""
        self._lock = threading.Lock()
        self._closed = True
        for sock in self._health.everyone():
            sock.close()
        self._loop.close()

    # --- in the loop ------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        self._health.welcome(self._service.answers_for_health)

    def _begin_to_end(self) -> None:
        self._health.welcome(False)
        self._end_when_quiet(time.monotonic() + _QUIET_SECONDS)

    def _end_when_quiet(self, until: float) -> None:
        if not self._health.everyone() or time.monotonic() >= until:
            self._loop.stop()
        else:
            self._loop.after(0.01, lambda: self._end_when_quiet(until))

    def _is_ready(self) -> bool:
        return self._service.wants_traffic

    def _described(self) -> dict[str, Any]:
        service = self._service
        return {"state": service.state_word, "generation": service.generation.number, "service": service.name}
