"""Runs a server's program that is killed when an older generation gives it connections.

Arguments: a moment, a file for the number of connections that it had acknowledged by then, and the program, which is a file, or
``-m`` and a module, with its arguments. The moments: ``greeted``, before it has answered the giver; ``came``, when a batch has
come and is not acknowledged; a number, when so many batches were taken.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from fdhandoff.moving import Guest


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # it may reach another thread first


def prepare(moment: str, book: Path) -> None:
    attend, receive = Guest._attend, Guest._receive
    one_by_one = threading.Lock()  # what is written down holds
    acknowledged = batches = 0

    def attending(self: Guest, deadline: int) -> bool:
        if moment == "greeted":
            die()
        return attend(self, deadline)

    def receiving(self: Guest, message: Any, *rest: Any) -> None:
        nonlocal acknowledged, batches
        with one_by_one:
            if moment == "came":
                die()
            receive(self, message, *rest)
            acknowledged += len(message.entries)
            batches += 1
            if moment == str(batches):
                book.write_text(str(acknowledged))
                die()

    book.write_text("0")
    Guest._attend = attending  # type: ignore[method-assign]
    Guest._receive = receiving  # type: ignore[method-assign]


moment, book, *program = sys.argv[1:]
prepare(moment, Path(book))
by_name = program[0] == "-m"
sys.argv = program[by_name:]
if by_name:
    runpy.run_module(program[1], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, os.path.dirname(program[0]))
    runpy.run_path(program[0], run_name="__main__")
