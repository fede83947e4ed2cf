"""runit: a service directory."""

from __future__ import annotations

from .plan import File, check_words, comment, shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan

DIRECTORY = "/etc/sv"


def files(plan: Plan) -> list[File]:
    words = plan.run()
    check_words(words, "runit", lines=True)
    head = comment(
        f"{DIRECTORY}/{plan.name}/run\n"
        f"ln -s {DIRECTORY}/{plan.name} /etc/service/ starts it; sv reload {plan.name} upgrades it;\n"
        f"sv -w {plan.stop_seconds} stop {plan.name} ends it (without -w, sv looks away after 7 s, and it drains on)."
    )
    run = f"#!/bin/sh\n{head}exec 2>&1\nexec {shell(words)}\n"
    check = f"#!/bin/sh\n# sv start and sv check wait until this says yes\nexec {shell(plan.verb('status'))} >/dev/null 2>&1\n"
    return [
        File(DIRECTORY, f"{plan.name}/run", run, 0o755),
        File(DIRECTORY, f"{plan.name}/check", check, 0o755),
    ]
