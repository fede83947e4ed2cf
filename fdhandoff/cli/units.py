"""What systemd knows of a unit, asked of ``systemctl``; and to which unit a process belongs, as its cgroup tells."""

from __future__ import annotations

import os
import subprocess

from .checks import MISSING, OK, WARN, Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SECONDS = 5.0


def unit_of(pid: int) -> str:
    """The innermost service unit in which the process is; empty where there is none."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if (number == "0" and not controllers) or controllers == "name=systemd":
            for name in reversed(group.split("/")):
                if name.endswith(".service"):
                    return name
    return ""


def show(unit: str, names: Iterable[str], *, user: bool | None = None) -> dict[str, str]:
    """Properties of the unit; empty where systemd can't be asked."""
    command = ["systemctl", "--no-pager", "show", f"--property={','.join(names)}", "--", unit]
    if os.environ.get("MANAGERPID") and os.geteuid() != 0 if user is None else user:
        command.insert(1, "--user")  # started by a user's own manager
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, separator, value in pairs if separator}


# --- what hurts -----------------------------------------------------------------------------------------------

_ASKED = (
    "LoadState", "Type", "NotifyAccess", "KillMode", "Restart", "FileDescriptorStoreMax", "RuntimeDirectoryPreserve",
    "ExecStart", "ExecReload", "ExecStopPost",
)  # fmt: skip


def checks(unit: str, *, user: bool) -> list[tuple[str, Answer]]:
    """What ``doctor --unit`` says of it."""
    facts = show(unit, _ASKED, user=user)
    state = facts.get("LoadState", "")
    if state != "loaded":
        why = f"{unit} is {state}" if state else "systemctl does not answer"
        what = "systemd has no such unit: systemctl daemon-reload, or look at its name (--user asks the user's own manager)"
        return [("unit", (why, MISSING, what))]
    # A program with a Service of its own does what the master would do, but it changes its pid.
    master = " run " in facts.get("ExecStart", "")
    questions = (_type, _access, _kill_mode, _restart, _reload, _clean_up, _store, _preserve)
    return [answer for question in questions if (answer := question(facts, master)) is not None]


def _type(facts: dict[str, str], _: bool) -> tuple[str, Answer]:
    kind = facts["Type"]
    if kind in ("notify", "notify-reload"):
        return "Type", (kind, OK, "it counts as started when the first generation serves, and an upgrade as a reload")
    return "Type", (kind, WARN, "systemd takes it for started before it serves, and knows of no upgrade: Type=notify")


def _access(facts: dict[str, str], master: bool) -> tuple[str, Answer]:
    access = facts["NotifyAccess"]
    if access == "none":
        return "NotifyAccess", (access, WARN, "nothing that the service says is heard: NotifyAccess=main")
    if not master and access != "all":
        what = "a successor that is not yet the main process is not heard (it must be, unless the pid stays the same)"
        return "NotifyAccess", (access, WARN, f"{what}: NotifyAccess=all")
    return "NotifyAccess", (access, OK, "what the service says is heard")


def _kill_mode(facts: dict[str, str], master: bool) -> tuple[str, Answer]:
    mode = facts["KillMode"]
    if mode == "control-group":
        what = "a stop sends TERM to every server at once, which cuts what they have unless they drain by themselves"
        more = "; a master that is killed takes all with it: KillMode=process" if master else ": KillMode=mixed"
        return "KillMode", (mode, WARN, what + more)
    if mode == "mixed" and master:
        what = "generations die with a master that is killed; KillMode=process lets them serve on for the next one"
        return "KillMode", (mode, OK, what)
    if mode == "none":
        return "KillMode", (mode, WARN, "nothing is ever killed, not even what hangs: KillMode=process")
    return "KillMode", (mode, OK, "the main process alone is told, and sees to the others")


def _restart(facts: dict[str, str], _: bool) -> tuple[str, Answer]:
    restart = facts["Restart"]
    if restart == "no":
        return "Restart", (restart, WARN, "nobody starts it again when it is killed: Restart=on-failure")
    if restart in ("always", "on-success"):
        what = (
            "it is started again even when it ended on purpose, by drain, or as another took over: Restart=on-failure"
        )
        return "Restart", (restart, WARN, what)
    return "Restart", (
        restart,
        OK,
        "it is started again when it was killed or failed, and not when it ended in good order",
    )


def _reload(facts: dict[str, str], _: bool) -> tuple[str, Answer]:
    if facts.get("ExecReload"):
        return "ExecReload", ("set", OK, "systemctl reload upgrades")
    if facts["Type"] == "notify-reload":
        return "ExecReload", (
            "none",
            OK,
            "systemctl reload upgrades, by HUP; a failed upgrade is to be seen in the status alone",
        )
    return "ExecReload", ("none", WARN, "systemctl reload can't upgrade: ExecReload=fdhandoff-cli upgrade …")


def _clean_up(facts: dict[str, str], master: bool) -> tuple[str, Answer] | None:
    if not master or facts["KillMode"] != "process":
        return None
    if "--left-over" in facts.get("ExecStopPost", ""):
        return "ExecStopPost", ("set", OK, "what a killed master leaves, and nobody will go on with, is ended")
    what = "generations of a master that was killed as it stopped stay: ExecStopPost=fdhandoff-cli stop --left-over …"
    return "ExecStopPost", ("none", WARN, what)


def _store(facts: dict[str, str], master: bool) -> tuple[str, Answer] | None:
    if not master:
        return None
    most = facts["FileDescriptorStoreMax"]
    if most == "0":
        what = "what waits in the queues is reset when master and generations die at once: FileDescriptorStoreMax=64"
        return "FileDescriptorStoreMax", (most, WARN, what)
    return "FileDescriptorStoreMax", (most, OK, "so many queues outlive the death of everything, and a restart")


def _preserve(facts: dict[str, str], master: bool) -> tuple[str, Answer] | None:
    if not master or facts["KillMode"] != "process":
        return None
    keeps = facts["RuntimeDirectoryPreserve"]
    if keeps == "no":
        what = "where RuntimeDirectory= holds the handoff path, the next master does not find what a killed one left: =restart"
        return "RuntimeDirectoryPreserve", (keeps, WARN, what)
    return "RuntimeDirectoryPreserve", (keeps, OK, "the next master finds the journal of one that was killed")


def is_being_stopped(unit: str) -> bool:
    """Whether somebody asked for its end, so that there is no restart after it. Where systemd can't be asked: no."""
    return bool(unit) and show(unit, ["Job"]).get("Job", "0") not in ("", "0")
