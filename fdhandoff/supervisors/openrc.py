"""OpenRC: an init script for its own ``supervise-daemon``."""

from __future__ import annotations

from .plan import File, check_words, comment, shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan

DIRECTORY = "/etc/init.d"


def files(plan: Plan) -> list[File]:
    check_words([*plan.run(), *plan.verb("upgrade")], "OpenRC", lines=True)
    program, *arguments = plan.run()
    head = comment(
        f"{DIRECTORY}/{plan.name}\n"
        f"rc-update add {plan.name} default; rc-service {plan.name} start; rc-service {plan.name} reload upgrades it."
    )
    # The arguments are evaluated once more by OpenRC: quoted twice.
    text = f"""\
#!/sbin/openrc-run
{head}
name={shell([plan.name])}
description="upgraded without losing a connection"
supervisor=supervise-daemon
command={shell([shell([program])])}
command_args={shell([shell(arguments)])}
respawn_delay=1
respawn_max=0
retry=TERM/{plan.stop_seconds}/KILL/5
extra_started_commands="reload"

depend() {{
    use net logger
}}

reload() {{
    ebegin "Upgrading {plan.name}"
    {shell(plan.verb("upgrade"))}
    eend $?
}}
"""
    return [File(DIRECTORY, plan.name, text, 0o755)]
