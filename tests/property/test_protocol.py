"""Old × new, step by step, with crashes, lost channels and delays: somebody can always accept, and never two do."""

from __future__ import annotations

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fdhandoff.errors import ProtocolError
from fdhandoff.protocol.messages import Abort, Commit
from fdhandoff.protocol.states import OWNER, OWNS, TABLES, TAKER, is_final
from tests.support.pair import OTHER, Pair

ROLES = st.sampled_from([OWNER, TAKER])
# A call of the application that ends with the conversation open on the other side.
MAY_LEAVE = {OWNER: {"COMMITTED", "DRAINING"}, TAKER: {"SERVING"}}


class Handoffs(RuleBasedStateMachine):
    """One service through many attempts: each is a ``Pair``; the owner of the last one offers in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.outside = True  # whether a process that is in no conversation owns the service
        self._begin()

    def _begin(self) -> None:
        self.pair = Pair(items=2, state=b"")
        self.alive = {OWNER: True, TAKER: True}
        self.open = {OWNER: True, TAKER: True}
        self.deaf = {OWNER: False, TAKER: False}

    def _may(self, role: str) -> bool:
        return self.alive[role] and self.open[role]

    def _close_if_over(self, role: str) -> None:
        session = self.pair.sessions[role]
        if self.open[role] and is_final(role, session.state):
            self._close(role)

    def _close(self, role: str) -> None:
        self.open[role] = False
        self.pair.wire[role].clear()

    # --- what may happen ------------------------------------------------------------------------------------

    @rule(role=ROLES, data=st.data())
    def says_something(self, role: str, data: st.DataObject) -> None:
        if not self._may(role):
            return
        session = self.pair.sessions[role]
        words = [step[4:] for step in TABLES[role][session.state] if step.startswith("say ")]
        if not words:
            return
        self._say(role, data.draw(st.sampled_from(sorted(words))))

    def _say(self, role: str, word: str) -> None:
        session = self.pair.sessions[role]
        if word == "STATE" and session.state == "OFFERING":
            return  # none was offered
        if word == "ITEMS" and (session.items_sent >= 2 or session.state != "OFFERING"):
            return
        if word == "TAKEN" and not (session.complete and session.items_acked == session.items_received):
            return
        message, fds = self.pair.word(role, word)
        if word == "COMMIT" and session.role == OWNER:
            message = Commit()
        if word == "ACK":
            session.items_acked = session.items_received
        if not self.open[OTHER[role]]:
            # The kernel says that nobody listens.
            if word in ("COMMIT", "ABORT"):
                session.say(message)
                session.happen("unsent")
            else:
                session.happen("eof")
        else:
            self.pair.say(role, message, fds)
        self._close_if_over(role)

    @rule(role=ROLES)
    def hears_the_next_word(self, role: str) -> None:
        if self._may(role) and not self.deaf[role] and self.pair.wire[role]:
            try:
                self.pair.hear(role)
            except ProtocolError:
                self._hears_nonsense(role)
            self._close_if_over(role)

    @rule(role=ROLES)
    def hears_nonsense(self, role: str) -> None:
        if self._may(role) and not self.deaf[role] and self.pair.wire[role]:
            self._hears_nonsense(role)
            self._close_if_over(role)

    def _hears_nonsense(self, role: str) -> None:
        self.pair.wire[role].clear()
        self._fail(role, "bad")
        self.deaf[role] = True

    @rule(role=ROLES)
    def time_is_over(self, role: str) -> None:
        if self._may(role):
            self._fail(role, "deadline")
            self._close_if_over(role)

    def _fail(self, role: str, event: str) -> None:
        """As both sides do it: whoever fails before the commit says so, if it can."""
        session = self.pair.sessions[role]
        table = TABLES[role][session.state]
        to = table.get(event)
        if to and is_final(role, to) and table.get("say ABORT") == to and self.open[OTHER[role]]:
            self.pair.say(role, Abort())
        else:
            session.happen(event)

    @rule()
    def probation_is_over(self) -> None:
        if self._may(OWNER):
            self.pair.owner.happen("over")

    @rule(role=ROLES)
    def is_killed(self, role: str) -> None:
        self.alive[role] = False
        self._close(role)

    @rule(role=ROLES)
    def leaves(self, role: str) -> None:
        if self._may(role) and self.pair.sessions[role].state in MAY_LEAVE[role]:
            self._close(role)

    @rule(role=ROLES)
    def notices_the_end(self, role: str) -> None:
        """Everything that was said is heard first."""
        other = OTHER[role]
        if self._may(role) and not self.open[other] and (self.deaf[role] or not self.pair.wire[role]):
            if not self.deaf[role]:
                self.pair.sessions[role].happen("eof")
            if not self.alive[other]:
                self.pair.sessions[role].happen("death")
            self._close_if_over(role)

    @precondition(lambda self: not any(self.open.values()))
    @rule()
    def the_next_attempt_begins(self) -> None:
        serving = [role for role in (OWNER, TAKER) if self._owns(role)]
        if serving:
            self._begin()

    # --- what must hold -------------------------------------------------------------------------------------

    def _owns(self, role: str) -> bool:
        return self.alive[role] and self.pair.sessions[role].state in OWNS[role]

    @invariant()
    def never_two(self) -> None:
        assert not (self._owns(OWNER) and self._owns(TAKER)), self.pair.states

    @invariant()
    def somebody_accepts_while_nothing_has_failed(self) -> None:
        if all(self.alive.values()) and all(self.open.values()) and not any(self.deaf.values()):
            between = {"COMMITTED", "RECLAIMING", "PROBATION", "DRAINING"}
            assert self._owns(OWNER) or self._owns(TAKER) or self.pair.owner.state in between

    @invariant()
    def nobody_holds_descriptors_of_no_message(self) -> None:
        for session in self.pair.sessions.values():
            assert session.pending_fds == []


Handoffs.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestHandoffs = Handoffs.TestCase
