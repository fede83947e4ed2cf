"""Tells of each upgrade once it is known what became of it: a command (``--on-success``, ``--on-failure``), and whoever listens
at a URL (``--webhook``). Each of them is told of one upgrade after the other, in a child that has its time and no more; what
goes wrong with that is said in the log, and changes nothing.
"""

from __future__ import annotations

import os
import time
from functools import partial

from ..notation import dumps
from ..system import environment
from .helper import Helper
from .readiness import run_command
from .tasks import first, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .master import Master
    from .run import Run
    from .tasks import Task

    #: What is to be said, and how that ended: why it failed, or empty.
    Word = tuple[str, Callable[[], Coroutine[Any, None, str]]]

SCHEMA = 1
DONE = "done"
#: So many may wait for one that is slow; then the oldest is dropped.
WAITING_MAX = 100
#: A webhook's, with all of its tries.
POST_SECONDS = 120.0
#: What is left to be said when the master ends, or is replaced, has that long.
LAST_SECONDS = 3.0


class Teller:
    """``tell`` puts it in the queues; ``finish`` waits for them, not for long, and leaves no child."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._queues: dict[str, _Queue] = {}

    def tell(self, run: Run, upgrade: dict[str, Any], release: str) -> None:
        """``upgrade``: as in ``last_upgrade``; ``release``: the one of which it is told."""
        options = run.options
        facts = self._facts(upgrade, release)
        succeeded = facts["result"] == DONE
        command = options.on_success if succeeded else options.on_failure
        if command:
            what = f"the {'on-success' if succeeded else 'on-failure'} command for {run}"
            self._put("", what, partial(self._run, command, run, facts))
        body = dumps(facts)
        for url in options.webhooks:
            what = f"the webhook at {origin_of(url)} for {run}"
            self._put(url, what, partial(self._post, url, options.webhook_secret, facts["id"], body))

    def _facts(self, upgrade: dict[str, Any], release: str) -> dict[str, Any]:
        current = self._master.current
        return {
            "schema": SCHEMA,
            "event": "upgrade",
            "id": os.urandom(16).hex(),
            "service": self._master.options.name,
            "host": os.uname().nodename,
            "result": upgrade["result"],
            "reason": upgrade["reason"],
            "asked": upgrade["asked"],
            "from": upgrade["from"],
            "to": upgrade["to"],
            "release": release or None,
            "serving": {
                "generation": current.number if current is not None else None,
                "release": (current.release or None) if current is not None else None,
            },
            "seconds": upgrade["seconds"],
            "at": upgrade["at"],
        }

    def _put(self, queue: str, what: str, how: Callable[[], Coroutine[Any, None, str]]) -> None:
        if queue not in self._queues:
            self._queues[queue] = _Queue(self._master)
        self._queues[queue].put((what, how))

    async def _run(self, command: str, run: Run, facts: dict[str, Any]) -> str:
        serving = facts["serving"]
        told = {
            environment.RELEASE: facts["release"] or "",
            environment.RESULT: facts["result"],
            environment.REASON: facts["reason"],
            environment.ASKED: facts["asked"],
            environment.SERVING: str(serving["generation"] or ""),
            environment.SERVING_RELEASE: serving["release"] or "",
        }
        return await run_command(self._master.loop, command, run, run.options.ready_timeout, facts=told)

    async def _post(self, url: str, secret: str, number: str, body: str) -> str:
        helper = Helper(self._master.loop, "webhook", "webhook", self._master.say, [environment.WEBHOOK_SECRET])
        answer = await helper.ask({"url": url, "secret": secret, "id": number, "body": body}, POST_SECONDS)
        return "" if answer.get("result") == DONE else str(answer.get("error") or "it gave no answer")

    async def finish(self) -> None:
        """Waits until all is said, or given up because it takes too long."""
        until = time.monotonic() + LAST_SECONDS
        for queue in self._queues.values():
            if queue.task is not None:
                await pause(self._master.loop, max(0.0, until - time.monotonic()), queue.task)
        for queue in self._queues.values():
            queue.give_up()
            if queue.task is not None:
                await first(queue.task)  # its child is gone then


class _Queue:
    """One after the other."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._words: list[Word] = []
        self._what = ""  # is under way
        self.task: Task[None] | None = None  # the last one

    def put(self, word: Word) -> None:
        if len(self._words) >= WAITING_MAX:
            self._master.say(f"{self._words.pop(0)[0]} is dropped: {WAITING_MAX} more wait behind it")
        self._words.append(word)
        if self.task is None or self.task.done:
            self.task = self._master.spawn(self._work())

    async def _work(self) -> None:
        while self._words:
            self._what, how = self._words.pop(0)
            failure = await how()
            if failure:
                self._master.say(f"{self._what} failed: {failure}")

    def give_up(self) -> None:
        if self.task is None or self.task.done:
            return
        behind = f", with {len(self._words)} more behind it" if self._words else ""
        self._words.clear()
        self._master.say(f"{self._what} is given up{behind}: time is over")
        self.task.cancel()


def origin_of(url: str) -> str:
    """Of a URL what can be shown: where it leads, and not the rest, which may be all the secret that there is."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}/…"
