"""A program of ours as a child of the master: it is asked one thing, and ends. It may import what it likes, take its time, and
die: the master stays small, and waits for nobody without a deadline.

What it reads is the question, one JSON object on descriptor 0; what it writes is a few JSON objects, one a line, on descriptor
3: some with a ``text`` for the log, the last with ``result``.
"""

from __future__ import annotations

import os
import signal
import sys

from ..deadline import after, format_duration
from ..errors import HandoffError, sentence
from ..notation import dumps, loads
from ..system import environment
from ..system.process import spawn
from . import journal
from .run import kill_group
from .tasks import Future, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..system.process import Process
    from .loop import Loop

SCHEMA = 1

_ANSWER_FD = 3
_ANSWER_MAX = 1 << 20
_READ = 1 << 16
# Its words are where modules lie.
_PROGRAM = (
    "import sys; sys.path += [path for path in sys.argv[1:] if path not in sys.path]; import {0}; sys.exit({0}.main())"
)


class Helper:
    """``name``: what people call it; ``module``: what is run, from the package's top; ``say`` gets its lines for the log;
    ``secrets``: the variables of our environment that are for it alone."""

    def __init__(
        self, loop: Loop, name: str, module: str, say: Callable[[str], object], secrets: Iterable[str] = ()
    ) -> None:
        self._loop = loop
        self._name = name
        self._module = f"{__name__.rpartition('.master.')[0]}.{module}"
        self._say = say
        self._secrets = secrets
        self._process: Process | None = None

    async def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its last word; ``error`` alone where there was none. It is ended, with all that it started, when its time is over."""
        loop = self._loop
        try:
            process, reader = self._start(question)
        except (HandoffError, OSError) as error:
            return {"error": f"the {self._name} can't be started: {sentence(error)}"}
        heard = _Heard(self._say)
        ended: Future[None] = Future()
        full: Future[None] = Future()

        def read() -> None:
            if not heard.read(reader):
                full.set(None)

        loop.waited.add(process.pid)
        loop.on_readable(process.fileno(), lambda: ended.set(None))
        loop.on_readable(reader, read)
        self._process = process
        try:
            await pause(loop, seconds, ended, full)
            if ended.done:
                heard.read(reader)
        finally:
            loop.forget(reader)
            loop.forget(process.fileno())
            loop.waited.discard(process.pid)
            kill_group(process)
            how = process.wait(after(5.0))
            process.close()
            os.close(reader)
            self._process = None
        if heard.last is not None:
            return heard.last
        if ended.done:
            return {"error": f"the {self._name} {how}, and said nothing"}
        if full.done:
            return {"error": f"the {self._name} said more than makes sense: it was ended"}
        return {"error": f"the {self._name} did not end within {format_duration(seconds)}: it was ended"}

    def _start(self, question: dict[str, Any]) -> tuple[Process, int]:
        """A process group of its own, that dies with us."""
        environ = dict(os.environ)
        environment.strip(environ)
        environ.update({name: os.environ[name] for name in self._secrets if name in os.environ})
        memory = os.memfd_create(f"fdhandoff-{self._name}")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(reader, False)
            journal.write_whole(memory, dumps({"schema": SCHEMA, **question}).encode())
            os.lseek(memory, 0, os.SEEK_SET)
            process = spawn(
                [sys.executable, "-c", _PROGRAM.format(self._module), *sys.path],
                fds={0: memory, 1: 2, 2: 2, _ANSWER_FD: writer},
                env=environ,
                own_group=1,
                death_signal=signal.SIGKILL,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
            os.close(memory)
        return process, reader

    def close(self) -> None:
        """It outlives neither us nor the program that we become."""
        if self._process is not None:
            kill_group(self._process)
            self._process.wait(after(5.0))


class _Heard:
    """The lines of a helper. ``last``: the one with its result."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self._data = b""
        self._size = 0
        self.last: dict[str, Any] | None = None

    def read(self, fd: int) -> bool:
        """All that is there; false when it is more than makes sense."""
        while True:
            try:
                part = os.read(fd, _READ)
            except BlockingIOError:
                return True
            self._size += len(part)
            if self._size > _ANSWER_MAX:
                return False
            if not part:
                return True
            *lines, self._data = (self._data + part).split(b"\n")
            self._take(lines)

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                word = loads(line)
            except ValueError:
                continue
            if not isinstance(word, dict) or word.get("schema") != SCHEMA:
                continue
            if "result" in word:
                self.last = word
            elif isinstance(word.get("text"), str):
                self._say(word["text"])
