"""What operators ask of a ``Service`` at its path, and what they are told. All of it is called in the control thread."""

from __future__ import annotations

import os
import threading
import time

from .control import ANSWER_SECONDS
from .errors import NOBODY, OLD, HandoffError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .control import Reply
    from .service import Service

    Verb = Callable[[dict[str, Any], Reply], None]


class Verbs:
    """Of ``service``."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answering: list[threading.Thread] = []  # to operators who asked for an upgrade

    def all(self) -> dict[str, Verb]:
        return {
            "status": self._status,
            "upgrade": self._upgrade,
            "rollback": self._rollback,
            "stop": self._stop,
            "drain": self._stop,
            "hurry": self._hurry,
        }

    def of_who_drains(self) -> dict[str, Verb]:
        """What a generation is asked that connections come to, and then go from."""
        return {"status": self._status, "stop": self._stop, "drain": self._stop}

    def wait(self) -> None:
        """Until whoever asked for an upgrade has heard how it ended."""
        for thread in self._answering:
            thread.join(ANSWER_SECONDS)

    def _status(self, _: dict[str, Any], reply: Reply) -> None:
        reply.done(self._service.status())

    def _upgrade(self, body: dict[str, Any], reply: Reply) -> None:
        service = self._service
        if body.get("dry_run") or body.get("canary"):
            what = "dry run" if body.get("dry_run") else "canary"
            reply.fail("unsupported", f"{service.name} replaces itself, and knows no {what}", serving=OLD)
            return

        wait, number, began = body.get("wait", True), service.generation.number, time.monotonic()

        def facts(result: str) -> dict[str, Any]:
            seconds = time.monotonic() - began
            return {"upgrade": {"result": result, "reason": "", "from": number, "to": number + 1, "seconds": seconds}}

        def run() -> None:
            try:
                service.claim_turn()
                if wait is False:
                    reply.done(facts("under way"))
                elif wait == "served":
                    service.once_served = lambda: reply.done(facts("served"))
                handed = service.upgrade_in_turn()
            except HandoffError as error:
                reply.fail(type(error).__name__, str(error), serving=error.serving)
            else:
                reply.done({"generation": handed.generation.number, "pid": handed.peer.pid})

        thread = threading.Thread(target=run, name="fdhandoff-verb", daemon=True)
        self._answering = [*(one for one in self._answering if one.is_alive()), thread]
        thread.start()

    def _rollback(self, _: dict[str, Any], reply: Reply) -> None:
        service = self._service
        number = service.generation.number

        def job() -> None:
            takeover = service.takeover
            if takeover is None or not takeover.in_probation:
                reply.fail(
                    "refused",
                    f"generation {number} is in no probation, and the one before is gone: deploy the previous release again "
                    "and upgrade to it",
                    serving=OLD,
                )
                return
            service.leave(f"rolled back by {reply.asker}")
            if takeover.owns:
                reply.fail("failed", f"generation {number} could not give the service back: it ends", serving=NOBODY)
            else:
                reply.done({"upgrade": {"result": "rolled back", "from": number - 1, "to": number}})

        service.worker.post(job)

    def _stop(self, _: dict[str, Any], reply: Reply) -> None:
        self._service.ask_stop(f"{reply.asker} asked for it")
        reply.done({"state": self._service.state_word, "pid": os.getpid()})

    def _hurry(self, _: dict[str, Any], reply: Reply) -> None:
        self._service.hurry()
        reply.done({"state": self._service.state_word})


def status(service: Service) -> dict[str, Any]:
    """What ``fdhandoff-cli status`` shows: see docs/reference/cli.md."""
    counters = service.gate.counters
    taker = service.endpoint.taker if service.endpoint is not None else None
    return {
        "master": None,
        "service": service.name,
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "since": service.since,
        "state": service.state_word,
        "generation": service.generation.number,
        "path": service.path,
        "taker": taker.pid if taker is not None else None,
        "listeners": [{**one, "switch": "shared"} for one in service.holdings.status()],
        "generations": [
            {
                "number": service.generation.number,
                "pids": [os.getpid()],
                "state": service.state_word,
                "since": service.since,
                "active": service.inside,
                "accepted": counters.accepted,
                "share": 1.0 if service.owner else 0.0,
                "deadline": service.drain_seconds_left,
                "exit": None,
            }
        ],
        "counters": {name: getattr(counters, name) for name in counters.__slots__},
        "ready": service.wants_traffic,
        "totals": {
            **service.ledger.totals(counters),
            **{name: service.ledger.past[name] for name in ("upgrades", "failed")},
        },
        "last_upgrade": service.upgrader.last,
    }
