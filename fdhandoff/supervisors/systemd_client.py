"""Asking systemd, by ``systemctl``: no shell, and no library of its own."""

from __future__ import annotations

import subprocess

from ..errors import NOBODY, UNKNOWN, HandoffError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SHOWN = ("LoadState", "ActiveState", "MainPID", "Result", "StatusText")
_SHOW_SECONDS = 30.0


class Unit:
    """One service unit. ``user``: the user's own manager."""

    def __init__(self, name: str, *, user: bool = False) -> None:
        if not name or name.startswith("-") or not name.isprintable() or set(name) & set(" /\\*?["):
            raise ValueError(f"{name!r} can't be a unit's name")
        self.name = name if "." in name else f"{name}.service"
        if not self.name.endswith(".service"):
            raise ValueError(f"{name!r} is no service unit")
        self._own = ["--user"] if user else []

    def state(self) -> dict[str, str]:
        """What systemd says of it now. ``HandoffError`` where it knows no such unit."""
        done = self._run("show", "--property", ",".join(_SHOWN), timeout=_SHOW_SECONDS)
        if done.returncode:
            raise HandoffError(f"systemctl could not ask for {self.name}: {_last(done)}")
        said = dict(line.partition("=")[::2] for line in done.stdout.splitlines() if "=" in line)
        if said.get("LoadState") != "loaded":
            why = said.get("LoadState", "unknown")
            hint = (
                "systemctl daemon-reload, if its file is new" if why == "not-found" else f"systemctl status {self.name}"
            )
            raise HandoffError(f"systemd can't start {self.name} ({why}): {hint}")
        return said

    def start(self, timeout: float | None) -> None:
        """Returns when it has started; with ``Type=notify`` it serves then. After ``timeout`` seconds ``HandoffError``; systemd
        goes on starting it."""
        done = self._run("start", timeout=timeout)
        if done.returncode:
            raise HandoffError(
                f"systemd could not start {self.name}: {self.why(self.state()) or _last(done)} (journalctl -u {self.name})",
                serving=NOBODY,
            )

    @staticmethod
    def why(state: dict[str, str]) -> str:
        """Why it is not up: what it said last, or what systemd made of its end; empty where neither is known."""
        result = state.get("Result", "success")
        return state.get("StatusText") or (f"its result is {result}" if result != "success" else "")

    def _run(self, verb: str, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        command: list[Any] = ["systemctl", *self._own, "--no-ask-password", "--no-pager", verb, *words, "--", self.name]
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
            )
        except FileNotFoundError:
            raise Unsupported("there is no systemctl here: is this machine run by systemd?") from None
        except subprocess.TimeoutExpired:
            raise HandoffError(
                f"systemd did not {verb} {self.name} within {timeout:g} s: systemctl status {self.name}",
                serving=UNKNOWN,
            ) from None


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
