"""The command line with traps in the master: at each edge of an upgrade it tells a test where it is, and waits until it may go
on. Run as a script: the package's name, then the words of the command line; ``TRAP`` in the environment is the test's socket.

Two kinds of edges: at ``enter STEP``, ``journal``, ``choose``, … the whole master stands still, and whatever happens to it
happens between two system calls; at ``in STEP`` only the upgrade waits, and the master's loop goes on.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def _tell(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.environ["TRAP"])
    sock.sendall(name.encode() + b"\n")
    return sock


def stand(name: str) -> None:
    with _tell(name) as sock:
        sock.recv(1)


async def wait(loop: Any, name: str) -> None:
    from fdhandoff.master.tasks import Future

    over: Future[None] = Future()
    with _tell(name) as sock:
        loop.on_readable(sock.fileno(), lambda: over.set(None))
        try:
            await over
        finally:
            loop.forget(sock.fileno())


def around(owner: Any, name: str, before: str, after: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def trapped(*arguments: Any, **more: Any) -> Any:
        if before:
            stand(before)
        result = original(*arguments, **more)
        if after:
            stand(after)
        return result

    setattr(owner, name, trapped)


def before(owner: Any, name: str, edge: str, loop_of: Callable[..., Any]) -> None:
    """``edge`` may have ``{word}`` in it: the last of the second argument, a command."""
    original: Callable[..., Any] = getattr(owner, name)

    async def trapped(*arguments: Any, **more: Any) -> Any:
        word = str(arguments[1]).split()[-1] if "{word}" in edge else ""
        await wait(loop_of(*arguments), edge.replace("{word}", word))
        return await original(*arguments, **more)

    setattr(owner, name, trapped)


def set_traps() -> None:
    from fdhandoff.master import helper, journal, master, outlets, renaming, rollout, run, watching

    enter = rollout.Rollout.enter

    def trapped_enter(self: Any, step: str) -> None:
        if step:
            stand(f"enter {step.split()[0]}")
        enter(self, step)

    rollout.Rollout.enter = trapped_enter  # type: ignore[method-assign]
    before(rollout, "run_command", "in {word}", lambda loop, *_: loop)
    before(rollout, "await_ready", "in ready", lambda loop, *_: loop)
    for step in ("canary", "settle", "probation"):
        before(rollout.Rollout, f"_{step}", f"in {step}", lambda self: self.master.loop)
    before(master, "retire", "in drain", lambda the, _: the.loop)
    around(run, "spawn", "", "spawned")
    around(run.Run, "stop", "stop", "stopped")
    around(master.Master, "discard", "discard", "")
    write = journal.write

    def trapped_write(path: str, *arguments: Any, **more: Any) -> None:
        if path.endswith(watching.HISTORY):
            stand("history")
            write(path, *arguments, **more)
        else:
            stand("journal")
            write(path, *arguments, **more)
            stand("journaled")

    journal.write = trapped_write
    around(helper.Helper, "_start", "", "asked")
    around(watching.Watcher, "_point_at", "point", "")
    around(outlets.KernelOutlet, "choose", "choose", "chosen")
    around(renaming.RenameOutlet, "choose", "choose", "chosen")


if __name__ == "__main__":
    set_traps()
    # With the words as an argument it stays in this interpreter, where the traps are.
    sys.exit(import_module(f"{sys.argv[1]}.cli").main(sys.argv[2:]))
