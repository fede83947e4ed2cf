"""Handing a whole service over: to a successor that it starts itself, or to a stranger that comes for it.

One at a time. The turn is claimed first, by whoever asks; the work is done in the service's own thread.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque

from . import registry
from .control import refuse
from .deadline import after, format_duration
from .errors import (
    OLD,
    Aborted,
    DeadlineExceeded,
    HandoffError,
    NotReady,
    RolledBack,
    SuccessorDied,
    Unconfirmed,
)
from .handoff import Handed, Handoff, Offering
from .incarnation import Incarnation
from .inventory import collect
from .listener import File
from .offer import internal_items
from .successor import start
from .system.channel import Woken, wait
from .system.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .conversation import Conversation
    from .protocol.messages import Hello
    from .service import Service
    from .system.process import Process

_NOTIFY_SECONDS = 5.0
_PROOF_SECONDS = 10.0
_SERVING_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class Upgrader:
    """The old side of a ``Service``. ``last`` is the outcome of the newest attempt, for ``status``; ``handoff`` the
    conversation with the new owner, once there is one."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.interrupt = Wake()
        self.last: dict[str, Any] | None = None
        self.handoff: Handoff | None = None
        self._conversation: Conversation | None = None
        self._expected = 0
        self._announced = False  # to the service manager, that a reload has begun
        self._lock = threading.Lock()
        self._takers: deque[tuple[Conversation, Hello]] = deque()
        self._taker_came = Wake()

    def close(self) -> None:
        if self.handoff is not None:
            self.handoff.close()
        for wake in (self.interrupt, self._taker_came):
            wake.close()

    def forget_in_child(self) -> None:
        """After fork, in the child: its copies of our descriptors are closed, nothing is said."""
        self._lock = threading.Lock()
        if self._conversation is not None:
            self._conversation.close()
        for wake in (self.interrupt, self._taker_came):
            wake.close()

    # --- a successor that we start ----------------------------------------------------------------------------

    def upgrade(self) -> Handed:
        """In the service's thread, the turn claimed: start the next generation, hand over to it."""
        service, began = self.service, time.monotonic()
        number = service.generation.number + 1
        child: Process | None = None
        try:
            service.hooks.before("upgrade")
            self._begun(number, "upgrade")
            self._step("start", number, began)
            service.tell(lambda manager: manager.reloading(f"starting generation {number}"))
            self._announced = True
            assert service.path is not None
            with self._lock:
                self._expected = number
            child = start(
                service.command,
                path=service.path,
                generation=number,
                directory=service.directory,
                # A child that is to go again has nothing to tell the manager: its main process is this one all the time.
                extra={} if service.same_pid else service.for_successor,
            )
            service.say(f"generation {number} started (pid {child.pid})")
            self._step("ready", number, began)
            handed = self._hand_over(*self._await_taker(child), child)
        except BaseException as error:
            if isinstance(error, RolledBack) and child is not None and child.alive():
                self._see_off(child)  # it gave the service back, and finishes what is inside
            elif child is not None:
                _end(child)
            if isinstance(error, HandoffError) and service.owner:
                error.serving = OLD
            self._expect_nobody()
            self._failed(error, number, began)
            raise
        self._expect_nobody()
        if service.same_pid:
            service.incarnation = Incarnation(service, child, handed.generation)
        self._succeeded(handed, began)
        service.hooks.after("upgrade")
        if not service.same_pid:
            child.close()
        return handed

    def _see_off(self, child: Process) -> None:
        grace = self.service.grace

        def wait_and_end() -> None:
            child.wait(after(None if grace is None else grace + _PROOF_SECONDS))
            _end(child)

        threading.Thread(target=wait_and_end, name="fdhandoff-see-off", daemon=True).start()

    def _expect_nobody(self) -> None:
        with self._lock:
            self._expected = 0
            late = list(self._takers)
            self._takers.clear()
            self._taker_came.clear()
        for conversation, _ in late:
            self._refuse(conversation, "the upgrade that you were started for is over")

    def _await_taker(self, child: Process) -> tuple[Conversation, Hello]:
        """The child (or who it started) comes for the service: its conversation."""
        timeout = self.service.ready_timeout
        deadline = after(timeout)
        proof = (child.pidfd,) if child.pidfd >= 0 else ()
        while not self._takers:
            until = deadline if proof else min(deadline, after(_LOOK_SECONDS))
            try:
                ready = wait((self._taker_came.fileno(), *proof), (), until, self.interrupt.fileno())
            except DeadlineExceeded:
                ready = set()
            except Woken:
                raise Aborted("the upgrade was stopped; this process serves on", serving=OLD) from None
            if self._taker_came.fileno() in ready:
                self._taker_came.clear()
            elif not child.alive():
                raise _died(child)
            elif time.monotonic_ns() >= deadline:
                raise NotReady(
                    f"the new generation (pid {child.pid}) did not come for the service within "
                    f"{format_duration(timeout)}; it was ended, and this process serves on",
                    serving=OLD,
                )
        return self._takers.popleft()

    # --- whoever comes (called in the control thread) -----------------------------------------------------------

    def greet(self, conversation: Conversation, hello: Hello) -> None:
        service = self.service
        with self._lock:
            expected = self._expected
            if expected and hello.generation == expected:
                self._takers.append((conversation, hello))
                self._taker_came.set()
                return
        if expected:
            self._refuse(conversation, "an upgrade is under way, and this is not the process that it started")
            return
        try:
            service.claim_turn()
        except HandoffError as error:
            self._refuse(conversation, str(error))
            return
        service.worker.post(lambda: self._serve_stranger(conversation, hello))

    def _refuse(self, conversation: Conversation, reason: str) -> None:
        if self.service.endpoint is not None:
            self.service.endpoint.taker = None
        refuse(conversation.channel, "in-progress", reason, os.getpid())
        conversation.close()

    def _serve_stranger(self, conversation: Conversation, hello: Hello) -> None:
        began = time.monotonic()
        number = self.service.generation.number + 1
        try:
            service = self.service
            try:
                service.check_turn()
            except HandoffError as error:
                self._refuse(conversation, str(error))
                return
            self._begun(number, f"pid {conversation.peer.pid} came for it")
            self._step("ready", number, began)
            handed = self._hand_over(conversation, hello, None)
        except Exception as error:
            self._failed(error, number, began)
            if not isinstance(error, HandoffError):
                raise
            return
        self._succeeded(handed, began)

    # --- the handover itself ------------------------------------------------------------------------------------

    def _hand_over(self, conversation: Conversation, hello: Hello, child: Process | None) -> Handed:
        service = self.service
        self._conversation, began = conversation, time.monotonic()
        conversation.wake_fd = self.interrupt.fileno()
        handoff: Handoff | None = None
        try:
            handoff = Handoff(conversation, self._offering(child))
            service.hooks.before("offer")
            handoff.offer(hello)
            service.hooks.after("offer")
            handoff.await_ready()
            self._step("switch", handoff.handed.generation.number, began)
            self._commit(handoff, child)
            # If it dies, what it counted still counts.
            service.ledger.watch_process(handoff.handed.peer.pid)
            service.become("probation")
            self._step("probation", handoff.handed.generation.number, began)
            service.say(
                f"{handoff.handed.generation} serves; this process stays for {format_duration(service.probation)}"
            )
            service.hooks.after("commit")
            handoff.watch()
        except BaseException as error:
            if not conversation.session.final:
                conversation.abort("failed", str(error))
            conversation.close()
            self._conversation = None
            if not conversation.session.owns:
                self._lose()
            raise
        self.handoff = handoff
        self._lose()
        self._name_main_process(handoff.handed, child)
        return handoff.handed

    def _commit(self, handoff: Handoff, child: Process | None) -> None:
        try:
            handoff.commit()
        except Unconfirmed:
            # Our own child can be ended, which is the proof of death that lets us take the service back.
            if child is None or child.pid != handoff.conversation.peer.pid:
                raise
            child.signal(signal.SIGKILL)
            handoff.await_serving(after(_PROOF_SECONDS))

    def _offering(self, child: Process | None) -> Offering:
        service, endpoint = self.service, self.service.endpoint
        assert endpoint is not None
        offered = service.make_state()
        counted = [File(name, fd) for name, fd in service.ledger.files().items()]

        def close_gate() -> bytes | None:
            service.hooks.before("commit")
            service.gate.close()
            final = service.make_state()
            return final if final != offered else None

        return Offering(
            [
                *collect([*service.holdings.items(), *counted]),
                *internal_items(endpoint, service.gate),
            ],
            generation=service.generation.number + 1,
            state=offered,
            ready_timeout=service.ready_timeout,
            # While it is silent nobody accepts. Our own child is ended then; a stranger can only be waited for.
            serving_timeout=60.0 if child is None else min(_SERVING_SECONDS, service.ready_timeout),
            probation=service.probation,
            strict=True,
            close_gate=close_gate,
            reopen_gate=service.gate.reopen,
            release_control=lambda: registry.release(endpoint),
            resume_control=lambda: registry.resume(endpoint),
        )

    def _lose(self) -> None:
        """The service is somebody else's now."""
        self.service.owner = False
        if self.service.path is not None:
            registry.forget(self.service.path)

    def _name_main_process(self, handed: Handed, child: Process | None) -> None:
        """Only our own child is in our unit. Told after probation: a main process that dies ends the unit, and with it whoever
        could have taken the service back."""
        if child is None:
            self.service.tell(lambda manager: manager.stopping(f"{handed.generation} serves, elsewhere"))
            return
        if self.service.same_pid:
            return
        same = child.pid == handed.peer.pid and child.pidfd >= 0
        pidfd = child.pidfd if same else None
        self.service.tell(lambda manager: manager.main_pid(handed.peer.pid, pidfd, ready=True))
        self.service.tell(lambda manager: manager.barrier(after(_NOTIFY_SECONDS)))

    # --- the outcome --------------------------------------------------------------------------------------------

    def _failed(self, error: BaseException, number: int, began: float) -> None:
        service = self.service
        announced, self._announced = self._announced, False
        rolled_back = isinstance(error, RolledBack)
        service.ledger.past["upgrades"] += 1
        service.ledger.past["failed"] += 1
        self._note("rolled back" if rolled_back else "failed", str(error), number, began)
        if service.owner:
            service.ledger.keep()
            service.become("serving")
            service.offer_again()
            if rolled_back:
                service.take_back()
            if announced:
                service.tell(lambda manager: manager.ready(f"generation {service.generation.number} serves"))
        else:
            service.finish("handed over")
        service.say(f"upgrade to generation {number} failed: {error}")

    def _succeeded(self, handed: Handed, began: float) -> None:
        self._note("done", "", handed.generation.number, began)
        self.service.say(f"handed over to {handed.generation} in {format_duration(time.monotonic() - began)}")
        self.service.finish("handed over")

    def _begun(self, number: int, asked: str) -> None:
        self.service.event("upgrade.begun", **{"from": self.service.generation.number}, to=number, asked=asked)

    def _step(self, step: str, number: int, began: float) -> None:
        self.service.event("upgrade.step", to=number, step=step, seconds=time.monotonic() - began)

    def _note(self, result: str, reason: str, number: int, began: float) -> None:
        self.last = {
            "result": result,
            "reason": reason,
            "from": self.service.generation.number,
            "to": number,
            "seconds": time.monotonic() - began,
        }
        told = {name: self.last[name] for name in ("from", "to", "seconds")}
        if result == "done":
            self.service.event("upgrade.done", **told)
        else:
            self.service.event("upgrade.failed", **told, result=result, reason=reason)


def _died(child: Process) -> SuccessorDied:
    ended = child.wait(after(1.0))
    return SuccessorDied(
        f"the new generation (pid {child.pid}) {ended or 'ended'} before it came for the service; this process serves on",
        status=ended.status if ended is not None else None,
        signal=ended.signal if ended is not None else None,
    )


def _end(child: Process) -> None:
    """A successor that failed is ended at once (it never served, or no longer does), and reaped."""
    if child.alive():
        child.signal(signal.SIGKILL)
    child.wait(after(10.0))
    child.close()
