"""What systemd knows of a unit, asked of ``systemctl``; and to which unit a process belongs, as its cgroup tells."""

from __future__ import annotations

import os
import subprocess

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


def is_being_stopped(unit: str) -> bool:
    """Whether somebody asked for its end, so that there is no restart after it. Where systemd can't be asked: no."""
    return bool(unit) and show(unit, ["Job"]).get("Job", "0") not in ("", "0")
