"""Which server a command starts, what it needs so that it serves the listeners that it is given, and what to expect of it.

A table, and who reads it: imported when the command or its listeners have changed, and forgotten again. Only what a command
shows is judged; a configuration file of the server's own is not read. Nothing here refuses a command: who is mistaken about a
server would stand in the way of one that works.
"""

from __future__ import annotations

import os

from ..system.environment import FIRST_FD
from ..system.sockets import parse_bind
from .conventions import NGINX
from .splitting import split_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..system.sockets import BindSpec

AUTO, NONE = "auto", "none"

# What clients see at an upgrade. With the switch a connection is never accepted by a server that is about to end, so that all
# of it concerns those that are still open when the grace period is over.
ANNOUNCED = "no client sees a failure, since the end of a connection is announced"
CLOSED = (
    "clients with one request to a connection see no failure; on a kept-alive one that is still open when --grace is over, a "
    "request that is just then on its way is lost"
)
CUT = (
    "clients with one request to a connection see no failure; kept-alive ones that are still open when --grace is over are "
    "cut, with what they are asking"
)

#: The same for a table.
IN_SHORT = {
    ANNOUNCED: "nothing fails",
    CLOSED: "a race on kept-alive connections",
    CUT: "kept-alive connections are cut",
}


class Asked:
    """A command as it was understood: the server's own ``words`` behind its name, its listeners, and the wrapper that ``forks``
    between us and it (empty: none does)."""

    __slots__ = ("forks", "specs", "words")

    def __init__(self, words: Sequence[str], specs: Sequence[BindSpec], forks: str) -> None:
        self.words = list(words)
        self.specs = list(specs)
        self.forks = forks

    def has(self, *names: str) -> bool:
        """Whether one of these options is there."""
        return any(word == name or word.startswith(f"{name}=") for word in self.words for name in names)

    def value(self, *names: str) -> str | None:
        """What the last of these options says, as in ``--fd 3``, ``--fd=3`` or ``-b3``."""
        found = None
        for place, word in enumerate(self.words):
            name, equals, text = word.partition("=")
            if name in names:
                found = text if equals else next(iter(self.words[place + 1 : place + 2]), "")
            elif word[:2] in names and word[:1] == "-" and word[1:2] != "-":
                found = word[2:]
        return found

    def mentions(self, *texts: str) -> bool:
        return any(text in word for word in self.words for text in texts)


class Server:
    """``names``: how commands and modules call it. ``needs``: the words that make it take its listener, for people; empty where
    it can't. ``expects``: what clients see. ``judge`` returns what is wrong (empty: nothing), ``env`` what its environment is
    to say. ``adapter``: a module of ``servers``. ``instead``: what takes its listener, where no module of that name can stand
    for the command."""

    __slots__ = ("adapter", "convention", "env", "expects", "instead", "judge", "names", "needs", "signal", "unasked")

    def __init__(
        self,
        names: str,
        needs: str,
        expects: str,
        *,
        judge: Callable[[Asked], str] = lambda _: "",
        env: Callable[[Asked], dict[str, str]] = lambda _: {},
        adapter: str = "",
        instead: str = "",
        signal: str = "",
        convention: str = "",
        unasked: str = "",
    ) -> None:
        self.names = names.split()
        self.needs = needs
        self.expects = expects
        self.judge = judge
        self.env = env
        self.adapter = adapter
        self.instead = instead
        self.signal = signal
        self.convention = convention
        self.unasked = unasked  # what is done for it, in words


def _numbers(asked: Asked) -> list[str]:
    return [str(FIRST_FD + place) for place in range(len(asked.specs))]


def _names_one(text: str, asked: Asked) -> bool:
    return "{fd:" in text or text in _numbers(asked)


def _by_number(option: str) -> Callable[[Asked], str]:
    """For a server that takes the descriptor's number by this option."""

    def judge(asked: Asked) -> str:
        text = asked.value(option)
        if text is None:
            return f"it binds an address itself unless it is told {option} {FIRST_FD}"
        return (
            ""
            if _names_one(text, asked)
            else f"{option} {text} is none of its listeners ({', '.join(_numbers(asked))})"
        )

    return judge


def _unable(asked: Asked) -> str:  # noqa: ARG001
    return "it has no option for a listener that was bound before, and binds an address itself"


def _granian(_: Asked) -> str:
    """It shares its address (SO_REUSEPORT), so that the kernel can switch it. With that convention nobody asks here."""
    return "it binds an address itself unless run is told that it does, by --convention reuseport and the same --port"


def _in_background(asked: Asked, *options: str) -> str:
    if asked.has(*options):
        return f"{options[-1]} sends it into the background, where it counts as ended: leave that to run --daemon"
    return ""


# --- uvicorn ------------------------------------------------------------------------------------------------


def _uvicorn(asked: Asked) -> str:
    if len(asked.specs) > 1:
        return f"it serves one listener only, and there are {len(asked.specs)}"
    if asked.has("--fd"):
        return _by_number("--fd")(asked)
    if asked.has("--uds"):
        return f"it binds what --uds names itself: say --fd {FIRST_FD} instead"
    if not _same_port(asked):
        return f"it binds port {asked.value('--port')} itself: say --fd {FIRST_FD} instead"
    return ""


def _uvicorn_env(asked: Asked) -> dict[str, str]:
    """Its options may stand in the environment; the descriptor counts more than host and port."""
    fits = len(asked.specs) == 1 and not asked.has("--fd", "--uds") and _same_port(asked)
    return {"UVICORN_FD": str(FIRST_FD)} if fits else {}


def _same_port(asked: Asked) -> bool:
    """Whether the port that it was told, if any, is the listener's."""
    text = asked.value("--port")
    return text is None or text == str(asked.specs[0].port)


# --- the others ---------------------------------------------------------------------------------------------


def _fd_url(option: str, *more: str) -> Callable[[Asked], str]:
    """For a server that takes ``fd://3`` as an address."""

    def judge(asked: Asked) -> str:
        text = asked.value(option, *more) or ""
        if not text.startswith("fd://"):
            return f"it binds an address itself unless it is told {option} fd://{FIRST_FD}"
        return (
            ""
            if _names_one(text[5:], asked)
            else f"{text} is none of its listeners (fd://{', fd://'.join(_numbers(asked))})"
        )

    return judge


def _gunicorn(asked: Asked) -> str:
    if wrong := _in_background(asked, "-D", "--daemon"):
        return wrong
    if asked.forks and not asked.mentions("fd://"):
        return (
            f"{asked.forks} starts it as a child of its own, which LISTEN_PID does not name: tell it -b fd://{FIRST_FD}, or "
            "let it be executed"
        )
    return ""


def _twisted(asked: Asked) -> str:
    if asked.mentions("systemd:") and asked.forks:
        return f"{asked.forks} starts it as a child of its own, which LISTEN_PID does not name: let it be executed"
    if "web" in asked.words and not asked.mentions("systemd:", "fd:"):
        return "it binds an address itself unless it is told --listen systemd:domain=INET:index=0"
    return ""


def _twistd(asked: Asked) -> str:
    if not asked.has("-n", "--nodaemon") and not any(word[:2] == "-n" for word in asked.words):
        return "without -n it goes into the background, where it counts as ended"
    return _twisted(asked)


def _daphne(asked: Asked) -> str:
    return "" if asked.mentions("fd:fileno=") else _by_number("--fd")(asked)


def _cheroot(asked: Asked) -> str:
    if any(spec.kind != "tcp" or ":" in spec.host for spec in asked.specs[:1]):
        return "it takes what it is given for an IPv4 socket, and this is another"
    return ""


def _cherryd(asked: Asked) -> str:
    return _cheroot(asked) or _in_background(asked, "-d")


def _flask(asked: Asked) -> str:
    if asked.has("--reload", "--debug"):
        return "its reloader ends it when a file changes: leave --debug and --reload out"
    return ""


def _uwsgi(asked: Asked) -> str:
    configured = asked.has("--ini", "--yaml", "--xml", "--json", "-x", "-y", "-j") or asked.mentions(
        ".ini", ".yml", ".yaml"
    )
    if not configured and not asked.mentions("fd://"):
        return f"it binds an address itself unless it is told --http-socket fd://{FIRST_FD}"
    return _in_background(asked, "-d", "--daemonize2", "--daemonize")


def _uwsgi_env(asked: Asked) -> dict[str, str]:
    """TERM reloads it, or ends it in the middle of its requests. Its options may stand in the environment, too."""
    if asked.mentions("unix_signal:15", "die-on-term"):
        return {}
    return {"UWSGI_HOOK_MASTER_START": "unix_signal:15 gracefully_kill_them_all"}


def _nginx(asked: Asked) -> str:
    if not asked.mentions("daemon off"):
        return "unless its configuration says daemon off; it goes into the background, where it counts as ended"
    return ""


SERVERS = [
    Server("gunicorn gunicorn.app.wsgiapp", "nothing: it takes LISTEN_FDS, whatever `-b` says", ANNOUNCED, judge=_gunicorn),
    Server("uvicorn uvicorn.main", "nothing, or `--fd 3`", CLOSED, judge=_uvicorn, env=_uvicorn_env, adapter="uvicorn",
           unasked="`UVICORN_FD=3`, unless the command names a descriptor, a Unix socket, or another port"),
    Server("hypercorn", "`--bind fd://3`", CLOSED, judge=_fd_url("--bind", "-b"), adapter="hypercorn"),
    Server("daphne", "`--fd 3`", CUT, judge=_daphne, adapter="daphne"),
    Server("flask", "nothing, without `--debug`", CUT, judge=_flask, adapter="flask",
           env=lambda _: {"WERKZEUG_SERVER_FD": str(FIRST_FD), "WERKZEUG_RUN_MAIN": "true"},
           unasked="`WERKZEUG_SERVER_FD=3`, `WERKZEUG_RUN_MAIN=true`"),
    Server("twistd", "`-n`, and `--listen systemd:domain=INET:index=0`", CUT, judge=_twistd, adapter="twisted"),
    Server("twist twisted", "`--listen systemd:domain=INET:index=0`", CUT, judge=_twisted, adapter="twisted"),
    Server("cherryd cherrypy", "nothing, on IPv4", CLOSED, judge=_cherryd, adapter="cherrypy",
           instead="a program with {module}.quickstart"),
    Server("cheroot", "nothing, on IPv4", CUT, judge=_cheroot, adapter="cheroot"),
    Server("uwsgi", "`--http-socket fd://3 --master`", CLOSED, judge=_uwsgi, env=_uwsgi_env, adapter="uwsgi",
           unasked="`UWSGI_HOOK_MASTER_START=unix_signal:15 gracefully_kill_them_all`, so that TERM lets it finish"),
    Server("nginx", "`-g 'daemon off;'`, the address of `--bind` in its `listen`", CLOSED, judge=_nginx, signal="SIGQUIT",
           convention=NGINX, unasked="`NGINX=3;` (`--convention nginx`), and QUIT to let it finish"),
    Server("haproxy", "`bind fd@3` in its configuration", CLOSED, judge=lambda asked: _in_background(asked, "-D"),
           signal="SIGUSR1", unasked="USR1 to let it finish"),
    Server("node", "`listen({fd: 3})`, and a handler for SIGTERM that calls `server.close()`", CLOSED),
    Server("granian", "`--convention reuseport` for `run`, and the same `--port` as in `--bind`", CLOSED, judge=_granian,
           adapter="granian"),
    Server("aiohttp.web", "", CLOSED, judge=_unable, adapter="aiohttp"),
    Server("waitress-serve waitress", "", CUT, judge=_unable, adapter="waitress"),
    Server("sanic", "", CUT, judge=_unable, adapter="sanic"),
    Server("runserver", "", CUT, judge=_unable, adapter="django"),
    Server("http.server", "", CUT, judge=_unable, adapter="http_server"),
]  # fmt: skip

_BY_NAME = {name: server for server in SERVERS for name in server.names}
NAMES = [server.names[0] for server in SERVERS]


def recognise(command: Sequence[str], binds: Sequence[str], choice: str = AUTO) -> dict[str, Any]:
    """``server`` (empty: none that is known), what its environment says (``env``), its ``conventions``, the ``signal`` that
    lets it finish, and the sentences that an operator should read (``wrong``, ``says``). ``choice``: the server, where the
    command does not show it."""
    found: dict[str, Any] = {"server": "", "env": {}, "conventions": [], "signal": "", "wrong": "", "says": []}
    if choice == NONE:
        return {**found, "signal": "SIGTERM"}
    if choice not in (AUTO, *NAMES):
        raise ValueError(f"{choice!r} is no server that is known: say {NONE}, {AUTO} or one of {', '.join(NAMES)}")
    words, forks = unwrap(command)
    name = _name(words) if words else ""
    server = _BY_NAME.get(name if choice == AUTO else choice)
    if server is None:
        return found
    asked = Asked(words[1:], [parse_bind(text) for text in binds], forks)
    wrong = server.judge(asked) if asked.specs else ""
    if not wrong and forks in _SHELLS:
        wrong = f"{forks} stays between and does not pass on what tells it to finish: write exec before it"
    label = server.names[0]
    found["server"] = label
    found["wrong"] = wrong
    found["env"] = server.env(asked) if asked.specs else {}
    found["conventions"] = [server.convention] if server.convention else []
    found["signal"] = server.signal
    expects, adapter = _expectation(server, asked)
    better = adapter and expects != ANNOUNCED and (server.adapter or not server.instead)
    word = f"; {adapter} instead loses none" if better else ""
    if wrong:
        takes = f"; {adapter} takes it" if adapter and server.judge in (_unable, _granian) else ""
        found["says"] = [f"{label} may not do as it should: {wrong}{takes}"]
    else:
        found["says"] = [f"{label}: at an upgrade {expects}{word}"]
    return found


def _expectation(server: Server, asked: Asked) -> tuple[str, str]:
    """What clients see, and the words that make it nothing."""
    expects, adapter = server.expects, server.adapter
    package = __name__.rpartition(".master.")[0]
    if server.instead:
        return expects, server.instead.format(module=f"{package}.servers.{adapter}")
    if server.names[0] == "gunicorn":
        worker = asked.value("-k", "--worker-class") or ""
        if "uvicorn" in worker.lower() and not worker.startswith(f"{package}."):
            expects, adapter = CLOSED, "gunicorn_uvicorn"  # it closes as uvicorn does
        elif worker == "asgi":
            expects, adapter = CLOSED, "gunicorn"  # what it answers at that moment announces nothing
    try:
        with open(
            os.path.join(os.path.dirname(os.path.dirname(__file__)), "servers", f"{adapter}.py"), encoding="utf-8"
        ) as file:
            program = "__main__" in file.read()
    except OSError:
        return expects, ""
    module = f"{package}.servers.{adapter}"
    if adapter == "gunicorn_uvicorn":
        return expects, f"-k {module}.Worker"
    return expects, f"python -m {module}" if program else f"{module} in its place in the program"


# --- wrappers -----------------------------------------------------------------------------------------------

_EXECUTING = (
    "env",
    "nice",
    "nohup",
    "ddtrace-run",
    "opentelemetry-instrument",
    "newrelic-admin",
    "poetry",
    "pipenv",
    "pdm",
    "exec",
)
_FORKING = ("uv", "hatch", "rye", "conda", "tini", "dumb-init", "catatonit", "timeout")
_SHELLS = ("sh", "bash", "dash", "zsh")
_PYTHON_WITH_ARGUMENT = ("-X", "-W", "--check-hash-based-pycs")


def unwrap(command: Sequence[str]) -> tuple[list[str], str]:
    """The words of the server itself, as far as what stands before them is known, and the wrapper that forks to start it."""
    words, forks = list(command), ""
    for _ in range(8):  # wrappers in wrappers
        name = os.path.basename(words[0]) if words else ""
        if _is_python(name):
            words = _behind_python(words)
            break
        if name in _SHELLS:
            words, more = _behind_shell(words)
            forks = forks or (name if more else "")
        elif name in _EXECUTING or name in _FORKING:
            forks = forks or (" ".join(words[:2]) if words[1:2] == ["run"] else name) if name in _FORKING else forks
            words = _behind(words)
        else:
            break
    return words, forks


def _is_python(name: str) -> bool:
    version = name.removeprefix("python").removeprefix("pypy")
    return (version != name and version.replace(".", "").isdecimal()) or name in ("python", "pypy")


def _behind(words: list[str]) -> list[str]:
    """From the first word on that is a server, Python, or another wrapper; what stands before it are the wrapper's options."""
    for place, word in enumerate(words[1:], 1):
        name = os.path.basename(word)
        if name in _BY_NAME or name in _EXECUTING + _FORKING + _SHELLS or _is_python(name) or _name(words[place:]):
            return words[place:]
    return []


def _behind_python(words: list[str]) -> list[str]:
    place = 1
    while place < len(words) and words[place].startswith("-"):
        if words[place] == "-m":
            return words[place + 1 :]
        if words[place] == "-c":
            return []
        place += 2 if words[place] in _PYTHON_WITH_ARGUMENT else 1
    return words[place:]


def _behind_shell(words: list[str]) -> tuple[list[str], bool]:
    """What ``sh -c`` is to run, and whether the shell stays in between."""
    if "-c" not in words[1:2] or len(words) < 3:
        return [], False
    try:
        inner = split_words(words[2])
    except ValueError:
        return [], False
    if "exec" in inner:
        return inner[len(inner) - inner[::-1].index("exec") :], False
    lists = any(mark in words[2] for mark in (";", "&", "|", "\n"))
    return (inner, False) if not lists else (_behind(["", *inner]), True)


def _name(words: Sequence[str]) -> str:
    """How the table calls what these words start; empty for what is not in it."""
    name = os.path.basename(words[0])
    if name in ("manage.py", "django-admin", "django"):
        return "runserver" if "runserver" in words[1:3] else ""
    if name == "flask":
        return name if "run" in words[1:] else ""
    return name if name in _BY_NAME and name != "runserver" else ""
