"""supervisord: a ``[program:…]`` section."""

from __future__ import annotations

import re

from .plan import File, check_words, comment, shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan

DIRECTORY = "/etc/supervisor/conf.d"


def files(plan: Plan) -> list[File]:
    head = comment(
        f"{DIRECTORY}/{plan.name}.conf\n"
        f"supervisorctl update starts it; supervisorctl signal HUP {plan.name} upgrades it, and so does\n"
        f"fdhandoff-cli deploy --supervisord {plan.name}, which waits for the outcome.",
        ";",
    )
    lines = [
        f"[program:{plan.name}]",
        f"command={command_line(plan.run())}",
        # A program that is told to stop in its first second is taken for one that failed to start.
        "startsecs=1",
        # It never ends by itself: whatever ends it is a fault, and what it left running is found again.
        "autorestart=true",
        "stopsignal=TERM",
        # Longer than the service may take: the default, 10 s, would kill it while it drains.
        f"stopwaitsecs={plan.stop_seconds}",
        "redirect_stderr=true",
    ]
    return [File(DIRECTORY, f"{plan.name}.conf", head + "\n".join(lines) + "\n")]


def command_line(words: list[str]) -> str:
    """As supervisord reads it: split as a shell does, after ``%(…)s`` was expanded and what looks like a comment removed."""
    check_words(words, "supervisord")
    # A mark behind a space begins a comment, even in quotes; behind a quote it does not.
    return re.sub(r"(\s)([;#])", r"\1''\2", shell(words)).replace("%", "%%")
