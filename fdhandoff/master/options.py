"""What ``run`` was told, as values: read from the command line and, at each upgrade again, from the configuration file."""

from __future__ import annotations

import os
import stat

from ..deadline import parse_duration
from ..system.sockets import parse_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    import time
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

KERNEL = "kernel"
SHARED = "shared"

# From whom a service is taken over at the start: from anybody but another master, from anybody, from nobody.
AUTO, ALWAYS, NEVER = "auto", "always", "never"

# What becomes of a new release that is there: the service moves to it; the next upgrade does; one that names it does.
AT_ONCE, NEXT, ON_REQUEST = "upgrade", "next", "fetch"

READY_KINDS = ("accept", "notify", "http", "command", "delay")


_LINK = "link:"
_RELEASE_MAX = 200
_SETTINGS_MAX = 1 << 20


class CanaryStep:
    """``share`` (a fraction) of the new connections for ``seconds``."""

    __slots__ = ("seconds", "share")

    def __init__(self, share: float, seconds: float) -> None:
        self.share = share
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"CanaryStep({self.share}, {self.seconds})"


def parse_canary(text: str) -> list[CanaryStep]:
    """``5%:60s,50%:60s``. ``ValueError`` with what is wrong."""
    steps: list[CanaryStep] = []
    for part in filter(None, text.split(",")):
        percent, colon, duration = part.partition(":")
        try:
            share = float(percent.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not percent.endswith("%") or not colon or not 0 < share <= 1:
            raise ValueError(f"{part!r} is not a canary step: say 5%:60s, from above 0 to 100 percent")
        if steps and share < steps[-1].share:
            raise ValueError(f"{part!r} would take users back that the step before has given: shares only grow")
        steps.append(CanaryStep(share, parse_duration(duration)))
    return steps


def forbid_canary(steps: list[CanaryStep], options: Options) -> None:
    """``ValueError`` where there is no switch that could split the connections."""
    if not steps:
        return
    if options.switch != KERNEL:
        raise ValueError("a canary needs the kernel switch: one queue for all generations can't be split")
    for text in options.binds:
        if parse_bind(text).kind not in ("tcp", "udp"):
            raise ValueError(f"a canary is not to be had on {text}: a Unix socket switches as a whole")


class MemoryLimit:
    """``size`` bytes for one worker, looked at every so many ``seconds``."""

    __slots__ = ("seconds", "size")

    def __init__(self, size: int, seconds: float) -> None:
        self.size = size
        self.seconds = seconds


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MEMORY_SECONDS = 30.0


def parse_memory(text: str) -> MemoryLimit:
    """``512M``, ``1.5G``, ``512M:10s``. ``ValueError`` with what is wrong."""
    size, colon, every = text.partition(":")
    number = size.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in "KMG" else ""
    digits = number.removesuffix(unit)
    if not digits.replace(".", "", 1).isdigit() or not digits.isascii() or not float(digits) * _UNITS[unit] >= 1:
        raise ValueError(f"{text!r} is no amount of memory: say 512M, or 512M:10s to look every 10 seconds")
    seconds = parse_duration(every) if colon else _MEMORY_SECONDS
    if not seconds:
        raise ValueError(f"{text!r} would be looked at all the time: say 512M:10s")
    return MemoryLimit(int(float(digits) * _UNITS[unit]), seconds)


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60


class Window:
    """When upgrades may begin by themselves, local time: ``Mon-Fri 02:00-04:00``, several separated by commas; one that passes
    midnight belongs to the day on which it begins. ``ValueError`` with what is wrong."""

    __slots__ = ("_spans", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._spans: list[tuple[int, int, int]] = []
        for part in text.split(","):
            words = part.split()
            try:
                days, hours = ("Mon-Sun", *words) if len(words) == 1 else words
                (begin, end), week = (
                    map(_minute, hours.split("-")),
                    [_DAYS.index(day) for day in days.lower().split("-")],
                )
            except ValueError:
                raise ValueError(f"{part.strip()!r} is no window: say 02:00-04:00, or Mon-Fri 02:00-04:00") from None
            first, last = week[0], week[-1]
            for day in range(first, last + 1 if last >= first else last + 8):
                self._spans.append((day % 7, begin, end if end > begin else end + _DAY))

    def __str__(self) -> str:
        return self._text

    def is_open(self, now: time.struct_time) -> bool:
        minute = now.tm_hour * 60 + now.tm_min
        return any(begin <= minute + _DAY * ((now.tm_wday - day) % 7) < end for day, begin, end in self._spans)


def _minute(text: str) -> int:
    hour, colon, minute = text.partition(":")
    if not (colon and hour.isdigit() and minute.isdigit() and int(minute) < 60):
        raise ValueError(text)
    found = int(hour) * 60 + int(minute)
    if found > _DAY:
        raise ValueError(text)
    return found


class Readiness:
    """How a generation shows that it can serve: ``kind`` and its ``argument`` (a path, a command, seconds)."""

    __slots__ = ("argument", "kind")

    def __init__(self, kind: str, argument: str = "") -> None:
        self.kind = kind
        self.argument = argument

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind


def parse_readiness(text: str) -> Readiness:
    """``accept``, ``notify``, ``http:PATH``, ``command:COMMAND``, ``delay:SECONDS``."""
    kind, _, argument = text.partition(":")
    if kind not in READY_KINDS:
        raise ValueError(f"{text!r} is no readiness: say accept, notify, http:PATH, command:COMMAND or delay:SECONDS")
    if kind == "http" and not argument.startswith("/"):
        raise ValueError(f"{text!r}: an HTTP readiness names a path, such as http:/healthz")
    if kind == "delay":
        parse_duration(argument)
    if kind == "command" and not argument:
        raise ValueError("command: names no command")
    return Readiness(kind, argument)


# The signal that makes a known server finish what it has and end; TERM would cut it short there.
_DRAIN_SIGNALS = {"nginx": "SIGQUIT", "haproxy": "SIGUSR1"}


def drain_signal_of(command: Sequence[str]) -> str:
    return _DRAIN_SIGNALS.get(os.path.basename(command[0]), "SIGTERM") if command else "SIGTERM"


class Limit:
    """A resource limit of the command's processes: ``resource`` as the system numbers it, -1 for none."""

    __slots__ = ("hard", "name", "resource", "soft")

    def __init__(self, name: str, resource: int, soft: int, hard: int) -> None:
        self.name = name
        self.resource = resource
        self.soft = soft
        self.hard = hard

    def __repr__(self) -> str:
        return f"Limit({self.name!r}, {self.soft}, {self.hard})"


def parse_limit(text: str) -> Limit:
    """``NOFILE=20000``, ``as=2G``, ``core=0:unlimited`` (soft and hard). ``ValueError`` with what is wrong."""
    import resource  # late: most have none

    name, equals, values = text.partition("=")
    number = getattr(resource, f"RLIMIT_{name.upper().removeprefix('RLIMIT_')}", None)
    if not equals or not isinstance(number, int):
        known = sorted(one.removeprefix("RLIMIT_").lower() for one in dir(resource) if one.startswith("RLIMIT_"))
        raise ValueError(f"{text!r} is no limit: say NAME=SOFT or NAME=SOFT:HARD, NAME one of {', '.join(known)}")
    soft_text, colon, hard_text = values.partition(":")
    soft = _amount(soft_text)
    hard = _amount(hard_text) if colon else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError(f"{text!r}: the soft limit is above the hard one")
    return Limit(name.lower().removeprefix("rlimit_"), number, soft, hard)


def _amount(text: str) -> int:
    if text in ("unlimited", "infinity"):
        return -1
    letter = text[-1:].upper()
    unit = _UNITS.get(letter, 1)
    digits = text[:-1] if letter in _UNITS else text
    if not (digits.isascii() and digits.isdigit()) or int(digits) * unit >= 2**63:
        raise ValueError(f"{text!r} is no amount: say a number, 512M, 2G or unlimited")
    return int(digits) * unit


class Options:
    """All of it. Durations are seconds; ``None`` where the documentation says "for ever"."""

    __slots__ = (
        "adopt",
        "allow_uids",
        "binds",
        "canary",
        "check",
        "chroot",
        "command",
        "config",
        "conventions",
        "death_signal",
        "defused",
        "directory",
        "drain_signal",
        "env",
        "env_file",
        "every",
        "fetch_max",
        "fetch_timeout",
        "grace",
        "group",
        "health",
        "health_file",
        "jitter",
        "keep_old",
        "keep_releases",
        "kill_after",
        "kill_old",
        "last_lines",
        "limits",
        "log",
        "log_format",
        "max_draining",
        "name",
        "no_new_privileges",
        "old_signal",
        "on_failure",
        "on_success",
        "once",
        "path",
        "pidfile",
        "place",
        "post_switch",
        "pre_start",
        "pre_stop_delay",
        "prefix",
        "probation",
        "ready",
        "ready_fd",
        "ready_timeout",
        "release",
        "releases",
        "remarks",
        "restart_every",
        "server",
        "settle",
        "socket_group",
        "socket_mode",
        "source",
        "switch",
        "takeover",
        "umask",
        "unverified",
        "user",
        "verify",
        "watch",
        "watch_mode",
        "watch_required",
        "watchdog",
        "webhook_secret",
        "webhooks",
        "window",
        "worker_lifetime",
        "worker_memory",
        "workers",
    )

    def __init__(self, command: Sequence[str], **values: Any) -> None:
        self.command = list(command)
        self.name: str = "service"
        self.path: str | None = None
        self.binds: list[str] = []
        self.switch = KERNEL
        self.adopt: list[int] = []
        self.old_signal = ""
        self.kill_old = False
        self.takeover = AUTO
        self.source = ""
        self.workers = 1
        self.ready = Readiness("accept")
        self.ready_timeout = 60.0
        self.ready_fd = -1
        self.watchdog = "loop"
        self.check = ""
        self.canary: list[CanaryStep] = []
        self.settle = 1.0
        self.probation = 10.0
        self.pre_start = ""
        self.post_switch = ""
        self.on_success = ""
        self.on_failure = ""
        self.webhooks: list[str] = []
        self.webhook_secret = ""
        self.pre_stop_delay = 0.0
        self.grace: float | None = 30.0
        self.kill_after = 10.0
        self.drain_signal = ""
        self.death_signal = ""
        self.release = ""
        self.watch = ""
        self.every = 30.0
        self.jitter = 0.0
        self.window: Window | None = None
        self.once = False
        self.watch_mode = AT_ONCE
        self.watch_required = False
        self.releases = ""
        self.keep_releases = 5
        self.verify = ""
        self.unverified = False
        self.fetch_timeout = 600.0
        self.fetch_max = 1 << 30
        self.place = ""  # of the release, for the options of one generation
        self.max_draining = 3
        self.env: list[str] = []
        self.env_file = ""
        self.directory = ""
        self.config = ""
        self.conventions: list[str] = []
        self.keep_old = 0.0
        self.last_lines: int | None = None  # it depends on where our standard error leads
        self.prefix = False
        self.restart_every: float | None = None
        self.worker_lifetime: float | None = None
        self.worker_memory: MemoryLimit | None = None
        self.pidfile = ""
        self.log = ""
        self.umask: int | None = None
        self.user = ""
        self.group = ""
        self.chroot = ""
        self.limits: list[Limit] = []
        self.no_new_privileges = False
        self.log_format = "text"
        self.health = ""
        self.health_file = ""
        self.socket_mode = 0o600
        self.socket_group = ""
        self.allow_uids: list[int] = []
        self.server = "auto"
        self.defused: dict[str, str] = {}  # what a server that was recognised is told by its environment
        self.remarks: list[str] = []  # and what an operator is told of it
        for key, value in values.items():
            if key not in self.__slots__:
                raise TypeError(f"run has no option {key!r}")
            setattr(self, key, value)

    def replaced(self, values: Mapping[str, Any]) -> Options:
        """A copy with some options changed."""
        merged = {key: getattr(self, key) for key in self.__slots__ if key != "command"}
        merged.update(values)
        return Options(merged.pop("command", self.command), **merged)

    @property
    def stop_signal(self) -> str:
        return self.drain_signal or drain_signal_of(self.command)


def parse_release(text: str) -> str:
    """``ValueError`` unless it can be shown: one line, and not too long."""
    if not text or text == _LINK or len(text) > _RELEASE_MAX or not text.isprintable():
        raise ValueError(f"{text!r} can't name a release: say up to {_RELEASE_MAX} letters in one line, or {_LINK}PATH")
    return text


def release_of(text: str) -> str:
    """What the release is called now: ``text``, or with ``link:PATH`` the last part of what the symbolic link leads to.
    ``ValueError`` where there is no such link."""
    path = text.removeprefix(_LINK)
    if path == text:
        return text
    try:
        target = os.readlink(path).rstrip("/")
    except OSError as error:
        raise ValueError(
            f"the release is to be read from {path}, which is no symbolic link ({error.strerror})"
        ) from None
    return parse_release(os.path.basename(target) or target)


RELEASE = "{release}"


def origin_of(watch: str) -> str:
    """The path that a source on this machine watches: in a command it stands for the release. Empty for others."""
    word, _, path = watch.partition(":")
    return os.path.abspath(path) if word in ("file", "symlink") else ""


def for_release(options: Options, tag: str, place: str, origin: str) -> Options:
    """A generation's own options: what says ``{release}``, or begins with the path ``origin``, leads to ``place`` from its
    first process to its last, whatever the source has meanwhile."""

    def put(text: str) -> str:
        text = text.replace(RELEASE, place)
        inside = origin and (text == origin or text.startswith(f"{origin}/"))
        return place + text[len(origin) :] if inside else text

    ready = options.ready
    return options.replaced(
        {
            "command": [put(word) for word in options.command],
            "env": ["=".join((name, put(value))) for name, _, value in (text.partition("=") for text in options.env)],
            "ready": Readiness(ready.kind, put(ready.argument)) if ready.kind == "command" else ready,
            **{
                name: put(getattr(options, name))
                for name in ("directory", "env_file", "check", "pre_start", "post_switch", "on_success", "on_failure")
            },
            "release": tag,
            "place": place,
        }
    )


def settings_in(path: str) -> bytes:
    """What is in a file that somebody wrote by hand, and that is read again for each generation: neither a pipe, which would
    hold us up, nor a device without end. ``ValueError`` where it is."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is no regular file, and is to be read again at each upgrade: name one")
        data = piece = os.read(fd, _SETTINGS_MAX + 1)
        while piece and len(data) <= _SETTINGS_MAX:
            piece = os.read(fd, _SETTINGS_MAX + 1)
            data += piece
    finally:
        os.close(fd)
    if len(data) > _SETTINGS_MAX:
        raise ValueError(f"{path} is larger than {_SETTINGS_MAX >> 20} MiB: it can't be meant")
    return data


def read_env_file(path: str) -> dict[str, str]:
    """``NAME=value`` lines; blank ones and ``#`` comments are skipped, quotes around a value are taken off. ``ValueError`` with
    the line that is none."""
    found: dict[str, str] = {}
    for number, raw in enumerate(settings_in(path).split(b"\n"), 1):
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number}: {raw[:40]!r} is not text in UTF-8") from None
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.removeprefix("export ").partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"{path}, line {number}: {text!r} is not NAME=value")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def assignments(texts: Iterable[str]) -> dict[str, str]:
    """``NAME=value`` each, from ``--env``. ``ValueError`` otherwise."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{text!r} is not NAME=value")
        found[name] = value
    return found
