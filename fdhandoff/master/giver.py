"""Whoever comes for the service at the handoff path, while the master runs: who may take it, and when. ``giving`` does it."""

from __future__ import annotations

import os

from ..errors import InProgress
from .run import SERVING
from .tasks import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..conversation import Conversation
    from ..protocol.messages import Hello
    from .giving import Handover
    from .master import Master

_LOOK_SECONDS = 0.05


class Giver:
    """``handover`` is the one that is under way, until the taker's probation is over. ``committed``: they serve. ``given``: for
    good. ``slot``: whose queues were offered; ``whole``: with all the others, to another master."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self.handover: Handover | None = None
        self.committed = False
        self.given = False
        self.whole = False
        self.slot = -1
        self.cleaning: set[int] = set()  # slots that were offered in vain, and that who is dead has left somebody with

    @property
    def busy(self) -> bool:
        return self.handover is not None and not self.given

    def offer(self) -> None:
        """From here on whoever comes to the handoff path is heard."""
        master = self._master
        if master.endpoint is not None:
            master.endpoint.begin_offer(self._greet, frozenset(master.options.allow_uids))

    def check(self) -> None:
        """``InProgress`` while somebody takes over."""
        if self.busy:
            raise InProgress("somebody is taking the service over: wait for the outcome")

    async def over(self) -> None:
        """Returns when nobody takes over any more. Before the commit the taker is given up; after it, the end of its probation
        is not waited for."""
        while self.busy:
            assert self.handover is not None
            self.handover.interrupt()
            await sleep(self._master.loop, _LOOK_SECONDS)

    def close(self) -> None:
        if self.handover is not None:
            self.handover.close()

    def _greet(self, conversation: Conversation, hello: Hello) -> None:
        self._master.loop.call(lambda: self._begin(conversation, hello))

    def _begin(self, conversation: Conversation, hello: Hello) -> None:
        master = self._master
        taken = {run.slot for run in master.runs} | self.cleaning
        self.slot = next((slot for slot in range(master.slots) if slot not in taken), -1)
        code, refusal = self._refusal()
        if not refusal:
            from .giving import SOFTWARE, Handover  # late: most masters never give

            self.whole = hello.software == SOFTWARE
            self.handover = Handover(master, conversation, hello)
            return
        from ..control import refuse

        if master.endpoint is not None:
            master.endpoint.taker = None
        refuse(conversation.channel, code, refusal, os.getpid())
        conversation.close()

    def _refusal(self) -> tuple[str, str]:
        """The protocol's word, which says whether it is worth trying again, and ours."""
        master = self._master
        if master.rollout is not None:
            return "in-progress", f"an upgrade to {master.rollout.new} is under way"
        if master.taking is not None and master.taking.in_probation:
            return "in-progress", "the service was taken over a moment ago, and may have to be given back"
        if master.state != SERVING or master.current is None:
            return "starting", f"the service is {master.state}"
        if self.slot < 0:
            return "in-progress", "too many generations have not ended yet: wait a moment"
        return "", ""
