"""A container: a ``Containerfile``, and how to run what it builds."""

from __future__ import annotations

import json

from .plan import File, check_words, comment, shell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plan import Plan


def files(plan: Plan) -> list[File]:
    words = plan.run()
    check_words(words, "a container", lines=True)
    head = comment(
        f"Containerfile\n"
        f"podman build -t {plan.name} .\n"
        f"{shell(_start(plan))}\n"
        f"podman exec {plan.name} {shell(plan.verb('upgrade'))} upgrades it; podman stop {plan.name} drains it."
    )
    text = f"""\
{head}FROM {plan.image}
RUN pip install --no-cache-dir fdhandoff
{_user(plan)}STOPSIGNAL SIGTERM
ENTRYPOINT {json.dumps(words)}
"""
    return [File(".", "Containerfile", text)]


def _user(plan: Plan) -> str:
    owner = f"{plan.user or '0'}:{plan.group or plan.user or '0'}"
    made = (
        f"RUN mkdir -m 0700 /run/fdhandoff && chown {owner} /run/fdhandoff\nENV FDHANDOFF_RUNTIME_DIR=/run/fdhandoff\n"
    )
    return f"{made}USER {owner}\n" if plan.user else made


def _start(plan: Plan) -> list[str]:
    """Longer than the service may take to stop: the default, 10 s, would kill it while it drains."""
    ports = [word for kind, number in plan.ports() for word in ("--publish", f"{number}:{number}/{kind}")]
    return [
        "podman",
        "run",
        "--detach",
        "--name",
        plan.name,
        "--stop-timeout",
        str(plan.stop_seconds),
        *ports,
        plan.name,
    ]
