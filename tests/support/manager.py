"""A service manager that only listens."""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING

from fdhandoff.system.notify import NotifyListener
from fdhandoff.system.process import Process, pidfd_id

if TYPE_CHECKING:
    from pathlib import Path


class Manager:
    """A service manager's ear: writes down who said what; acknowledges barriers by reading on."""

    def __init__(self, path: Path) -> None:
        self.listener = NotifyListener(path)
        self.heard: list[tuple[int, dict[str, str]]] = []
        self.ids: dict[int, int] = {}
        self._moments: dict[str, float] = {}
        self._ending = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending:
            if select.select([self.listener], [], [], 0.02)[0]:
                for message in self.listener.receive():
                    if "MAINPID" in message.fields:
                        with Process.from_pid(int(message.fields["MAINPID"])) as process:
                            self.ids[process.pid] = pidfd_id(process.pidfd)
                    self._moments.update(dict.fromkeys(message.fields, time.monotonic()))
                    self.heard.append((message.pid, message.fields))

    def said(self, pid: int) -> list[str]:
        """The keys of each message of ``pid``, without the free text."""
        return ["+".join(key for key in fields if key != "STATUS") for sender, fields in self.heard if sender == pid]

    def statuses(self, pid: int) -> list[str]:
        """The free text of each message of ``pid`` that has any."""
        return [fields["STATUS"] for sender, fields in self.heard if sender == pid and "STATUS" in fields]

    def silent_since(self, key: str) -> float:
        """For how many seconds nobody has said it."""
        return time.monotonic() - self._moments[key]

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self.listener.close()
