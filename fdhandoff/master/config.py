"""The options of ``run``: their names, how each is read, and what is said of it; from the command line, and from a TOML file
that is read again at each upgrade. What the command line says counts more than the file.
"""

from __future__ import annotations

import os
import signal
import sys

from ..deadline import parse_duration
from ..system.access import find_account, parse_group, parse_mode, parse_user
from ..system.paths import state_directory
from ..system.sockets import parse_bind
from .conventions import CONVENTIONS, NGINX, REUSEPORT
from .options import (
    ALWAYS,
    AT_ONCE,
    AUTO,
    KERNEL,
    NEVER,
    NEXT,
    ON_REQUEST,
    RELEASE,
    SHARED,
    Options,
    Window,
    assignments,
    forbid_canary,
    origin_of,
    parse_canary,
    parse_limit,
    parse_memory,
    parse_readiness,
    parse_release,
    read_env_file,
    release_of,
)
from .splitting import split_words
from .toml import Reader, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Read = Callable[[str], Any]


def _text(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


def _words(text: str) -> str:
    """A command in one option: it must be possible to split it."""
    split_words(text)
    return _text(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 10_000:
        raise ValueError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 1000:
        raise ValueError(f"{text!r} is not a number from 0 to 1000")
    return int(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 <= int(text) < 2**20:
        raise ValueError(f"{text!r} is no descriptor: say its number")
    return int(text)


def _lifetime(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("a worker that lives for no time serves nobody")
    return seconds


def _interval(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("it would be over before it begins")
    return seconds


def _size(text: str) -> int:
    if ":" in text:
        raise ValueError(f"{text!r} is no size: say 200M")
    return parse_memory(text).size


def _source(text: str) -> str:
    word, colon, where = text.partition(":")
    if not colon or not where or not word.replace("-", "").isalnum():
        raise ValueError(f"{text!r} is no source: say file:PATH, symlink:PATH, or another one's name and a colon")
    return text


def _url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    host = rest.partition("/")[0].partition("?")[0]
    if scheme not in ("http", "https") or not host or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is no URL: say https://HOST/PATH")
    if "@" in host:
        raise ValueError("a password in a URL is seen by everybody: what signs a webhook belongs into --webhook-secret")
    return text


def _user(text: str) -> str:
    parse_user(text)
    return text


def _group(text: str) -> str:
    parse_group(text)
    return text


def _grace(text: str) -> float | None:
    return None if text == "forever" else parse_duration(text)


def _address(text: str) -> str:
    parse_bind(text)
    return text


def _assignment(text: str) -> str:
    assignments([text])
    return text


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 < int(text) < 1 << 22:
        raise ValueError(f"{text!r} is no process id")
    return int(text)


def _signal(text: str) -> str:
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if name not in signal.Signals.__members__:
        raise ValueError(f"{text!r} is no signal: say TERM, QUIT, USR1, …")
    return name


def one_of(*words: str) -> Read:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
        return text

    return read


class Setting:
    """One option: the ``attribute`` of ``Options`` that it sets, and what ``--help`` and the reference say of it.
    ``repeat``: a list of them. ``flag``: it takes no argument; in a file it is ``true`` or ``false``."""

    __slots__ = ("attribute", "default", "example", "flag", "help", "metavar", "name", "read", "repeat")

    def __init__(
        self,
        name: str,
        read: Read,
        metavar: str,
        default: str,
        example: str,
        help: str,
        *,
        attribute: str = "",
        repeat: bool = False,
        flag: bool = False,
    ) -> None:
        self.name = name
        self.read = read
        self.metavar = metavar
        self.default = default
        self.example = example
        self.help = help
        self.attribute = attribute or name.replace("-", "_")
        self.repeat = repeat
        self.flag = flag


SETTINGS = [
    Setting("bind", _address, "[NAME=]ADDRESS", "none", "http=127.0.0.1:8000",
            "HOST:PORT, [v6]:PORT, :PORT, udp:…, unix:PATH or @NAME, with options such as ?backlog=512 or ?mode=0660 behind it",
            attribute="binds", repeat=True),
    Setting("name", _text, "NAME", "the command's name", "app", "the service's name"),
    Setting("path", _text, "PATH", "NAME/handoff.sock in the runtime directory", "/run/app/handoff.sock",
            "the handoff path, a Unix socket"),
    Setting("socket-mode", parse_mode, "MODE", "0600", "0660", "permissions of the handoff path"),
    Setting("socket-group", _text, "GROUP", "ours", "deploy", "group of the handoff path"),
    Setting("allow-uid", parse_user, "USER", "none", "1001",
            "who may ask, take and give besides this user and root", attribute="allow_uids", repeat=True),
    Setting("workers", _number, "N", "1", "4", "processes in a generation, sharing its queue"),
    Setting("switch", one_of(KERNEL, SHARED), "HOW", KERNEL, SHARED,
            "kernel: an accept queue per generation; shared: one for all, for systems that lack the other"),
    Setting("takeover", one_of(AUTO, ALWAYS, NEVER), "WHEN", AUTO, ALWAYS,
            "take over from a live owner at the path: auto, but not from another master; always; never"),
    Setting("from", _text, "PATH", "the service's own", "/run/app/hold.sock",
            "take over from the owner at this path, who must be there", attribute="source"),
    Setting("ready", parse_readiness, "WAY", "accept", "http:/healthz",
            "how a new generation shows that it can serve: accept, notify, http:PATH, command:COMMAND or delay:DURATION"),
    Setting("ready-timeout", parse_duration, "DURATION", "60s", "2m", "how long that may take"),
    Setting("ready-fd", _descriptor, "N", "none", "3",
            "write a newline to this inherited descriptor, and close it, when the service is ready (s6's notification-fd)"),
    Setting("watchdog", one_of("loop", "serving"), "WHAT", "loop", "serving",
            "under systemd's WatchdogSec=, give the sign of life for the master's loop alone, or only while the serving "
            "generation is ready, too"),
    Setting("check", _words, "COMMAND", "none", "nginx -t", "must exit 0 before a new generation is started"),
    Setting("pre-start", _words, "COMMAND", "none", "./migrate",
            "runs before each generation is started; unless it exits 0 that is not"),
    Setting("post-switch", _words, "COMMAND", "none", "./announce",
            "runs whenever new connections go to another generation from now on"),
    Setting("on-success", _words, "COMMAND", "none", "./announce",
            "runs after each upgrade that passed its probation"),
    Setting("on-failure", _words, "COMMAND", "none", "./alarm",
            "runs after each upgrade that failed or was rolled back"),
    Setting("webhook", _url, "URL", "none", "https://hooks.example/web",
            "is sent what became of each upgrade, as JSON", attribute="webhooks", repeat=True),
    Setting("webhook-secret", _text, "FILE", "FDHANDOFF_WEBHOOK_SECRET", "/etc/web/webhook.secret",
            "what signs it is in this file"),
    Setting("canary", parse_canary, "STEPS", "none", "5%:60s,50%:60s",
            "shares of the new connections that a new generation gets first, and for how long"),
    Setting("settle", parse_duration, "DURATION", "1s", "3s", "how long the old generation goes on accepting after the switch"),
    Setting("probation", parse_duration, "DURATION", "10s", "1m",
            "how long after the switch a new generation that dies is rolled back"),
    Setting("keep-old", parse_duration, "DURATION", "0s", "10m",
            "how long after that the old generation stays, idle, for rollback to go back to"),
    Setting("pre-stop-delay", parse_duration, "DURATION", "0s", "5s", "wait before a drain begins, for load balancers"),
    Setting("grace", _grace, "DURATION", "30s", "forever", "how long a drain may last"),
    Setting("kill-after", parse_duration, "DURATION", "10s", "30s", "from being told to stop to being killed"),
    Setting("drain-signal", _signal, "SIGNAL", "TERM; QUIT for nginx, USR1 for haproxy", "QUIT",
            "what tells the command to finish and end"),
    Setting("death-signal", _signal, "SIGNAL", "none: the next master goes on with it", "TERM",
            "what the command's processes are sent when the master dies before them"),
    Setting("max-draining", _number, "N", "3", "5", "old generations that may drain at once; more upgrades are refused"),
    Setting("restart-every", parse_duration, "DURATION", "never", "24h", "upgrade so long after the last upgrade, unasked"),
    Setting("release", parse_release, "TEXT", "none", "link:/srv/app/current",
            "what a release is called, which status shows: a text, or link:PATH for where a symbolic link leads to"),
    Setting("watch", _source, "SOURCE", "none", "symlink:/srv/app/current",
            "where new releases appear, to which the service then moves by itself; {release} in the command is where one lies"),
    Setting("every", _interval, "DURATION", "30s", "5m", "how often --watch looks there"),
    Setting("jitter", parse_duration, "DURATION", "0s", "10s",
            "at most so much later, by chance: a fleet does not look all at once"),
    Setting("once", _truth, "", "again and again", "true", "let --watch look once after the start, and then only when asked to",
            flag=True),
    Setting("window", Window, "HOURS", "always", "Mon-Fri 02:00-04:00",
            "when --watch may begin upgrades, in local time; fetched is at any time"),
    Setting("watch-mode", one_of(AT_ONCE, NEXT, ON_REQUEST), "WHAT", AT_ONCE, NEXT,
            "what becomes of a new release: upgrade to it; next: wait for the next upgrade; fetch: wait for one that names it"),
    Setting("watch-required", _truth, "", "the last good release will do", "true",
            "do not start before the source has been looked at", flag=True),
    Setting("releases", _text, "DIRECTORY", "NAME in the state directory", "/var/lib/app",
            "where fetched releases and their history lie"),
    Setting("keep-releases", _number, "N", "5", "10", "how many releases are remembered, and their files kept"),
    Setting("verify", _text, "HOW", "none", "checksum",
            "how what comes from elsewhere is verified before it runs: checksum, checksum:NAME, minisign:KEY, "
            "'sigstore:IDENTITY ISSUER' or signers:FILE"),
    Setting("insecure-skip-verify", _truth, "", "it must be verified", "true",
            "run what comes from another machine unverified", attribute="unverified", flag=True),
    Setting("fetch-timeout", _interval, "DURATION", "10m", "1h", "how long one look, with all that it fetches, may take"),
    Setting("fetch-max", _size, "SIZE", "1G", "200M", "how large a release may be, as it comes and again unpacked",
            attribute="fetch_max"),
    Setting("worker-lifetime", _lifetime, "DURATION", "for ever", "6h",
            "replace each worker when it has lived about so long, one at a time, its successor first"),
    Setting("worker-memory", parse_memory, "SIZE[:EVERY]", "none", "512M",
            "replace in the same way a worker that uses more memory than that, looked at every 30 seconds or so"),
    Setting("env", _assignment, "NAME=VALUE", "none", "DEBUG=1", "set a variable for the command", repeat=True),
    Setting("env-file", _text, "FILE", "none", "/etc/default/app", "NAME=VALUE lines, read again for each generation"),
    Setting("directory", _text, "DIRECTORY", "ours", "/srv/app/current",
            "working directory, looked up again for each generation"),
    Setting("last-lines", _count, "N", "none on a terminal, else 20", "50",
            "keep the last lines of a generation's standard error, which a failed upgrade shows; 0: the command gets our own"),
    Setting("prefix", _truth, "", "lines pass untouched", "true",
            "mark each line that a generation writes to standard output and error: [gen 3]", flag=True),
    Setting("user", _user, "USER", "ours", "www-data",
            "whom the command's processes become, with all groups; the master keeps only what it needs of root's rights"),
    Setting("group", _group, "GROUP", "the user's own", "www-data", "their group"),
    Setting("no-new-privileges", _truth, "", "programs may", "true",
            "no program that they execute, set-uid ones included, gives them any privilege", flag=True),
    Setting("chroot", _text, "DIRECTORY", "none", "/srv/jail",
            "their root directory, in which command and directory are found"),
    Setting("umask", parse_mode, "MODE", "ours", "027", "their file mode creation mask"),
    Setting("rlimit", parse_limit, "NAME=SOFT[:HARD]", "ours", "nofile=20000",
            "a resource limit of each of their processes: a number, 2G or unlimited", attribute="limits", repeat=True),
    Setting("pidfile", _text, "FILE", "none", "/run/app.pid",
            "holds the master's pid while it runs; that of another live process is respected"),
    Setting("log", _text, "FILE", "standard output and error", "/var/log/app.log",
            "append the master's and the command's output to this file, and open it anew at USR1"),
    Setting("log-format", one_of("text", "json"), "FORMAT", "text", "json",
            "how the master says what happens: sentences, or an event a line"),
    Setting("health", _address, "ADDRESS", "none", "127.0.0.1:8001",
            "answer HTTP there: /ready is 200 while the service is to get traffic, else 503; /live is 200"),
    Setting("health-file", _text, "FILE", "none", "/run/app/ready", "a file that is there while /ready would be 200"),
    Setting("server", _text, "NAME", "auto", "uvicorn",
            "which server the command is, where that does not show: its needs are met and its losses told; none: neither"),
    Setting("convention", one_of(*CONVENTIONS), "NAME", "LISTEN_FDS alone; nginx for nginx", "nginx",
            "pass the listeners in this way too: nginx, einhorn or server-starter; reuseport: pass none, the command binds the "
            "addresses of --bind itself, with SO_REUSEPORT", attribute="conventions", repeat=True),
]  # fmt: skip

#: What ``adopt`` is told besides; of the command line alone, since it is said once.
ADOPTION = [
    Setting("pid", _pid, "PID", "none", "4711", "a process of the server to adopt", attribute="adopt", repeat=True),
    Setting("old-signal", _signal, "SIGNAL", "TERM; QUIT for nginx, USR1 for haproxy", "QUIT",
            "what tells the adopted server to finish and end"),
    Setting("kill-old", _truth, "", "it is left alone", "true",
            "kill the adopted server if it does not end within --kill-after of being told to", flag=True),
]  # fmt: skip

_IN_FILE = {setting.name for setting in SETTINGS}
_BY_NAME = {setting.name: setting for setting in [*SETTINGS, *ADOPTION]}
#: What a running master can't change any more.
_FIXED = (
    "name", "path", "switch", "takeover", "source", "adopt", "old_signal", "kill_old",
    "max_draining", "ready_fd", "health", "health_file", "socket_mode", "socket_group", "allow_uids",
    "pidfile", "log", "log_format", "watch", "releases",
)  # fmt: skip


class Configuration:
    """Asked for ``Options`` at the start and at each upgrade. ``given``: what the command line said, by the options' names, as
    text (a list of texts where an option may be repeated); ``file``: the configuration file, or empty; ``reader`` reads it."""

    def __init__(
        self,
        command: list[str],
        given: Mapping[str, Any],
        file: str,
        default_path: Callable[[str], str],
        reader: Reader | None = None,
    ) -> None:
        self.command = command
        self.given = given
        self.file = os.path.abspath(file) if file else ""
        self.reader = Reader(parse) if reader is None else reader
        #: What is known of the command: of which one, with which listeners, and what.
        self.recognised: tuple[list[Any], dict[str, Any]] | None = None
        self._default_path = default_path
        self._first: Options | None = None

    def __call__(self) -> Options:
        """``ValueError`` or ``OSError`` with one sentence when it makes no sense."""
        values = {**(read_file(self.file, self.reader) if self.file else {}), **_read_words(self.given)}
        command = self.command or values.get("command") or []
        values.pop("command", None)
        if not command:
            raise ValueError("say which command to run: after --, or as command = […] in the configuration file")
        options = Options(command, config=self.file, **values)
        if self._first is not None:
            options = options.replaced({name: getattr(self._first, name) for name in _FIXED})
        else:
            options.name = values.get("name") or os.path.basename(command[0])
            if options.name == RELEASE:
                raise ValueError(f"{RELEASE} is another name for each release: say --name")
            options.path = values.get("path") or self._default_path(options.name)
            # As they are meant here, wherever we are later.
            options.pidfile = os.path.abspath(options.pidfile) if options.pidfile else ""
            options.log = os.path.abspath(options.log) if options.log else ""
            if options.watch:
                options.releases = os.path.abspath(options.releases or state_directory(options.name, os.environ))
        _check(options)
        self._recognise(options)
        if self._first is None:
            self._first = options
        return options

    def _recognise(self, options: Options) -> None:
        """What was said counts more than what is known of the server."""
        binds = options.binds if REUSEPORT not in options.conventions else []
        asked = [options.command, binds, options.server]
        if self.recognised is None or self.recognised[0] != asked:
            self.recognised = asked, _recognised(options.command, binds, options.server)
        found = self.recognised[1]
        options.drain_signal = options.drain_signal or found["signal"]
        options.conventions = options.conventions or list(found["conventions"])
        options.defused = found["env"]
        options.remarks = found["says"]


def _recognised(command: list[str], binds: list[str], server: str) -> dict[str, Any]:
    """The table is large, and not for a process that stays."""
    from .recognition import recognise

    found = recognise(command, binds, server)
    del sys.modules[recognise.__module__], sys.modules[__name__.rpartition(".")[0]].recognition
    return found


def _check(options: Options) -> None:
    """What only makes sense together, and what can be known before it is needed."""
    for text in options.binds:
        if options.binds.count(text) > 1:
            raise ValueError(f"{text} is to be bound twice: say it once, or give each a name")
    addresses: dict[str, str] = {}
    for text in options.binds:
        spec = parse_bind(text)
        if spec.port or spec.path:  # port 0 is another one each time
            other = addresses.setdefault(str(spec), text)
            if other != text:
                raise ValueError(f"{other} and {text} are one address, {spec}: say it once")
    names = [name for name in (parse_bind(text).name for text in options.binds) if name]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two listeners are called {name!r}: give each a name of its own")
    forbid_canary(options.canary, options)
    if os.path.basename(options.command[0]) == NGINX and options.switch == KERNEL:
        for text in options.binds:
            spec = parse_bind(text)
            if spec.kind == "unix" and spec.path[:1] != b"\0":
                raise ValueError(
                    f"nginx knows a listener by its address, and {spec} has another one in each generation: "
                    "say --switch shared, or a TCP address"
                )
    if REUSEPORT in options.conventions:
        _check_reuseport(options)
    if options.watch:
        _check_watch(options)
    if options.webhook_secret and not os.path.isfile(options.webhook_secret):
        raise ValueError(f"the webhooks' secret is to be in {options.webhook_secret}, which is no file")
    if options.env_file and RELEASE not in options.env_file:
        read_env_file(options.env_file)
    if options.release:
        release_of(options.release)
    if options.chroot and not os.path.isdir(options.chroot):
        raise ValueError(f"the root directory {options.chroot} does not exist")
    if options.directory and RELEASE not in options.directory and not os.path.isdir(options.chroot + options.directory):
        raise ValueError(f"the working directory {options.chroot}{options.directory} does not exist")
    account = find_account(options.user, options.group)
    if (account is not None or options.chroot) and os.geteuid() != 0:
        raise ValueError("--user, --group and --chroot take root: start the master as root, or leave them out")


def _check_reuseport(options: Options) -> None:
    """What a command that binds its addresses itself can't have."""
    itself = f"with --convention {REUSEPORT} the command binds its addresses itself"
    if options.conventions != [REUSEPORT]:
        others = " and ".join(f"--convention {name}" for name in options.conventions if name != REUSEPORT)
        raise ValueError(f"{itself}, and nothing is passed to it: leave out {others or 'the second one'}")
    if options.switch != KERNEL:
        raise ValueError(f"{itself}, each generation its own queue: that takes --switch kernel")
    for text in options.binds:
        spec = parse_bind(text)
        if spec.kind != "tcp":
            raise ValueError(f"{itself}, which only TCP lets the kernel switch: {text} is to be passed")
        if not spec.port:
            raise ValueError(f"{itself}, so it must know the port: {text} names none")
    if options.user:
        raise ValueError(f"{itself}, beside the master's, which the kernel allows its own user alone: leave out --user")
    if options.workers > 1:
        raise ValueError(f"{itself}, and each worker would have a queue of its own: leave --workers to the command")
    if options.worker_lifetime is not None or options.worker_memory is not None:
        raise ValueError(f"{itself}, so that no worker can be replaced within a generation: say --restart-every")


def _check_watch(options: Options) -> None:
    if options.chroot:
        raise ValueError("--watch and --chroot do not go together: the releases lie outside")
    if options.release:
        raise ValueError("with --watch it is the source that says what a release is called: leave out --release")
    places = [*options.command, options.directory, options.env_file, *options.env]
    origin = origin_of(options.watch) or RELEASE
    if not any(RELEASE in text or origin in text for text in places) and not options.watch.startswith("symlink:"):
        raise ValueError(f"the command would be the same for each release: say {RELEASE} where the release is meant")


# --- the file -----------------------------------------------------------------------------------------------


def _read_words(given: Mapping[str, Any]) -> dict[str, Any]:
    return {_BY_NAME[name].attribute: _convert(_BY_NAME[name], value) for name, value in given.items()}


def read_file(path: str, reader: Reader | None = None) -> dict[str, Any]:
    """Attribute → value, of a TOML file whose keys are the options' own names. ``ValueError`` names what is wrong in it."""
    values: dict[str, Any] = {}
    for name, value in (reader or Reader(parse))(path).items():
        try:
            if name == "command":
                values["command"] = _command(value)
            elif name in _IN_FILE:
                values[_BY_NAME[name].attribute] = _convert(_BY_NAME[name], value)
            else:
                raise ValueError(_unknown(name))
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return values


def _command(value: object) -> list[str]:
    if isinstance(value, str):
        return split_words(value)
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return list(value)
    raise ValueError('say a list of words, as in ["gunicorn", "app:app"], or one string')


def _convert(setting: Setting, value: object) -> Any:
    if setting.flag:
        return setting.read(str(value).lower() if isinstance(value, bool) else _word(value))
    if not setting.repeat:
        return setting.read(_word(value))
    if setting.name == "env" and isinstance(value, dict):
        value = [f"{key}={_word(item)}" for key, item in value.items()]
    return [setting.read(_word(item)) for item in (value if isinstance(value, list) else [value])]


def _word(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is neither text nor a number")
    return str(value)


def _unknown(name: str) -> str:
    likely = name.strip("-").replace("_", "-").lower()
    hint = f"did you mean {likely!r}?" if likely in _IN_FILE else f"there are command, {', '.join(sorted(_IN_FILE))}"
    return f"there is no such option; {hint}"
