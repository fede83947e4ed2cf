"""What would become of an upgrade, without one: what can be known beforehand is tried, nothing is started or bound."""

from __future__ import annotations

from ..errors import OLD, HandoffError, SystemCallError
from ..system.process import find_program
from .listeners import match
from .readiness import run_command
from .run import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..control import Reply
    from .master import Master
    from .options import Options


async def preflight(master: Master, reply: Reply) -> None:
    """Answers with ``checks``: ``name``, ``ok``, ``detail`` each."""
    checks: list[dict[str, Any]] = []

    def note(name: str, detail: str, ok: bool = True) -> None:
        checks.append({"name": name, "ok": ok, "detail": detail})
        reply.event({"event": "check", **checks[-1]})

    try:
        await _look(master, note)
    except (HandoffError, OSError, ValueError) as error:
        note("preflight", str(error), False)
    failed = [check for check in checks if not check["ok"]]
    if failed:
        reply.fail("preflight", "; ".join(str(check["detail"]) for check in failed), serving=OLD, checks=checks)
    else:
        reply.done({"checks": checks})


async def _look(master: Master, note: Any) -> None:
    refusal = master.refusal()
    note("room", refusal or "a generation can be started", not refusal)
    try:
        options = master.configure()
    except (HandoffError, OSError, ValueError) as error:
        note("configuration", str(error), False)
        return
    note("configuration", options.config or "the command line")
    pairs, removed = match(master.outlets, options.binds)
    words = [f"{text} would be bound" for text, outlets in pairs if not outlets]
    words += [f"{outlet.name} would go" for outlet in removed]
    note("listeners", ", ".join(words) or "they stay as they are")
    run = Run(master.loop, master.numbers + 1, 0, options, [(o.name, o.give(0)) for o in master.outlets], master.say)
    _command(run, options, note)
    if options.check:
        failure = await run_command(master.loop, options.check, run, options.ready_timeout)
        note("check", f"the check failed: {failure}" if failure else options.check, not failure)


def _command(run: Run, options: Options, note: Any) -> None:
    try:
        words = run.command()
        program = find_program(words[0], run.environ(), options.directory or None)
    except (SystemCallError, ValueError) as error:
        note("command", str(error), False)
    else:
        note("command", program)
