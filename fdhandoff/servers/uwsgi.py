"""uWSGI, upgraded without a failed request: ``python -m fdhandoff.servers.uwsgi --http11-socket :8000 --module app:app …`` in
place of ``uwsgi …``, with uWSGI's own options.

This process has the service; the real ``uwsgi`` is its child, which gets the listeners as ``fd://N``. In each worker
``uwsgi_worker`` says that the application is loaded, holds the worker until this generation serves, stops accepting while
another may, and has answers announce ``Connection: close`` then. uWSGI is told to end when the kernel knows of no connection of
it any more.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapting import connections_at, dual, listeners_of, service_name, settings, split
from ..deadline import after
from ..errors import Aborted, HandoffError, UpgradeError
from ..service import Service
from ..system.process import spawn
from ..system.processes import members

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..system.process import Process

# What a listener may be for, each with an address as its value.
_SOCKETS = {
    f"--{kind}socket"
    for kind in ("http-", "http11-", "", "uwsgi-", "fastcgi-", "fastcgi-nph-", "scgi-", "scgi-nph-", "puwsgi-")
}
_SHORT = {
    "-s": "--socket",
    "-w": "--module",
    "-l": "--listen",
    "-C": "--chmod-socket",
    "-H": "--home",
    "-d": "--daemonize",
}
_SAME = {
    "--wsgi": "--module", "--file": "--wsgi-file", "--virtualenv": "--home", "--venv": "--home", "--pyhome": "--home",
    "--safe-pidfile": "--pidfile", "--worker-reload-mercy": "--reload-mercy", "--chmod": "--chmod-socket",
}  # fmt: skip
# What we want to know; those in _OURS uWSGI is not told.
_VALUES = {
    "--module",
    "--wsgi-file",
    "--callable",
    "--listen",
    "--chmod-socket",
    "--home",
    "--pidfile",
    "--reload-mercy",
}
_OURS = {"--module", "--wsgi-file", "--callable", "--pidfile"}
_REFUSED = {
    **dict.fromkeys(
        ("--daemonize", "--daemonize2"), "it hides the process that serves: use fdhandoff-cli run --daemon -- …"
    ),
    **dict.fromkeys(
        ("--http", "--https"), "uWSGI's router has a listener of its own: say --http11-socket, or --http-socket"
    ),
    **dict.fromkeys(("--emperor", "--zerg", "--shared-socket"), "its listeners are known to uWSGI alone"),
    **dict.fromkeys(
        ("--gevent", "--asyncio", "--async", "--loop", "--tornado", "--mount"),
        "the adapter is for processes and threads with one application: run this under fdhandoff-cli run, as it is",
    ),
}
_BACKLOG = "100"  # uWSGI's own
_GRACE_SECONDS = 30.0
# How long uWSGI may take to end when nothing is left for it to do, and when it is told to end at once.
_END_SECONDS, _CUT_SECONDS = 10.0, 3.0
_LOADER = f"{__package__}.uwsgi_worker"


class Options:
    """uWSGI's words: ``sockets`` (option and address), the values that concern us, and the ``rest``. ``ValueError`` for what
    can't be taken over."""

    def __init__(self, words: Sequence[str]) -> None:
        self.sockets: list[tuple[str, str]] = []
        self.values: dict[str, str] = {}
        self.rest: list[str] = []
        left = list(words)
        while left:
            self._take(left)
        if not self.sockets:
            raise ValueError(
                "name a listener on the command line: --http11-socket, --http-socket or --socket, with its address"
            )
        if bool(self.values.get("--module")) == bool(self.values.get("--wsgi-file")):
            raise ValueError("name the application on the command line: by --module, or else by --wsgi-file")

    def _take(self, left: list[str]) -> None:
        word = left.pop(0)
        if word[:2] in _SHORT and len(word) > 2:
            left.insert(0, word[2:])
            word = word[:2]
        name, equals, value = word.partition("=")
        name = _SHORT.get(name, name)
        name = _SAME.get(name, name)
        if name in _REFUSED:
            raise ValueError(f"{name}: {_REFUSED[name]}")
        if name not in _SOCKETS | _VALUES:
            self.rest.append(word)
            return
        if not equals:
            if name == "--chmod-socket" and (not left or left[0][:1] == "-"):
                value = "666"
            elif left:
                value = left.pop(0)
            else:
                raise ValueError(f"{name} wants a value")
        if name in _SOCKETS:
            self.sockets.append((name, value))
            return
        self.values[name] = value
        if name not in _OURS:
            self.rest.append(f"{name}={value}")

    @property
    def application(self) -> str:
        return self.values.get("--module") or self.values["--wsgi-file"]

    @property
    def grace(self) -> float:
        return float(self.values.get("--reload-mercy", _GRACE_SECONDS))

    def address(self, text: str) -> str:
        """As ``Service.listen`` wants it."""
        if text[:1] == "=" or text.startswith("fd://"):
            raise ValueError(f"{text}: say the address; a listener that is inherited comes by LISTEN_FDS")
        backlog = f"?backlog={self.values.get('--listen', _BACKLOG)}"
        host, colon, port = text.rpartition(":")
        if colon and port.isdigit():
            return dual(f"{'' if host == '*' else host}:{port}{backlog}")
        if text[:1] == "@":
            return f"unix:{text}{backlog}"
        mask = os.umask(0)
        os.umask(mask)
        mode = self.values.get("--chmod-socket", f"{0o777 & ~mask:o}")
        return f"unix:{os.path.abspath(text)}{backlog}&mode={mode.zfill(4)}"


def run(words: Sequence[str], handoff: dict[str, Any]) -> int:
    """Serves until a newer generation does or this process is told to stop: uWSGI's exit status. Raises what ``Service``
    raises, and ``ValueError`` for options that make no sense here."""
    options = Options(words)
    addresses = [(kind, options.address(text)) for kind, text in options.sockets]
    command = _program()
    name = service_name(Path(options.application).stem if "/" in options.application else options.application, "uwsgi")
    given = {**settings(handoff, name), "grace": options.grace, "pidfile": options.values.get("--pidfile")}
    with Service(**given) as service, Server(service, options, addresses, command) as server:
        return server.serve()


def _program() -> str:
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    found = shutil.which("uwsgi", path=path)
    if found is None:
        raise ValueError("this needs uWSGI: pip install 'uwsgi>=2.0.28'")
    return found


class Server:
    """uWSGI as a child, and what is between the two: ``said`` hears from its workers, which wait for ``started``, and hear the
    end of ``life``."""

    def __init__(self, service: Service, options: Options, addresses: Sequence[tuple[str, str]], program: str) -> None:
        self._service = service
        listeners = self._listeners(addresses)
        said, started, self._alive = os.pipe(), os.pipe(), os.pipe()
        self._said, self._started = said[0], started[1]
        self._may_accept = False
        os.set_blocking(said[1], False)  # nobody reads it any more when this generation serves
        fds = {0: 0, 1: 1, 2: 2}
        words = [program, "--master", "--need-app", "--enable-threads"]
        words += ["--hook-master-start", "unix_signal:15 gracefully_kill_them_all"]
        for kind, listener in listeners:
            words += [kind, f"fd://{len(fds)}"]
            fds[len(fds)] = listener.fileno()
        told = {
            "said": said[1],
            "started": started[0],
            "life": self._alive[0],
            "closed": service.gate.closed_fileno(),
        }
        generation = service.generation
        facts: dict[str, Any] = {"name": service.name, "generation": generation.number, "pid": generation.pid}
        for role, fd in told.items():
            facts[role] = len(fds)
            fds[len(fds)] = fd
        # A master sends nothing new to who drains, and what is in the queue then is for nobody else.
        facts["shares"] = int(service.path is not None or not service.inherited)
        facts["keeps"] = int(any("http11" in kind for kind, _ in listeners))
        facts["sockets"] = len(listeners)
        facts["application"] = options.application
        facts["callable"] = options.values.get("--callable", "application")
        facts["is_file"] = int("--wsgi-file" in options.values)
        words += [f"--set={_LOADER}.{key}={value}" for key, value in facts.items()]
        words += ["--module", f"{_LOADER}:application", *options.rest]
        if sys.prefix != sys.base_prefix and "--home" not in options.values:
            words += ["--home", sys.prefix]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("LISTEN_")}
        # Signals to our group, and the terminal's, are for us: a worker would die of them in the middle of a request.
        self._child: Process = spawn(words, fds=fds, env=environ, own_group=1, death_signal=signal.SIGTERM)
        for fd in (said[1], started[0], self._alive[0]):
            os.close(fd)
        sockets = [listener for _, listener in listeners]
        service.observes(connections_at(sockets, lambda: members(self._child.pid)))
        service.drains_when_asked()

    def _listeners(self, addresses: Sequence[tuple[str, str]]) -> list[tuple[str, socket.socket]]:
        """Each with the option that it is for. Whoever passed some chose them, in the order of the options."""
        service = self._service
        if service.inherited:
            kinds = [kind for kind, _ in addresses]
            return [(kinds[min(place, len(kinds) - 1)], one) for place, one in enumerate(service.listeners)]
        return [
            (kind, listener)
            for place, (kind, address) in enumerate(addresses)
            for listener in listeners_of(service, f"http{place or ''}", address)
        ]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of uWSGI is left, whatever happened."""
        os.close(self._started)  # who waits for it ends
        self._end(at_once=not self._may_accept)
        for fd in (self._said, self._alive[1]):
            os.close(fd)
        self._child.close()

    def serve(self) -> int:
        service = self._service
        if not self._loaded():
            return 0
        try:
            service.ready()
        except Aborted:
            return 0
        self._may_accept = True
        with contextlib.suppress(BrokenPipeError):  # none of uWSGI is left: how it ended is said below
            os.write(self._started, b"!")  # which nobody takes out: later workers find it
        if not self._wait(service.fileno()):
            service.say(f"uWSGI {self._child.wait(after(0.0))}")
            return 1
        return self._end(at_once=bool(service.drain().forced))

    def _loaded(self) -> bool:
        """Whether all of uWSGI's first workers have loaded the application; false where a stop was asked for."""
        service = self._service
        count, wanted = 0, 1
        while count < wanted:
            if not self._wait(self._said, service.fileno()):
                raise UpgradeError(f"uWSGI {self._child.wait(after(0.0))} before it served: its output says why")
            if service.wait(0):
                return False
            # Each says how many there are.
            for number in os.read(self._said, 4096):
                count, wanted = count + 1, number
        return True

    def _wait(self, *fds: int) -> bool:
        """Until one of them is readable; false where uWSGI has ended."""
        poller = select.poll()
        for fd in (self._child.fileno(), *fds):
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll()}
        return self._child.fileno() not in ready

    def _end(self, *, at_once: bool) -> int:
        """Has uWSGI end: what it still answers is finished, or cut."""
        child = self._child
        if not at_once:
            child.signal(signal.SIGTERM)
            at_once = child.wait(after(_END_SECONDS)) is None
        if at_once and child.alive():
            child.signal(signal.SIGINT)
        if child.wait(after(_CUT_SECONDS)) is None:
            child.signal(signal.SIGKILL)
        try:
            os.killpg(child.pid, signal.SIGKILL)  # the group's number is nobody else's while one of it lives
        except ProcessLookupError:
            pass
        how = child.wait(after(_CUT_SECONDS))
        return how.status or 0 if how is not None else 1


def main() -> None:
    """uWSGI's own command line, our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        sys.exit(run(words, ours))
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
