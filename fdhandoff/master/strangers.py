"""Processes that served before us and are not ours: watched until nobody is connected to them, and then asked to stop."""

from __future__ import annotations

import os
import signal
import time

from ..deadline import format_duration
from ..errors import SystemCallError
from ..system import environment
from ..system.connections import inodes_of
from ..system.process import Process
from ..system.processes import members, variable_of
from .drain import HALF_OPEN_SECONDS
from .tasks import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .master import Master

_LOOK_FIRST, _LOOK_LAST = 0.02, 0.5
# After so long it is worth a word that somebody who was asked to end has not.
_PATIENCE = 10.0


class Strangers:
    """``processes`` (taken) and whoever they started. ``name`` says in messages what they are."""

    def __init__(self, master: Master, name: str, processes: Iterable[Process], stop_signal: int) -> None:
        self.name = name
        self._master = master
        self._processes = list(processes)
        self._stop_signal = stop_signal

    @property
    def alive(self) -> bool:
        return any(process.alive() for process in self._processes)

    def connections(self) -> int:
        """How many they still have; none where the kernel does not let us look."""
        family = members(*(process.pid for process in self._processes if process.alive()))
        try:
            return sum(outlet.connections(family) for outlet in self._master.outlets)
        except SystemCallError:
            return 0

    async def retire(self, grace: float | None, kill_after: float) -> bool:
        """To their end: whether they have ended. Nothing new reaches them. They are asked to stop when nobody is connected to
        them, or ``grace`` is over, and killed ``kill_after`` later; a ``kill_after`` of 0 kills nobody."""
        master, began = self._master, time.monotonic()
        seconds, quiet = _LOOK_FIRST, 0
        before = [(outlet, outlet.half_open()) for outlet in master.outlets]
        while self.alive:
            if time.monotonic() - began < HALF_OPEN_SECONDS:
                before = [(outlet, outlet.half_open() & seen) for outlet, seen in before if seen]
            else:
                before = []
            coming = any(seen for _, seen in before) or any(outlet.stranded_count() for outlet in master.outlets)
            # Twice: what was accepted between two looks is seen by the second.
            quiet = 0 if coming or self.connections() else quiet + 1
            late = grace is not None and time.monotonic() - began >= grace
            if quiet >= 2 or late:
                break
            await pause(master.loop, seconds)
            seconds = _LOOK_FIRST if quiet else min(seconds * 2, _LOOK_LAST)
        left = self.connections()
        if self.alive:
            for process in self._processes:
                process.signal(self._stop_signal)
            name = signal.Signals(self._stop_signal).name
            master.say(f"{self.name} is asked to stop ({name})" + (f", with {left} connections" if left else ""))
        until = time.monotonic() + (kill_after or _PATIENCE)
        while self.alive and time.monotonic() < until:
            await pause(master.loop, _LOOK_FIRST * 2)
        if self.alive and not kill_after:
            patience = format_duration(_PATIENCE)
            master.say(
                f"{self.name} runs on, without new connections, {patience} after it was asked to stop: end it yourself, or say "
                "--kill-old the next time"
            )
            while self.alive:
                await pause(master.loop, _LOOK_LAST)
        if self.alive:
            master.say(f"{self.name} did not end within {format_duration(kill_after)} of being asked to; it is killed")
            for pid in members(*(process.pid for process in self._processes)):
                _kill(pid)
        for process in self._processes:
            process.close()
        return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_of_a_master(pid: int) -> bool:
    """Whether a master started it, or one of its ancestors. A socket alone proves nothing: a service manager, whom to end would
    be to end all, may keep it, and rightly."""
    return bool(variable_of(pid, environment.GENERATION))


def holders_of(inodes: Collection[int], *, anybody: bool = False) -> list[Process]:
    """Whom a master started (``anybody``: also others) and who has one of these sockets open, as far as we may see."""
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
        try:
            if not (anybody or is_of_a_master(pid)) or inodes_of([pid]).isdisjoint(inodes):
                continue
            found.append(Process.from_pid(pid))
        except SystemCallError:
            continue  # another user's, or just ended
    return found
