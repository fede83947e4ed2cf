"""What the adapter for uWSGI does in uWSGI's own processes, which load this module in the application's place."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import select
import signal
import socket
import sys
import threading

import uwsgi

from ..generation import Generation
from ..system.epolls import put_back, take_out
from ..system.process import start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..system.epolls import Entry

_LOOK_SECONDS = 0.05


class Worker:
    """The service, as far as a worker of uWSGI knows it: ``environ["fdhandoff"]``. ``draining``: another generation serves, or
    is about to, and each answer says ``Connection: close``."""

    def __init__(self) -> None:
        self.name = _told("name")
        pid = int(_told("pid"))
        self.generation = Generation(int(_told("generation")), pid, start_time(pid))
        self.draining = False
        self._fds = {role: int(_told(role)) for role in ("said", "started", "life", "closed")}
        for fd in self._fds.values():
            os.set_inheritable(fd, False)
        self._shares = _told("shares") == "1"
        self._announces = _told("keeps") != "1"
        self._ends = self._announces
        self._taken: set[Entry] = set()

    def begin(self) -> None:
        """In a worker, once it has the application. Returns when this generation serves: uWSGI accepts as soon as it may."""
        try:
            threading.Thread(target=self._attend, name="fdhandoff", daemon=True).start()
            first = sum(worker["status"] != b"cheap" for worker in uwsgi.workers())
            os.write(self._fds["said"], bytes([max(1, min(first, 255))]))
        except (BrokenPipeError, BlockingIOError):
            pass  # it hears the end of ``started``; or so many workers were before it that nobody waits for this one
        finally:
            self._await_start()

    def _await_start(self) -> None:
        """Ends the worker where whom it works for ends without having served. An exception, also of INT, which is uWSGI's quick
        end, would only be printed, and the worker would accept."""
        serves = False
        try:
            poller = select.poll()
            poller.register(self._fds["started"], select.POLLIN)
            ((_, said),) = poller.poll()
            serves = bool(said & select.POLLIN)
        finally:
            if not serves:
                try:
                    os.kill(uwsgi.masterpid(), signal.SIGTERM)  # so that it does not start another worker
                finally:
                    os._exit(0)

    def _attend(self) -> None:
        """Follows the gate: nothing is accepted while it is closed, where the queue is another's as well."""
        closed, life = self._fds["closed"], self._fds["life"]
        inodes = {os.fstat(fd).st_ino for fd in uwsgi.sockets}
        poller = select.poll()
        poller.register(life, 0)  # it says nothing but its end
        poller.register(closed, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(_LOOK_SECONDS * 1000 if self.draining else None)}
            if life in ready:
                os.kill(uwsgi.masterpid(), signal.SIGTERM)  # whom we work for has died
                return
            if self.draining:
                select.select([life], [], [], _LOOK_SECONDS)
            self.draining = closed in ready
            self._ends = self.draining or self._announces
            if self.draining and self._shares:
                self._taken |= take_out(inodes)  # again and again: a thread may just have begun
            elif self._taken:
                put_back(self._taken)
                self._taken.clear()

    def wrap(self, application: Any) -> Any:
        """What it costs while this generation serves, each request pays."""

        def handed(environ: dict[str, Any], start_response: Any) -> Any:
            environ["fdhandoff"] = self
            if self._ends or "HTTP_CONNECTION" in environ:
                return unusual(environ, start_response)
            return application(environ, start_response)

        def unusual(environ: dict[str, Any], start_response: Any) -> Any:
            if self._ends or environ["HTTP_CONNECTION"].lower() == "close":
                return ending(environ, start_response)
            return application(environ, start_response)

        def ending(environ: dict[str, Any], start_response: Any) -> Any:
            def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
                headers = [pair for pair in headers if pair[0].lower() != "connection"]
                return start_response(status, [*headers, ("Connection", "close")], *error)

            answer = application(environ, start)
            if self._announces or hasattr(answer, "read"):
                return answer  # a file is uWSGI's to send
            return _Last(answer)

        return handed


class _Last:
    """An answer behind which the connection ends: ``--http11-socket`` does what neither its answers nor its clients say, and
    waits for the next request until its timeout."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __iter__(self) -> Any:
        return iter([self._answer] if isinstance(self._answer, bytes) else self._answer)  # uWSGI takes both

    def close(self) -> None:
        if hasattr(self._answer, "close"):
            self._answer.close()
        with socket.socket(fileno=os.dup(uwsgi.connection_fd())) as connection:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was quicker


def _told(key: str) -> str:
    return os.fsdecode(uwsgi.opt[f"{__name__}.{key}"])


def _load() -> Any:
    """The application, named as for uWSGI."""
    name, _, function = _told("application").partition(":")
    if _told("is_file") == "1":
        name, function = _told("application"), ""
        module_name = "uwsgi_file_" + re.sub(r"\W", "_", name)
        spec = importlib.util.spec_from_file_location(module_name, name)
        if spec is None or spec.loader is None:
            raise ImportError(f"{name} is no Python file")
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    function = function or _told("callable")
    found = getattr(module, function.removesuffix("()"))
    return found() if function.endswith("()") else found


def _prepared() -> Any:
    if len(uwsgi.sockets) > int(_told("sockets")):
        sys.exit("fdhandoff: a file names a listener, which nobody would take over: name all on the command line")
    application = _load()
    try:
        worker = Worker()
    except OSError:
        # uWSGI has executed itself anew, and keeps nothing but its own descriptors for that.
        print(
            "fdhandoff: uWSGI's own reload leaves the handoff out: reload with HUP to the adapter's process", flush=True
        )
        return application
    if uwsgi.worker_id():
        worker.begin()
    else:
        before = getattr(uwsgi, "post_fork_hook", None)

        def forked() -> None:
            try:
                if before is not None:
                    before()
            finally:  # what it raises is printed, and uWSGI goes on
                if uwsgi.worker_id():
                    worker.begin()

        uwsgi.post_fork_hook = forked
    return worker.wrap(application)


application = _prepared()
