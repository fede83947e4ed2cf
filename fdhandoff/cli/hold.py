"""``hold``: binds listeners, never accepts from them, and gives copies to whoever takes, so that their queues outlive any
one service."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

from .. import registry
from ..deadline import FOREVER
from ..errors import HandoffError, SystemCallError
from ..listener import Listener
from ..system import environment, paths
from ..system.channel import wait
from ..system.fds import describe, kind_word
from ..system.notify import Notifier
from ..system.process import Process
from ..system.sockets import BindSpec, bind, parse_bind
from .arguments import Parser, add_json, add_path, add_socket, add_users, chosen_path, duration
from .hearing import STOPS, Hearing
from .offers import Offers
from .outcome import UsageError, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import Any

    from ..handoff import Handed

EPILOG = """\
ADDRESS is [NAME=]HOST:PORT, :PORT, udp:HOST:PORT, unix:PATH or @NAME, with options such as ?backlog=512 behind it.
Listeners that a service manager passes (LISTEN_FDS) are held too.

examples:
  fdhandoff-cli hold /run/app/hold.sock --bind http=:80 --bind https=:443
  fdhandoff-cli take /run/app/hold.sock -- ./server        # as often as you like: the queue outlives it
  fdhandoff-cli hold --name app --bind 127.0.0.1:8080 --once

It goes on holding after it gave, until TERM or INT. With --once it gives the path away too, and ends.

exit status: 0 ended by a signal, or given (--once); 1 nobody came in time (--once --timeout), or the path is in use; 2 wrong
usage; 3 an address or the path can't be had.
"""


def arguments(parser: Parser) -> None:
    add_path(parser)
    parser.add_argument(
        "--bind", metavar="ADDRESS", nargs="+", action="extend", default=[], help="what to bind; may be repeated"
    )
    parser.add_argument("--once", action="store_true", help="end when somebody has taken them, the path included")
    parser.add_argument("--timeout", type=duration, help="with --once: how long to wait for a taker (for ever)")
    parser.add_argument(
        "--ready-timeout", type=duration, default=60.0, help="how long a taker may take to become ready (60s)"
    )
    add_users(parser, "a user besides us and root who may take")
    add_socket(parser)
    add_json(parser, "print one JSON object a line for what happens")


def run(options: Namespace) -> int:
    if options.timeout is not None and not options.once:
        raise UsageError("--timeout needs --once: without it there is no end to wait for")
    try:
        specs = [parse_bind(text) for text in options.bind]
    except ValueError as error:
        raise UsageError(str(error)) from None
    path = chosen_path(options, create=True)
    inherited = environment.take_sockets(os.environ, os.getpid())
    if not specs and not inherited:
        raise UsageError("say what to hold: --bind ADDRESS")
    # The path first: where somebody answers there, nothing is bound for nothing.
    registry.obtain(
        path, mode=0o600 if options.socket_mode is None else options.socket_mode, group=options.socket_group
    )
    holder = Holder(path, options)
    try:
        holder.open(specs, inherited)
        return holder.hold()
    finally:
        holder.close()


class Holder:
    """The listeners, who has copies of them, and the loop."""

    def __init__(self, path: str, options: Namespace) -> None:
        self.path = path
        self.options = options
        self.listeners: list[Listener] = []
        self.bound: list[socket.socket] = []
        self.notifier = Notifier.from_environment(os.environ)
        self._given = 0
        self._lock = threading.Lock()
        self._holders: list[tuple[int, Process]] = []

    def open(self, specs: Sequence[BindSpec], inherited: Sequence[tuple[str, socket.socket]]) -> None:
        self.listeners += [Listener(name, sock) for name, sock in inherited]
        for spec in specs:
            for sock in bind(spec):
                self.bound.append(sock)
                name = spec.name or environment.default_name(len(self.listeners))
                self.listeners.append(Listener(name, sock))

    def hold(self) -> int:
        once = bool(self.options.once)
        endpoint = registry.find(self.path)
        assert endpoint is not None
        if not once:
            endpoint.details = lambda: {
                "holders": self._alive(),
                **({} if endpoint.taker else {"state": "holding"}),
            }
        with Hearing(STOPS) as hearing:
            offers = Offers(
                self.path,
                self.listeners,
                hearing.wake,
                keep_path=not once,
                timeout=self.options.timeout,
                ready_timeout=self.options.ready_timeout,
                allow_uids=frozenset(self.options.allow_uid),
            )
            offers.start()
            try:
                self._announce()
                self.notifier.ready(f"holding {len(self.listeners)} listeners at {self.path}")
                return self._loop(hearing, offers)
            finally:
                offers.withdraw()

    def _loop(self, hearing: Hearing, offers: Offers) -> int:
        stops = 0
        while True:
            wait((hearing.fileno(),), (), FOREVER)
            stops += sum(number in STOPS for number in hearing.take())
            while offers.results:
                result = offers.results.popleft()
                if isinstance(result, BaseException) and offers.is_last(result):
                    raise result
                self._note(result)
                if self._given and self.options.once:
                    return 0
            # Who is in the middle of taking gets it, unless the operator insists: afterwards nobody else may hold them.
            if stops > 1 or (stops and not offers.taking()):
                self.notifier.stopping()
                return 0

    def _note(self, result: Handed | BaseException) -> None:
        if isinstance(result, BaseException):
            self._tell({"event": "failed", "error": str(result)}, f"not given: {result}")
            return
        self._given += 1
        if self.options.once:
            self.bound.clear()  # their Unix paths are the taker's to remove
        peer, number = result.peer, result.generation.number
        self._remember(number, peer.pid, result.generation.started)
        self._tell(
            {"event": "given", "generation": number, "pid": peer.pid, "uid": peer.uid}, f"given to {result.generation}"
        )

    def _announce(self) -> None:
        listeners = []
        for listener in self.listeners:
            description = describe(listener.fileno())
            assert description is not None
            listeners.append({"name": listener.name, "address": description.address})
            if not self.options.json:
                print(
                    f"holding {listener.name}: {kind_word(description.family, description.type)} {description.address}"
                )
        self._tell(
            {"event": "holding", "path": self.path, "pid": os.getpid(), "listeners": listeners},
            f"offered at {self.path}",
        )

    def _tell(self, facts: dict[str, Any], line: str) -> None:
        """A holder must not end because nobody reads what it says any more."""
        try:
            print(json.dumps({"schema": 1, **facts}) if self.options.json else line)
            sys.stdout.flush()
        except OSError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of its life

    # --- who has copies -------------------------------------------------------------------------------------

    def _remember(self, number: int, pid: int, started: int) -> None:
        try:
            process = Process.from_pid(pid, started)
        except SystemCallError:
            return  # it has ended already, or lives where we can't see it
        with self._lock:
            for _, other in self._holders:
                if not other.alive():
                    other.close()
            self._holders = [pair for pair in self._holders if pair[1].pidfd >= 0 or pair[1].alive()]
            self._holders.append((number, process))

    def _alive(self) -> list[dict[str, int]]:
        with self._lock:
            return [{"generation": number, "pid": who.pid} for number, who in self._holders if who.alive()]

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        if not self._given:
            for sock in self.bound:
                self._remove_path(sock)
        for listener in self.listeners:
            listener.target.close()
        for _, process in self._holders:
            process.close()
        try:
            registry.remove(self.path)
        except HandoffError as error:
            say(f"the handoff path stays behind: {error}")

    def _remove_path(self, sock: socket.socket) -> None:
        """A Unix path that nobody else can be serving at goes with us."""
        name = sock.getsockname() if sock.family == socket.AF_UNIX else ""
        if not name or not isinstance(name, str) or name.startswith("\0"):
            return
        try:
            paths.unlink_control(name, sock)
        except HandoffError as error:
            say(f"{name} stays behind: {error}")
