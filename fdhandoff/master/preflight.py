"""What would become of an upgrade, without one: what can be known beforehand is tried, nothing is started or bound."""

from __future__ import annotations

from functools import partial

from ..errors import OLD, HandoffError, SystemCallError, sentence
from ..system.process import find_program
from .listeners import match
from .readiness import run_command
from .room import memory_shortage
from .run import Run, split_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..control import Reply
    from .master import Master


async def preflight(master: Master, reply: Reply) -> None:
    """Answers with ``checks``: ``name``, ``ok``, ``detail`` each."""
    checks: list[dict[str, Any]] = []

    def note(name: str, detail: str, ok: bool = True, lines: list[str] | None = None) -> None:
        checks.append({"name": name, "ok": ok, "detail": detail, **({"last_lines": lines} if lines else {})})
        reply.event({"event": "check", **checks[-1]})

    try:
        await _look(master, note)
    except (HandoffError, OSError, ValueError) as error:
        note("preflight", sentence(error), False)
    failed = [check for check in checks if not check["ok"]]
    if failed:
        reply.fail("preflight", "; ".join(str(check["detail"]) for check in failed), serving=OLD, checks=checks)
    else:
        reply.done({"checks": checks})


async def _look(master: Master, note: Any) -> None:
    refusal = master.refusal()
    note("room", refusal or "a generation can be started", not refusal)
    try:
        options = master.configured()
    except (HandoffError, OSError, ValueError) as error:
        note("configuration", sentence(error), False)
        return
    note("configuration", options.config or "the command line")
    for remark in options.remarks:
        note("server", remark)
    shortage = memory_shortage(master)
    note("memory", shortage or "a second generation fits, as far as can be seen")
    pairs, removed = match(master.outlets, options.binds)
    words = [f"{text} would be bound" for text, outlets in pairs if not outlets]
    words += [f"{outlet.name} would go" for outlet in removed]
    note("listeners", ", ".join(words) or "they stay as they are")
    run = Run(master.loop, master.numbers + 1, 0, options, [(o.name, o.give(0)) for o in master.outlets], master.say)
    _program("command", run.command, run, note)
    if options.pre_start:  # it changes things, so it is not run
        _program("pre-start", lambda: split_command(options.pre_start), run, note)
    after = {"post-switch": options.post_switch, "on-success": options.on_success, "on-failure": options.on_failure}
    for name, command in after.items():
        if command:
            _program(name, partial(split_command, command), run, note)
    if options.check:
        run.output = master.output_of(run)
        try:
            failure = await run_command(master.loop, options.check, run, options.ready_timeout, told=True)
            lines = await run.output.last_lines() if failure else None
        finally:
            run.output.finish()
        note("check", f"the check failed: {failure}" if failure else options.check, not failure, lines)


def _program(name: str, split: Callable[[], list[str]], run: Run, note: Any) -> None:
    """Whether there is such a program."""
    try:
        found = find_program(split()[0], run.environ(), run.options.directory or None, run.options.chroot)
    except (SystemCallError, ValueError) as error:
        note(name, str(error), False)
    else:
        note(name, found)
