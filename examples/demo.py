"""A real server under load, replaced again and again by processes that know nothing of each other but a path; and what its
clients saw of it.

    python examples/demo.py                          # or: make demo
    python examples/demo.py --server threaded --handoffs 10

Exit status 1 if any client saw anything but a complete answer from a generation that was to give it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from load import KEEP_ALIVE, KINDS, ONE_REQUEST, Book, Load

HERE = Path(__file__).resolve().parent
DEADLINE = 30.0


class Server:
    """One server process, started like any other: nothing is passed to it but its command line."""

    def __init__(self, script: str, arguments: list[str], release: int) -> None:
        self.command = [sys.executable, str(HERE / script), *arguments, "--release", str(release)]
        self.lines: list[str] = []
        self.process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Event()

    async def start(self, *more: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path[1:]])}
        self.process = await asyncio.create_subprocess_exec(
            *self.command, *more, stderr=asyncio.subprocess.PIPE, env=environment, start_new_session=True
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode().strip())
            self._changed.set()

    async def says(self, words: str) -> None:
        """Returns once it has logged a line with these words."""
        async with _within(DEADLINE, f"{self.command[1]} did not say {words!r}: {self.lines}"):
            while not any(words in line for line in self.lines):
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> int:
        assert self.process is not None
        async with _within(DEADLINE, f"pid {self.process.pid} did not end: {self.lines}"):
            await self.process.wait()
            await self._reader
        return int(self.process.returncode or 0)


@contextlib.asynccontextmanager
async def _within(seconds: float, complaint: str):  # type: ignore[no-untyped-def]
    """asyncio.timeout, which Python 3.10 lacks."""
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
    try:
        yield
    except asyncio.CancelledError:
        raise SystemExit(f"demo: {complaint}") from None
    finally:
        timer.cancel()


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--server", choices=("asyncio", "threaded"), default="asyncio", help="which example to run")
    parser.add_argument("--handoffs", type=int, default=5, help="how many times it is replaced")
    parser.add_argument("--steady", type=float, default=4.0, help="seconds of load before the first handoff")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two handoffs")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        path = Path(directory, "demo", "handoff.sock")
        path.parent.mkdir(mode=0o700)
        arguments = ["--listen", f"127.0.0.1:{port}", "--path", str(path), "--probation", "0.5"]
        script = f"{options.server}_http.py"
        book = Book()
        load = Load("127.0.0.1", port, book)
        print(f"{script} on 127.0.0.1:{port}; generations meet at {path}\n")
        began = time.monotonic()

        def tell(what: str) -> None:
            print(f"  {time.monotonic() - began:5.1f} s  {what}", flush=True)

        owner = Server(script, arguments, 1)
        await owner.start()
        await owner.says("generation 1 serves")
        tell(f"generation 1 (pid {owner.process.pid}) serves; the load begins")
        load.start()
        await asyncio.sleep(options.steady)

        windows: list[tuple[float, float]] = []
        refused = False
        for number in range(2, options.handoffs + 2):
            if number == (options.handoffs + 3) // 2:
                refused = True
                opened = time.monotonic()
                await _bad_release(Server(script, arguments, 666), tell)
                windows.append((opened, time.monotonic()))
                await asyncio.sleep(options.pause)
            opened = time.monotonic()
            load.slow(2.0)
            load.silent(1.5)
            successor = Server(script, arguments, number)
            await successor.start()
            await successor.says(f"generation {number} serves")
            book.newest = number
            took = time.monotonic() - opened
            status = await owner.ended()
            windows.append((opened, time.monotonic()))
            tell(
                f"generation {number} (pid {successor.process.pid}) serves {took * 1000:.0f} ms after its start; "
                f"the one before drained and exited with {status}"
            )
            if status:
                book.failures.append(("process", time.monotonic(), f"exit status {status}: {owner.lines}"))
            owner = successor
            await asyncio.sleep(options.pause)

        await load.stop()
        owner.process.terminate()
        status = await owner.ended()
        tell(f"the load has ended; SIGTERM; the last one exited with {status}")
        if status:
            book.failures.append(("process", time.monotonic(), f"exit status {status}: {owner.lines}"))
        left = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock"))
        if left:
            book.failures.append(("process", time.monotonic(), f"left behind: {left}"))
    return _report(book, windows, options.handoffs, refused)


async def _bad_release(server: Server, tell) -> None:  # type: ignore[no-untyped-def]
    await server.start("--broken")
    status = await server.ended()
    tell(f"a bad release fails its own check and exits with {status}: {server.lines[-1]!r}; the owner serves on")


# --- what the clients saw -----------------------------------------------------------------------------------


def _report(book: Book, windows: list[tuple[float, float]], handoffs: int, refused: bool) -> int:
    print(f"\n  {'clients':18}{'connections':>12}{'requests':>10}{'failed':>8}")
    for kind in KINDS:
        print(f"  {kind:18}{book.connections[kind]:12}{book.asked[kind]:10}{book.failed(kind):8}")
    asked, failed = sum(book.asked.values()), len(book.failures)
    unaccounted = asked - len(book.answers) - sum(book.failed(kind) for kind in KINDS)
    print(f"  {'all':18}{sum(book.connections.values()):12}{asked:10}{failed:8}")

    print("\n  answered by generation  " + "  ".join(f"{g}: {n}" for g, n in sorted(book.generations().items())))

    print(f"\n  {'latency, ms':18}{'requests':>12}{'p50':>10}{'p99':>8}{'longest':>9}")
    for kind in (ONE_REQUEST, KEEP_ALIVE):
        during, steady = [], []
        for one, begin, end, _ in book.answers:
            if one == kind:
                inside = any(begin < closed and end > opened for opened, closed in windows)
                (during if inside else steady).append((end - begin) * 1000)
        for label, values in ((f"{kind}: steady", steady), ("… in handoffs", during)):
            if values:
                values.sort()
                p50, p99 = (values[int(len(values) * share)] for share in (0.5, 0.99))
                print(f"  {label:24}{len(values):6}{p50:10.2f}{p99:8.2f}{values[-1]:9.2f}")
    print(
        "\n  A handoff lasts here from the start of the new process, whose own start takes processor time, to the end of"
        "\n  the old one. Server, successor and clients share this machine."
    )

    for kind, _, reason in book.failures[:20]:
        print(f"  FAILED ({kind}) {reason}")
    if unaccounted:
        print(f"  FAILED: {unaccounted} requests are neither answered nor failed")
    if failed or unaccounted:
        print(f"\n  {failed} failures: this is a defect, please report it")
        return 1
    bad = " and a bad release" if refused else ""
    print(f"\n  {handoffs} handoffs between unrelated processes{bad}: {asked} requests, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
