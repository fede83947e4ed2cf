"""``unit``: prints, or writes, what a service manager needs to run a command that can be upgraded in place."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from ..master.config import read_file
from ..master.options import Options
from ..supervisors.plan import Plan, check_name, check_user, stop_after
from .arguments import Parser, checked, duration
from .outcome import PROGRAM, REFUSED, Failure, UsageError
from .said import Said, add_settings, own_program, setting_named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from ..supervisors.plan import File

STARTS_A_COMMAND = True

KINDS = ("systemd", "supervisord", "s6", "runit", "circus", "openrc", "container", "kubernetes")
_ELSEWHERE = ("container", "kubernetes")  # where this machine's paths mean nothing
_NOT_HERE = (
    "user",
    "group",
    "ready-fd",
)  # whom it runs as, and how readiness is told, is for the service manager to say
_IMAGE = "python:3.13-slim"

EPILOG = """\
examples:
  fdhandoff-cli unit systemd --name web --user www-data --bind http=:80 --ready http:/healthz -- gunicorn app:app
  fdhandoff-cli unit systemd --name web --socket --bind :8080 --output /etc/systemd/system -- gunicorn app:app
  fdhandoff-cli unit supervisord --name web --bind :8080 --output /etc/supervisor/conf.d -- gunicorn app:app
  fdhandoff-cli unit s6 --name web --config /etc/web/run.toml
  fdhandoff-cli unit kubernetes --name web --image registry.example/web:7 --bind :8080 -- gunicorn app:app

All options of `run` can be said, and go into it. The service manager is told to wait for as long as the service may take to end
(--pre-stop-delay, --grace, --kill-after) before it kills.

exit status: 0 printed or written; 1 a file is there already, and differs; 2 wrong usage; 3 the system said no.
"""


def arguments(parser: Parser) -> None:
    parser.add_argument("kind", metavar="MANAGER", choices=KINDS, help=f"for whom: {', '.join(KINDS)}")
    parser.add_argument(
        "--output", metavar="DIRECTORY", default="",
        help="write the files there instead of printing them; as in --output /etc/systemd/system",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="with --output: replace files that differ")
    parser.add_argument("--user", type=checked(check_user), help="whom the service runs as; as in --user www-data")
    parser.add_argument("--group", type=checked(check_user), help="its group; as in --group www-data")
    parser.add_argument(
        "--stop-timeout", metavar="DURATION", type=duration,
        help="how long the manager waits before it kills (as long as the service may take); as in --stop-timeout 5m",
    )  # fmt: skip
    parser.add_argument("--socket", action="store_true", help="systemd binds the listeners (socket activation)")
    parser.add_argument(
        "--image", default="", help=f"container, kubernetes: the image that it is made from, or is ({_IMAGE})"
    )
    parser.add_argument(
        "--replicas", metavar="N", type=checked(_replicas), default=1, help="kubernetes: how many pods (1)"
    )
    parser.add_argument(
        "--program",
        metavar="PATH",
        default="",
        help=f"the {PROGRAM} that it starts (this one); as in --program /opt/bin/{PROGRAM}",
    )
    parser.add_argument(
        "--config", metavar="FILE", default="", help="the file that run is to read; as in --config /etc/app/run.toml"
    )
    add_settings(parser, _NOT_HERE)


def _replicas(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 10_000:
        raise ValueError(f"{text!r} is no number of pods")
    return int(text)


def run(options: Namespace) -> int:
    try:
        plan = _plan(options)
        files: list[File] = import_module(f"..supervisors.{options.kind}", __package__).files(plan)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.output:
        for file in files:
            print(f"wrote {_write(options.output, file, force=options.force)}")
    else:
        sys.stdout.write("\n".join(map(_shown, files)) if len(files) > 1 else files[0].text)
    sys.stdout.flush()
    return 0


def _plan(options: Namespace) -> Plan:
    if options.socket and options.kind != "systemd":
        raise ValueError("--socket is systemd's: no other manager binds the listeners")
    said = Said(options, _NOT_HERE)
    values = {**_from_file(options), **said.values}
    command = list(options.command or values.get("command") or ())
    values.pop("command", None)
    if not command or not command[0]:
        raise ValueError("say which command is to be run: after --, or as command = […] in the configuration file")
    words = [f"--config={os.path.abspath(options.config)}"] if options.config else []
    words += said.words(without=("name", "bind"))
    if options.kind == "kubernetes":
        from ..supervisors.kubernetes import NEEDED

        for name, text in NEEDED.items():
            setting = setting_named(name)
            if setting is not None and setting.attribute not in values:
                values[setting.attribute] = setting.read(text)
                words.append(f"--{name}={text}")
    read = Options(command, **values)
    words += _as_user(options)
    return Plan(
        check_name(values.get("name") or os.path.basename(command[0])),
        _program(options),
        words,
        list(options.command or ()),
        read,
        stop=_stop(options, read),
        binds=said.texts.get("binds", ()),
        user=(options.user or "") if _becomes(options) else "",
        group=(options.group or "") if _becomes(options) else "",
        socket=options.socket,
        image=options.image or _IMAGE,
        replicas=options.replicas,
    )


def _becomes(options: Namespace) -> bool:
    """Whether the manager makes all of the service that user's, the master included. What systemd binds is root's, and only
    root's master can give each generation a queue of its own."""
    return options.kind in _ELSEWHERE or (options.kind == "systemd" and not options.socket)


def _as_user(options: Namespace) -> list[str]:
    """Where the manager starts the service as root, it is ``run`` that becomes the user for the servers."""
    said = [(name, getattr(options, name)) for name in ("user", "group") if getattr(options, name)]
    if _becomes(options) or not said:
        return []
    return [f"--{name}={value}" for name, value in said]


def _from_file(options: Namespace) -> dict[str, Any]:
    """How long its end may take is to be known, so the file must be."""
    if not options.config:
        return {}
    try:
        return read_file(options.config)
    except FileNotFoundError:
        raise ValueError(f"there is no file {options.config}: what is written depends on what it says") from None


def _stop(options: Namespace, read: Options) -> float | None:
    longest = stop_after(read)
    said: float | None = options.stop_timeout
    if said is None:
        return longest
    if longest is None or said < longest:
        needed = "for ever" if longest is None else f"{longest:g} s"
        raise ValueError(
            f"--stop-timeout {said:g} s is too short: the service may take {needed} (--pre-stop-delay, --grace, "
            "--kill-after), and would be killed while it drains"
        )
    return said


def _program(options: Namespace) -> list[str]:
    """The words that start this program again."""
    if options.program:
        return [options.program]
    if options.kind in _ELSEWHERE:
        return [PROGRAM]
    return own_program()


# --- what is written ----------------------------------------------------------------------------------------


def _shown(file: File) -> str:
    executable = ", executable" if file.mode & 0o100 else ""
    return f"# --- {file.path}{executable}\n{file.text}"


def _write(directory: str, file: File, *, force: bool) -> str:
    """Replaces nothing that differs, unless it is to; and never half."""
    path = os.path.join(directory, file.name)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as there:
            if there.read() != file.text and not force:
                raise Failure(f"{path} is there already, and differs: --force replaces it", REFUSED)
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with open(temporary, "x", encoding="utf-8") as made:
            os.fchmod(made.fileno(), file.mode)
            made.write(file.text)
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    return path
