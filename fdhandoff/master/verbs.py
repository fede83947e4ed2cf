"""What an operator can ask of the master. Asked in the control thread, answered in the loop's."""

from __future__ import annotations

import os

from ..errors import OLD, HandoffError, InProgress, UpgradeError, sentence
from .keeping import roll_back
from .options import forbid_canary, parse_canary, parse_release
from .preflight import preflight
from .report import status
from .resume import replace_master
from .rollout import SERVED_STEPS
from .run import SERVING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..control import Reply
    from .master import Master
    from .rollout import Rollout
    from .run import Run
    from .tasks import Task
    from .watching import Watcher

    Verb = Callable[[Master, dict[str, Any], Reply], None]

_PROGRESS_SECONDS = 1.0


def install(master: Master) -> None:
    """From here on the master's endpoint answers."""
    assert master.endpoint is not None
    for name, verb in VERBS.items():
        master.endpoint.verbs[name] = _in_loop(master, verb)


def _in_loop(master: Master, verb: Verb) -> Callable[[dict[str, Any], Reply], None]:
    def ask(body: dict[str, Any], reply: Reply) -> None:
        def answer() -> None:
            try:
                verb(master, body, reply)
            except HandoffError as error:
                reply.fail(type(error).__name__, str(error), serving=error.serving)
            except (OSError, ValueError) as error:
                reply.fail("refused", sentence(error), serving=OLD)

        master.loop.call(answer)

    return ask


def _status(master: Master, _: dict[str, Any], reply: Reply) -> None:
    master.ears.look()
    reply.done(status(master))


# --- upgrade ------------------------------------------------------------------------------------------------


def _upgrade(master: Master, body: dict[str, Any], reply: Reply) -> None:
    canary = body.get("canary")
    steps = None if canary is None else parse_canary(str(canary))
    if steps:
        forbid_canary(steps, master.options)
    if body.get("dry_run"):
        master.spawn(preflight(master, reply))
        return
    to = None if body.get("to") is None else _watcher(master).named(str(body["to"]))
    asked = f"{reply.asker} asked for it"
    task = master.upgrade(reply.event, asked=asked, canary=steps, release=_release_in(body), to=to)
    _follow(master, task, body.get("wait", True), reply)


def _watcher(master: Master) -> Watcher:
    if master.watcher is None:
        raise UpgradeError("this service watches for no releases: run --watch says where they come from", serving=OLD)
    return master.watcher


def _follow(master: Master, task: Task[None], wait: object, reply: Reply) -> None:
    """Answers when the upgrade that has just begun has come so far."""
    rollout = master.rollout
    assert rollout is not None
    if wait is False:
        reply.done({"upgrade": rollout.summary()})
        return
    if wait == "served":
        rollout.watchers.append(lambda event: _served(rollout, event, reply))
    _progress(master, rollout, reply)

    def finished() -> None:
        if task.error is None:
            reply.done({"upgrade": rollout.summary()})
        else:
            reply.fail(
                type(task.error).__name__,
                sentence(task.error),
                serving=OLD,
                upgrade=rollout.summary(),
            )

    task.when_done(finished)


def _release_in(body: dict[str, Any]) -> str:
    return parse_release(str(body["release"])) if body.get("release") else ""


def _release(master: Master, body: dict[str, Any], reply: Reply) -> None:
    """Whoever had the service started knows better than its options what it is."""
    run = master.current
    if run is None or run.number != body.get("generation") or master.rollout is not None:
        raise UpgradeError("that generation does not serve alone: its release is named by who replaces it", serving=OLD)
    run.release = _release_in(body)
    master.changed()
    reply.done({"generation": run.number, "release": run.release or None})


def _served(rollout: Rollout, event: dict[str, Any], reply: Reply) -> None:
    if event.get("step") in SERVED_STEPS:
        reply.done({"upgrade": {**rollout.summary(), "result": "served"}})


def _progress(master: Master, rollout: Rollout, reply: Reply) -> None:
    """Once a second, for who watches: what is in flight, and until when."""

    def tell() -> None:
        if master.rollout is not rollout:
            return
        if reply.event({"event": "progress", **rollout.progress()}):
            master.loop.after(_PROGRESS_SECONDS, tell)

    master.loop.after(_PROGRESS_SECONDS, tell)


def _under_way(master: Master, what: str = "upgrade") -> Rollout:
    if master.rollout is None:
        raise UpgradeError(f"no {what} is under way", serving=OLD)
    return master.rollout


def _upgrade_master(master: Master, _: dict[str, Any], reply: Reply) -> None:
    master.giver.check()
    if master.taking is not None and not master.taking.over:
        raise InProgress("whoever had the service before has not ended yet: wait until it has")
    if master.rollout is not None or master.state != SERVING:
        raise InProgress("the master is not upgraded while a generation is: wait for its outcome")
    master.spawn(replace_master(master, reply))


def _abort(master: Master, body: dict[str, Any], reply: Reply) -> None:
    rollout = _under_way(master)
    rollout.aborted.set(str(body.get("reason", f"{reply.asker} asked for that")))
    _answer_at_end(master, rollout, reply)


def _answer_at_end(master: Master, rollout: Rollout, reply: Reply) -> None:
    """The one that is taken back ends in its own time; whoever asked hears when it has."""

    def look() -> None:
        if master.rollout is rollout:
            master.loop.after(0.02, look)
        elif rollout.result == "done":
            reply.fail("too-late", f"{rollout.new} had passed its probation already", serving="new")
        else:
            reply.done({"upgrade": rollout.summary()})

    look()


def _hold(master: Master, _: dict[str, Any], reply: Reply) -> None:
    rollout = _under_way(master, "canary")
    if not rollout.new.options.canary or rollout.switched:
        raise UpgradeError(f"the upgrade to {rollout.new} has no canary that could be held", serving=OLD)
    rollout.hold()
    reply.done({"upgrade": rollout.summary()})


def _promote(master: Master, _: dict[str, Any], reply: Reply) -> None:
    rollout = _under_way(master, "canary")
    if not rollout.new.options.canary or rollout.switched:
        raise UpgradeError(f"the upgrade to {rollout.new} has no canary that could be promoted", serving=OLD)
    rollout.promoted.set(None)
    reply.done({"upgrade": rollout.summary()})


def _rollback(master: Master, body: dict[str, Any], reply: Reply) -> None:
    if master.rollout is not None:
        _abort(master, {"reason": f"rolled back by {reply.asker}", **body}, reply)
        return
    master.giver.check()
    why = f"rolled back by {reply.asker}"
    if master.watcher is not None and master.keeper.run is None and master.current is not None:
        bad, to = master.current, master.watcher.before()
        upgrade = master.upgrade(reply.event, asked=why, to=to)
        upgrade.when_done(lambda: _rolled_back(master, upgrade, bad, why))
        _follow(master, upgrade, True, reply)
        return
    task = master.spawn(roll_back(master, why))

    def finished() -> None:
        if task.error is None:
            reply.done({"upgrade": master.last_upgrade})
        else:
            serving = task.error.serving if isinstance(task.error, HandoffError) else OLD
            reply.fail(type(task.error).__name__, str(task.error), serving=serving)

    task.when_done(finished)


def _rolled_back(master: Master, upgrade: Task[None], bad: Run, why: str) -> None:
    if upgrade.error is None and master.watcher is not None:
        master.watcher.went_back(bad, why)


def _releases(master: Master, body: dict[str, Any], reply: Reply) -> None:
    watcher = _watcher(master)

    def tell() -> None:
        reply.done({"releases": watcher.table(), "watch": watcher.status()})

    if body.get("look"):
        watcher.look_now().when_done(tell)
    else:
        tell()


# --- the end ------------------------------------------------------------------------------------------------


def _stop(master: Master, _: dict[str, Any], reply: Reply) -> None:
    master.ending.stop(f"{reply.asker} asked for it")
    reply.done({"state": master.state, "pid": os.getpid()})


def _drain(master: Master, body: dict[str, Any], reply: Reply) -> None:
    grace = body.get("grace")
    if grace is not None and not (isinstance(grace, (int, float)) and grace >= 0):
        raise ValueError(f"grace={grace!r} is no number of seconds")
    master.ending.drain(f"{reply.asker} asked for it", grace)
    reply.done({"state": master.state, "pid": os.getpid()})


def _hurry(master: Master, _: dict[str, Any], reply: Reply) -> None:
    reply.done({"ended": [run.number for run in master.ending.hurry()]})


VERBS: dict[str, Verb] = {
    "status": _status,
    "upgrade": _upgrade,
    "upgrade-master": _upgrade_master,
    "release": _release,
    "releases": _releases,
    "rollback": _rollback,
    "abort": _abort,
    "hold": _hold,
    "promote": _promote,
    "stop": _stop,
    "drain": _drain,
    "hurry": _hurry,
}
