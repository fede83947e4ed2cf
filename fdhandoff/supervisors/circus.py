"""circus: a ``[watcher:…]`` section."""

from __future__ import annotations

import re

from .plan import File, check_words, comment, shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan

DIRECTORY = "/etc/circus/conf.d"


def files(plan: Plan) -> list[File]:
    head = comment(
        f"{DIRECTORY}/{plan.name}.ini\n"
        f"to be included by circus.ini (include_dir = {DIRECTORY}); circusctl reload {plan.name} upgrades it."
    )
    lines = [
        f"[watcher:{plan.name}]",
        f"cmd = {command_line(plan.run())}",
        # Nothing else has a PATH in it.
        "copy_env = True",
        "singleton = True",
        # "reload" is an upgrade in place, no second process.
        "send_hup = True",
        "stop_signal = TERM",
        f"graceful_timeout = {plan.stop_seconds}",
        "max_retry = -1",
    ]
    return [File(DIRECTORY, f"{plan.name}.ini", head + "\n".join(lines) + "\n")]


def command_line(words: list[str]) -> str:
    """As circus reads it: split as a shell does, after ``$(circus.…)``, ``((circus.…))`` and ``$WID`` were replaced and what
    looks like a comment removed."""
    check_words(words, "circus")
    # Two quotes in between change nothing by the shell's rules, and hide it from circus. All that can be quoted here is.
    return re.sub(r"(?<=\s)(?=;)|(?<=\$)(?=\(|WID)|(?<=\()(?=\()", "''", shell(words))
