"""An old generation that stays for a while after its successor passed probation: then a rollback is a switch and no deploy."""

from __future__ import annotations

import time

from ..deadline import format_duration
from ..errors import OLD, UpgradeError
from .run import DRAINING, SERVING, Run
from .tasks import Future, first, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .master import Master

KEPT = "kept"
_LOOK_SECONDS = 0.02


class Keeper:
    """The one that is kept, if any."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self.run: Run | None = None
        self._released: Future[None] = Future()

    def keep(self, old: Run, seconds: float) -> None:
        self.release()
        self.run, self._released = old, Future()
        old.state = KEPT
        old.deadline = time.monotonic() + seconds
        self._master.changed()
        self._master.say(f"{old} is kept for {format_duration(seconds)}: rollback goes back to it")
        self._master.spawn(self._wait(old, seconds, self._released))

    async def _wait(self, old: Run, seconds: float, released: Future[None]) -> None:
        await first(sleep(self._master.loop, seconds), old.ended, released)
        if self.run is old:
            self.run = None
        if old.state == KEPT or old.ended.done:
            old.deadline = None
            self._master.retire_now(old)

    def release(self) -> None:
        """It is not kept any longer: another upgrade makes another old generation."""
        self.run = None
        self._released.set(None)


async def roll_back(master: Master, reason: str) -> None:
    """Back to the generation that is kept, with an upgrade that was done already."""
    old, bad = master.keeper.run, master.current
    if old is None or bad is None or not old.alive:
        number = master.current.number if master.current is not None else 0
        raise UpgradeError(
            f"generation {number} passed its probation, and the one before is gone: deploy the previous release again and "
            "upgrade to it (--keep-old keeps the old generation for a while)",
            serving=OLD,
        )
    if [name for name, _ in old.sockets] != [outlet.name for outlet in master.outlets]:
        raise UpgradeError(
            f"the listeners have changed since {old}: deploy the previous release and upgrade", serving=OLD
        )
    began = time.monotonic()
    master.keeper.run = None
    old.state, old.share, old.deadline = SERVING, 1.0, None
    bad.state, bad.share, bad.restarts = DRAINING, 0.0, False
    for outlet in master.outlets:
        outlet.choose(old.slot)
    master.current = old
    master.switched_to(old)
    master.ears.attend(old)
    master.keeper.release()
    old.watch_over()
    until = began + bad.options.settle
    while bad.alive and (time.monotonic() < until or any(outlet.waiting(bad.slot) for outlet in master.outlets)):
        await sleep(master.loop, _LOOK_SECONDS)
    seconds = time.monotonic() - began
    master.last_upgrade = {
        "result": "rolled back",
        "reason": reason,
        "asked": "",
        "step": "",
        "from": bad.number,
        "to": old.number,
        "seconds": seconds,
        "steps": [{"step": "rollback", "seconds": seconds}],
        "at": time.time(),
        "held": False,
        "lost": None,
        "release": old.release or None,
        "last_lines": [],
    }
    master.say(f"{reason}: {old} serves again instead of {bad}")
    if master.watcher is not None:
        master.watcher.went_back(bad, reason)
    master.tell(bad, master.last_upgrade, bad.release)
    master.changed()
    master.plan_recycling()
    master.retire_now(bad)
