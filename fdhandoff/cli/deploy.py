"""``deploy``: starts a service where it isn't running, upgrades it where it is, waits, and says which it was."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from ..client import ask
from ..deadline import format_duration
from ..errors import NOBODY, OLD, UNKNOWN, DeadlineExceeded, HandoffError, InProgress, PeerRefused, UpgradeError
from ..system.process import exists, start_time
from .arguments import Parser, add_json, add_users, chosen_path, duration
from .outcome import NOTHING, PROGRAM, REFUSED, SYSTEM, USAGE, Failure, UsageError, code_of
from .release import add_release, release_named
from .said import Said, add_settings, own_program
from .target import find, owner_of
from .upgrade import Progress, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..supervisors.supervisord_client import Supervisord
    from ..supervisors.systemd_client import Unit

EPILOG = """\
examples:
  fdhandoff-cli deploy --supervisord web
  fdhandoff-cli deploy --systemd web.service --release link:/srv/web/current
  fdhandoff-cli deploy --name web --release 2.4.1
  fdhandoff-cli deploy --name web --bind :8080 --log /var/log/web.log -- /srv/web/current/bin/server
  fdhandoff-cli deploy --name web --release hash:/srv/web/server

Where nothing runs, --path or --name with a command (or --config) starts it in the background, as `run --daemon` does. Where it
runs, the command must be the one that it was started with, and the other options of `run` are not looked at.

Run again with the --release that serves already it does nothing. The release is shown by `status`.

exit status: 0 the release serves, and where it replaced another it passed its probation; 1 it does not, and the one before
serves; 2 wrong usage; 3 the system said no; 4 nothing serves.
"""

STARTS_A_COMMAND = True
_NOT_HERE = ("name", "path", "release", "allow-uid", "ready-fd")  # ours, or for a service manager

STARTED, UPGRADED, UNCHANGED = "started", "upgraded", "unchanged"
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_BIRTH_SECONDS = 10.0
_SHOWN = 80  # letters of a command in a sentence


def arguments(parser: Parser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--supervisord", metavar="PROGRAM", help="a program of supervisord's; as in --supervisord web")
    where.add_argument("--systemd", metavar="UNIT", help="a unit of systemd's; as in --systemd web.service")
    where.add_argument(
        "--path", metavar="PATH", help="the handoff path of a service; as in --path /run/web/handoff.sock"
    )
    where.add_argument("--name", help="the service's name, whose path lies in the runtime directory; as in --name web")
    parser.add_argument("--user-manager", action="store_true", help="with --systemd: a unit of the user's own manager")
    parser.add_argument(
        "--supervisord-conf", metavar="FILE", default="",
        help="supervisord's configuration, which says where it answers (where supervisorctl looks)",
    )  # fmt: skip
    add_release(parser)
    parser.add_argument("--again", action="store_true", help="upgrade, too, where the named release serves already")
    parser.add_argument(
        "--timeout", metavar="DURATION", type=duration, default=None,
        help="how long to wait for the outcome (for ever); as in --timeout 5m",
    )  # fmt: skip
    add_json(parser)
    add_users(parser, "an owner besides us and root who is believed")
    starting = parser.add_argument_group("to start with --path or --name what does not run", "The options of run:")
    starting.add_argument("--config", metavar="FILE", default="", help="its file; as in --config /etc/app/run.toml")
    add_settings(starting, _NOT_HERE)


def run(options: Namespace) -> int:
    release = release_named(options.release)
    try:
        deployment = _deployment(options, release)
        with deployment.alone():
            answer = deployment.deploy()
    except HandoffError as error:
        facts = error.answer if isinstance(error, PeerRefused) else {}
        if not options.json:
            return explain(error, facts)
        result = (facts.get("upgrade") or {}).get("result", "failed")
        print(json.dumps({"schema": 1, "result": result, "serving": error.serving, "error": str(error), **facts}))
        return code_of(error)
    print(json.dumps({"schema": 1, **answer}) if options.json else sentence(answer))
    sys.stdout.flush()
    return 0


def sentence(answer: dict[str, Any]) -> str:
    named = f" (release {answer['release']})" if answer["release"] else ""
    number = f"generation {answer['generation']}"
    if answer["result"] == UNCHANGED:
        return f"unchanged: {number}{named} serves already"
    if answer["result"] == STARTED:
        return f"started: {number}{named} serves"
    upgrade = answer["upgrade"]
    if upgrade is None:
        return f"upgraded: {number}{named} serves"
    return f"upgraded: {number}{named} serves instead of {upgrade['from']}, after {format_duration(upgrade['seconds'])}"


def _deployment(options: Namespace, release: str) -> Deployment:
    if options.user_manager and options.systemd is None:
        raise UsageError("--user-manager says which systemd: it belongs to --systemd")
    if options.supervisord_conf and options.supervisord is None:
        raise UsageError("--supervisord-conf belongs to --supervisord")
    said = Said(options, _NOT_HERE).words()
    if (options.command or options.config or said) and options.path is None and options.name is None:
        raise UsageError(
            "what is started is for the service manager to say: a command and its options belong to --path or --name"
        )
    if options.supervisord is not None:
        from ..supervisors.supervisord_client import Server, Supervisord

        return BySupervisord(options, release, Supervisord(Server.from_file(options.supervisord_conf, os.environ)))
    if options.systemd is not None:
        from ..supervisors.systemd_client import Unit

        try:
            return BySystemd(options, release, Unit(options.systemd, user=options.user_manager))
        except ValueError as error:
            raise UsageError(str(error)) from None
    return ByPath(options, release, said)


class Deployment:
    """One service, whoever starts it. ``what``: how it is called in sentences."""

    what = ""

    def __init__(self, options: Namespace, release: str) -> None:
        self.options = options
        self.release = release
        self.deadline = None if options.timeout is None else time.monotonic() + options.timeout

    def lock_path(self) -> str:
        """A file by which two deployments of the same service know of each other."""
        from ..system.paths import default_path

        return os.path.join(os.path.dirname(default_path("deploy", os.environ)), f"{self.what.replace('/', '-')}.lock")

    def deploy(self) -> dict[str, Any]:
        raise NotImplementedError

    # --- the same for all -------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """``InProgress`` while another deployment of this service is under way."""
        path = self.lock_path()
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    break
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EWOULDBLOCK:
                    raise InProgress(f"another deployment of {self.what} is under way: wait for its outcome") from None
                raise
            os.close(fd)  # its owner has just removed it
        try:
            yield
        finally:
            if _is_at(fd, path):
                os.unlink(path)
            os.close(fd)

    def time_left(self) -> float | None:
        """``DeadlineExceeded`` when there is none."""
        if self.deadline is None:
            return None
        left: float = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"{self.what} was not ready within {format_duration(self.options.timeout)}: it may still become so",
                serving=UNKNOWN,
            )
        return left

    def upgrade(self, path: str, allow_uids: list[int]) -> dict[str, Any]:
        status = ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=allow_uids)
        serving = _serving(status)
        if self.release and serving.get("release") == self.release and not self.options.again:
            return _answer(UNCHANGED, status)
        body: dict[str, Any] = {"wait": "final", **({"release": self.release} if self.release else {})}
        progress = None if self.options.json else Progress()
        try:
            done = ask(
                path, "upgrade", body, timeout=self.time_left(), allow_uids=allow_uids,
                on_event=None if progress is None else progress.show,
            )  # fmt: skip
        finally:
            if progress is not None:
                progress.end()
        upgrade = done.get("upgrade")
        if upgrade is None:  # a program that replaces itself
            return {**_answer(UPGRADED, done), "release": self.release or None}
        return {
            **_answer(UPGRADED, ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=allow_uids)),
            "upgrade": upgrade,
        }

    def started(self, path: str, allow_uids: list[int]) -> dict[str, Any]:
        """The first generation serves: from here on it is called what it was said to be."""
        status = ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=allow_uids)
        if self.release and status.get("master"):
            body = {"generation": status["generation"], "release": self.release}
            ask(path, "release", body, timeout=_ANSWER_SECONDS, allow_uids=allow_uids)
            status = ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=allow_uids)
        return _answer(STARTED, status)

    def trusted(self, pid: int) -> list[int]:
        """Who may answer: whom the service manager runs the service as, too."""
        owner = owner_of(pid)
        return [*self.options.allow_uid, *([owner] if owner is not None else [])]


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _serving(status: dict[str, Any]) -> dict[str, Any]:
    number = status.get("generation")
    return next((one for one in status.get("generations") or () if one.get("number") == number), {})


def _answer(result: str, status: dict[str, Any]) -> dict[str, Any]:
    return {
        "result": result,
        "generation": status.get("generation"),
        "pid": status.get("pid"),
        "release": _serving(status).get("release"),
        "upgrade": None,
    }


# --- by its path ----------------------------------------------------------------------------------------------


def _short(command: list[str]) -> str:
    text = " ".join(shlex.join(command).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class ByPath(Deployment):
    """A service that somebody has started, or that we start in the background. ``said``: options of ``run``, for that."""

    def __init__(self, options: Namespace, release: str, said: list[str]) -> None:
        super().__init__(options, release)
        self._starts = bool(options.command or options.config)
        if said and not self._starts:
            raise UsageError("say what is to be started with these options: -- COMMAND, or --config FILE")
        self.path = chosen_path(options, create=self._starts)
        self.what = f"the service at {self.path}"
        self._said = said

    def lock_path(self) -> str:
        if not os.path.isdir(os.path.dirname(self.path) or "."):
            raise Failure(f"nobody serves at {self.path}, and its directory does not exist: make it first", NOTHING)
        return f"{self.path}.deploy"

    def deploy(self) -> dict[str, Any]:
        trusted = self.options.allow_uid
        try:
            status = ask(self.path, "status", timeout=_ANSWER_SECONDS, allow_uids=trusted)
        except HandoffError as error:
            if error.serving != NOBODY:
                raise
            if not self._starts:
                raise HandoffError(f"{error}; to start it say -- COMMAND, or --config FILE", serving=NOBODY) from None
            self._start()
            return self.started(self.path, trusted)
        self._compare(_serving(status).get("command"))
        return self.upgrade(self.path, trusted)

    def _compare(self, runs: list[str] | None) -> None:
        """An upgrade starts what the master was told to start, whatever is said here."""
        said = self.options.command
        if said and runs and said != runs:
            raise UpgradeError(
                f"{self.what} runs {_short(runs)}, and an upgrade starts that again, not {_short(said)}: let the command lead "
                "through a link, or put it into --config",
                serving=OLD,
            )

    def _start(self) -> None:
        """Returns when the service is ready. In a directory that stays, for it may be looked up again at each upgrade."""
        named = ["--name", self.options.name] if self.options.name is not None else ["--path", self.path]
        config = [f"--config={self.options.config}"] if self.options.config else []
        command = ["--", *self.options.command] if self.options.command else []
        words = [*own_program(), "run", "--daemon", *named, *config, *self._said, *command]
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as starter:
            try:
                _, told = starter.communicate(timeout=self.time_left())
            except subprocess.TimeoutExpired:
                starter.send_signal(signal.SIGINT)  # which gives the start up
                starter.communicate()
                raise DeadlineExceeded(
                    f"{self.what} was not ready within {format_duration(self.options.timeout)}: its start was given up",
                    serving=NOBODY,
                ) from None
        if starter.returncode:
            lines = [line.removeprefix(f"{PROGRAM}: ") for line in told.splitlines() if line.strip()]
            why = lines[-1] if lines else f"exit status {starter.returncode}"
            if len(lines) > 1:
                why += f" (its last words: {lines[-2]})"
            if starter.returncode == USAGE:
                raise UsageError(why)
            raise HandoffError(f"{self.what} could not be started: {why}", serving=NOBODY)


# --- by supervisord -------------------------------------------------------------------------------------------


class BySupervisord(Deployment):
    def __init__(self, options: Namespace, release: str, supervisord: Supervisord) -> None:
        super().__init__(options, release)
        self.name: str = options.supervisord
        self.what = f"supervisord's {self.name}"
        self._supervisord = supervisord

    def deploy(self) -> dict[str, Any]:
        from ..supervisors.supervisord_client import RUNNING, STARTING, STOPPING

        program = self._supervisord.program(self.name)
        if program.state == STOPPING:
            raise HandoffError(f"{self.what} is being stopped: wait until it has ended", serving=OLD)
        if program.state not in (STARTING, RUNNING):
            self._start()
            path, trusted = self._await()
            return self.started(path, trusted)
        path, trusted = self._await()
        return self.upgrade(path, trusted)

    def _start(self) -> None:
        try:
            self._supervisord.start(self.name)
        except HandoffError as error:
            words = self._supervisord.last_words(self.name)
            if not words or error.serving != NOBODY:
                raise
            raise HandoffError(f"{error} (its last words: {words})", serving=NOBODY) from None

    def _await(self) -> tuple[str, list[int]]:
        """The service's path, once its first generation serves."""
        from ..supervisors.supervisord_client import RUNNING, STARTING

        def ended() -> int:
            program = self._supervisord.program(self.name)
            if program.state not in (STARTING, RUNNING):
                why = self._supervisord.last_words(self.name) or program.reason
                raise HandoffError(f"{self.what} did not stay up ({program.word}): {why}", serving=NOBODY)
            return program.pid

        return _when_serving(self, ended, f"supervisord runs {self.name!r}")


def _when_serving(deployment: Deployment, pid_of: Callable[[], int], who: str) -> tuple[str, list[int]]:
    """``pid_of`` raises when there is nothing left to wait for. The path, and who is believed there."""
    while True:
        pid = pid_of()
        trusted = deployment.trusted(pid)
        try:
            path = find(pid, trusted)
            state = ask(path, "status", timeout=_ANSWER_SECONDS, allow_uids=trusted).get("state")
            if state != "starting":
                return path, trusted
        except (HandoffError, Failure) as error:
            if isinstance(error, Failure) and error.code == SYSTEM:
                raise  # whose it is, and who may ask
            # It has not opened its path yet, or it is no service of ours.
            if not _starts_now(pid):
                raise Failure(
                    f"{who} as process {pid}, which answers no handoff path: let it start the program by `fdhandoff-cli run` "
                    "(fdhandoff-cli unit prints how)",
                    REFUSED,
                ) from None
        deployment.time_left()
        time.sleep(_LOOK_SECONDS)


def _starts_now(pid: int) -> bool:
    """Whether the process is so young that it may not have come to opening its path."""
    born = start_time(pid)
    if not born:
        return not exists(pid)  # then whoever runs it knows more
    return time.clock_gettime(time.CLOCK_BOOTTIME) - born / os.sysconf("SC_CLK_TCK") < _BIRTH_SECONDS


# --- by systemd -----------------------------------------------------------------------------------------------


class BySystemd(Deployment):
    def __init__(self, options: Namespace, release: str, unit: Unit) -> None:
        super().__init__(options, release)
        self.what = f"systemd's {unit.name}"
        self._unit = unit

    def deploy(self) -> dict[str, Any]:
        state = self._unit.state()
        active = state.get("ActiveState")
        if active == "deactivating":
            raise HandoffError(f"{self.what} is being stopped: wait until it has ended", serving=OLD)
        if active == "reloading":
            raise InProgress(f"{self.what} is being reloaded: wait for its outcome")
        if active != "active":
            self._unit.start(self.time_left())
            path, trusted = self._await()
            return self.started(path, trusted)
        path, trusted = self._await()
        return self.upgrade(path, trusted)

    def _await(self) -> tuple[str, list[int]]:
        def main_pid() -> int:
            state = self._unit.state()
            active, pid = state.get("ActiveState", "unknown"), int(state.get("MainPID") or 0)
            if active not in ("active", "activating", "reloading") or not pid:
                raise HandoffError(
                    f"{self.what} did not stay up: {self._unit.why(state) or active} (journalctl -u {self._unit.name})",
                    serving=NOBODY,
                )
            return pid

        return _when_serving(self, main_pid, f"systemd runs {self._unit.name}")
