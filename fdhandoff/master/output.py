"""What a generation writes to its standard error, and with ``--prefix`` to its standard output: a relay passes it on to ours,
and keeps its last lines for whoever asks why an upgrade failed."""

from __future__ import annotations

import os
import signal
import time

from ..deadline import after, passed
from ..errors import HandoffError
from ..system.process import Process
from ..system.relay import KEPT, Relay
from .tasks import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .loop import Loop, Timer
    from .options import Options

#: Unless the options say otherwise, and standard error is a terminal.
LINES = 20
_STDOUT, _STDERR = 1, 2
_LINE_MAX = 500  # characters
# How long we wait for the relay to have read what a generation wrote before it died.
_PATIENCE_SECONDS, _LOOK_SECONDS = 0.25, 0.002
# A relay that lived shorter than this is started again later and later.
_STABLE_SECONDS = 1.0
_BACKOFF_FIRST, _BACKOFF_LAST = 0.01, 1.0
_ESCAPE, _BELL = "\x1b", "\x07"
_REPLACEMENT = "\ufffd"


def readable(raw: bytes, count: int) -> list[str]:
    """The last ``count`` lines of ``raw``, safe to be shown on a terminal: without control characters, and no line longer than
    some hundred characters. Where ``raw`` begins in the middle of a line, that one is left out."""
    text = raw.decode("utf-8", "replace")
    if len(raw) >= KEPT:
        text = text.partition("\n")[2] or text
    lines = [_safe(line) for line in _without_sequences(text).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines[-count:] if count else []


def _without_sequences(text: str) -> str:
    """Without colours and their like (``ESC [ … letter``), titles, links (``ESC ] … BEL``, ``ESC \\``); whole ones only."""
    first, *rest = text.split(_ESCAPE)
    kept, skipping = [first], ""  # skipping: what a title may turn out to be, if its end never comes
    for part in rest:
        if skipping and part.startswith("\\"):
            kept.append(part[1:])
            skipping = ""
            continue
        kept.append(skipping)
        skipping = ""
        if part.startswith("["):
            end = 1
            while end < len(part) and "\x20" <= part[end] <= "?":
                end += 1
            whole = end < len(part) and "@" <= part[end] <= "~"
            kept.append(part[end + 1 :] if whole else _ESCAPE + part)
        elif part.startswith("]") and _BELL in part:
            kept.append(part.partition(_BELL)[2])
        elif part.startswith("]"):
            skipping = _ESCAPE + part
        else:
            kept.append(_ESCAPE + part)
    return "".join([*kept, skipping])


def _safe(line: str) -> str:
    # What a carriage return would have overwritten is not there any more.
    line = line.rstrip("\r").rpartition("\r")[2].expandtabs()
    if len(line) > _LINE_MAX:
        line = f"{line[:_LINE_MAX]}…"
    return "".join(letter if letter.isprintable() else _REPLACEMENT for letter in line).rstrip()


class Output:
    """Of generation ``number``. The relay is started when it is first needed."""

    def __init__(
        self,
        loop: Loop,
        number: int,
        options: Options,
        say: Callable[[str], object],
        living: set[Output],
    ) -> None:
        """``living``: it is one of these from its start until nothing is left of it."""
        self._loop = loop
        self._number = number
        self._say = say
        self._living = living
        self._prefix = f"[gen {number}] " if options.prefix else ""
        self._title = f"fdhandoff-relay: {options.name}, generation {number}"
        self._count = options.last_lines
        if self._count is None:
            # A program that writes to a pipe instead of a terminal writes without colours, and may hold back what it writes.
            self._count = 0 if os.isatty(_STDERR) and not self._prefix else LINES
        self._passes_by = not self._count and not self._prefix
        self._relay: Relay | None = None
        self._process: Process | None = None
        self._started = 0.0
        self._backoff = _BACKOFF_FIRST
        self._next_start: Timer | None = None
        self._over = False
        self._last = b""

    # --- for the processes of the generation ------------------------------------------------------------------

    def streams(self) -> dict[int, int]:
        """Its standard output and error → our descriptors that stand for them."""
        if self._relay is None and not self._passes_by and not self._over:
            self._open()
        if self._relay is None or not self._relay.writers:
            return {_STDOUT: _STDOUT, _STDERR: _STDERR}
        return {_STDOUT: self._relay.writers[1] if self._prefix else _STDOUT, _STDERR: self._relay.writers[0]}

    def for_commands(self) -> dict[int, int]:
        """The same for a command whose failure is the generation's: all that it writes is an explanation."""
        error = self.streams()[_STDERR]
        return {_STDOUT: error, _STDERR: error}

    def _open(self) -> None:
        targets = [_STDERR, _STDOUT] if self._prefix else [_STDERR]
        try:
            self._relay = Relay.create(targets, prefix=self._prefix, title=self._title)
            self._start()
        except (HandoffError, OSError) as error:
            self._passes_by = True
            self._say(f"generation {self._number} gets our own standard error, since there is no relay: {error}")
            if self._relay is not None:
                self._relay.close()
                self._relay = None

    # --- the relay ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        assert self._relay is not None
        self._watch(self._relay.start())
        self._living.add(self)

    def _watch(self, process: Process) -> None:
        self._process, self._started = process, time.monotonic()
        self._loop.waited.add(process.pid)
        self._loop.on_readable(process.fileno(), self._ended)

    def _forget(self) -> None:
        if self._process is not None:
            self._loop.forget(self._process.fileno())
            self._loop.waited.discard(self._process.pid)
            self._process.close()
            self._process = None

    def go_elsewhere(self) -> None:
        """Our standard output and error are other files now: the relay writes there, too, from the next byte on. It is another
        one, which goes on where this one was, since where it writes to was given to it when it was started."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.wait(after(1.0))
            self._forget()
            self._start_again()

    def _ended(self) -> None:
        assert self._process is not None
        pid, how = self._process.pid, self._process.wait(after(1.0))
        self._forget()
        if how is not None and how.status == 0:
            self._close()  # nobody can write any more, and all is written
            return
        self._say(f"the relay of generation {self._number}'s output (pid {pid}) {how or 'ended'}: the next one goes on")
        if time.monotonic() - self._started >= _STABLE_SECONDS:
            self._backoff = _BACKOFF_FIRST
            self._start_again()
        else:
            self._start_later()

    def _start_later(self) -> None:
        self._next_start = self._loop.after(self._backoff, self._start_again)
        self._backoff = min(self._backoff * 2, _BACKOFF_LAST)

    def _start_again(self) -> None:
        if self._relay is None:
            return
        try:
            self._start()
        except HandoffError as error:
            self._say(f"the relay of generation {self._number}'s output can't be started again now: {error}")
            self._start_later()

    # --- its end ------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """No process of the generation is started any more. What is still written by one that has left it passes on."""
        self._over = True
        if self._relay is not None:
            self._relay.release()

    def _close(self) -> None:
        if self._next_start is not None:
            self._next_start.cancel()
        self._forget()
        if self._relay is not None:
            self._last = self._relay.last()[0]
            self._relay.close()
            self._relay = None
        self._living.discard(self)

    def end(self, deadline: int) -> None:
        """We end, too. Waits for the relay to have written all, but not for a process that has left its generation: for that
        one the relay stays."""
        self.finish()
        process, relay = self._process, self._relay
        if process is None or relay is None:
            self._close()
            return
        patience = min(deadline, after(_PATIENCE_SECONDS))
        while process.wait(min(deadline, after(0.02))) is None:
            if relay.is_written_to():
                if passed(patience):
                    break
            elif passed(deadline):
                process.signal(signal.SIGKILL)
                process.wait(after(5.0))
                self._say(f"nobody takes what generation {self._number} wrote last: it is lost")
        self._close()

    # --- its last lines -----------------------------------------------------------------------------------------

    async def last_lines(self) -> list[str] | None:
        """Those that were written before the call; ``None`` where none are kept."""
        if not self._count or self._passes_by:
            return None
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._relay is not None:
            self._last, whole = self._relay.last()
            if whole or time.monotonic() >= until:
                break
            await pause(self._loop, _LOOK_SECONDS)
        return readable(self._last, self._count)

    # --- an exec in place ---------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], list[int]]:
        """What ``restore`` needs, and the descriptors in it: they must survive the exec. Empty without a relay."""
        if self._relay is None or self._process is None:
            return {}, []
        relay, process = self._relay, self._process
        found: dict[str, Any] = {
            "memory": relay.memory,
            "readers": list(relay.readers),
            "writers": list(relay.writers),
            "relay": [process.pid, process.started],
            "prefix": relay.prefix,
        }
        return found, [relay.memory, *relay.readers, *relay.writers]

    def restore(self, found: dict[str, Any], process: Process | None) -> None:
        """In the master that follows. ``process``: the relay, if it lives."""
        for fd in (found["memory"], *found["readers"], *found["writers"]):
            os.set_inheritable(fd, False)
        self._passes_by = False
        self._prefix = found["prefix"]
        targets = [_STDERR, _STDOUT] if len(found["readers"]) > 1 else [_STDERR]
        self._relay = Relay(
            found["memory"], found["readers"], found["writers"], targets, prefix=self._prefix, title=self._title
        )
        self._living.add(self)
        if process is not None:
            self._watch(process)
        else:
            self._start_again()


def end_all(outputs: Iterable[Output], seconds: float) -> None:
    """Waits until all is written, at most so long for all of them together."""
    deadline = after(seconds)
    for output in list(outputs):
        output.end(deadline)
