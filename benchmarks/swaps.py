"""What clients lose when a server is swapped again and again: as it is, and with its adapter.

``plain``: a parent passes one TCP listener as descriptor 3, starts the next generation, waits until it answers, and tells
the old one to finish. ``run``: the same command under the kernel switch. ``adapter``: the server's adapter, under ``run``.
Clients of all kinds (``pressure.py``) are there all the time; then ``wrk`` with 8 connections that are never idle.
"""

from __future__ import annotations

import argparse
import atexit
import json
import mmap
import os
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdhandoff import HandoffError, ask
from fdhandoff.deadline import after
from fdhandoff.master.recognition import recognise
from fdhandoff.system import environment
from fdhandoff.system.process import Process, spawn

from .measure import C_PROGRAMS, ROOT, as_installed
from .servers import PATIENCE, free_port, get, wait_for
from .swapped import UNMODIFIED, Server, adapters, environment as of_programs
from .traces import Line, Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Traced = Callable[[str, str], None]

WAYS = ("plain", "run", "adapter")
#: How long a generation may go on with kept-alive connections before it is told to end.
GRACE = 2.0
#: How many old ones may be ending at once, by a plain descriptor, and how long the oldest is waited for then.
ENDING, ENDING_SECONDS = 8, 15.0
_WRK_SECONDS = 600
_ASKING = 8


class Plain:
    """A parent with one listener for all generations."""

    def __init__(self, server: Server, folder: Path, port: int) -> None:
        self.server, self.folder, self.port = server, folder, port
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # As a parent does that knows what becomes of them otherwise.
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.listener.setblocking(False)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(2048)
        self.command = server.command(folder)
        self.known = recognise(self.command, [f"127.0.0.1:{port}"])
        self.number = 0
        self.killed = 0
        self.traces: Traces | None = None
        self.old: list[Process] = []
        self.log = open(folder / "log", "ab")  # noqa: SIM115 - as long as it lives
        self.process = self._next()

    def _next(self) -> Process:
        self.number += 1
        self.server.deploy(self.folder, self.port, self.number)
        environ = {**as_installed(), **of_programs(), **self.known["env"], **environment.compose(["http"])}
        if self.known["conventions"]:
            environ["NGINX"] = "3;"
        environ[environment.GENERATION] = str(self.number)
        log = self.log.fileno()
        process = spawn(
            self.command,
            fds={0: 0, 1: log, 2: log, 3: self.listener.fileno()},
            env=environ,
            cwd=str(self.folder),
            own_group=1,
        )
        try:
            wait_for(lambda: self._answers(process), f"generation {self.number}")
        except BaseException:
            kill(process)
            raise
        return process

    def _answers(self, process: Process) -> bool:
        if not process.alive():
            raise SystemExit(f"generation {self.number} ended before it answered: {tail(self.folder)}")
        # Several at once: of idle threads of two generations at one queue the same may be woken first, each time.
        with ThreadPoolExecutor(_ASKING) as askers:
            asked = [askers.submit(get, self.port) for _ in range(_ASKING)]
        return any(f"app {self.number} " in one.result() for one in asked if not isinstance(one.exception(), OSError))

    def swap(self) -> None:
        if self.traces is not None:
            self.traces.before(self.number, [self.process.pid])
        old, self.process = self.process, self._next()
        name = self.known["signal"] or "SIGTERM"
        self._say(f"generation {self.number} answers; {name} for generation {self.number - 1}, process {old.pid}")
        old.signal(getattr(signal, name))
        self.old.append(old)
        while len(self.old) > ENDING:
            self._bury(self.old.pop(0))

    def _say(self, text: str) -> None:
        if self.traces is not None:
            self.traces.say(text)

    def _bury(self, process: Process) -> None:
        if process.wait(after(ENDING_SECONDS)) is None:
            self.killed += 1
        kill(process)

    def settle(self) -> None:
        while self.old:
            self._bury(self.old.pop(0))

    def close(self) -> None:
        for process in [*self.old, self.process]:
            kill(process)
        self.listener.close()
        self.log.close()


class Mastered:
    """``run``, and ``upgrade``."""

    def __init__(self, server: Server, folder: Path, port: int) -> None:
        self.server, self.folder, self.port = server, folder, port
        self.path = str(folder / "master.sock")
        self.number = 1
        self.killed = 0
        self.traces: Traces | None = None
        server.deploy(folder, port, 1)
        words = [
            "--path", self.path, "--bind", f"http=127.0.0.1:{port}", "--ready", "http:/", "--settle", "0.2",
            "--probation", "0.2", "--grace", str(GRACE), "--kill-after", str(ENDING_SECONDS), "--max-draining", "20",
            "--directory", str(folder), "--log-format", "json",
        ]  # fmt: skip
        with open(folder / "log", "ab") as log:
            self.master = subprocess.Popen(
                [sys.executable, "-m", "fdhandoff", "run", *words, *server.options, "--", *server.command(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**as_installed(), **of_programs()},
            )  # fmt: skip
        try:
            wait_for(self._serves, "the first generation")
        except BaseException:
            self.close()
            raise

    def _serves(self) -> bool:
        if self.master.poll() is not None:
            raise SystemExit(f"run ended: {tail(self.folder)}")
        try:
            return bool(self._status()["state"] == "serving")
        except HandoffError:
            return False

    def _status(self) -> dict[str, Any]:
        return ask(self.path, "status", timeout=PATIENCE)

    def swap(self) -> None:
        if self.traces is not None:
            alive = [one["pids"] for one in self._status()["generations"] if one["number"] == self.number]
            self.traces.before(self.number, [pid for pids in alive for pid in pids])
        self.number += 1
        self.server.deploy(self.folder, self.port, self.number)
        ask(self.path, "upgrade", {"wait": True}, timeout=90)

    def settle(self) -> None:
        wait_for(lambda: sum(bool(one["pids"]) for one in self._status()["generations"]) == 1, "the old ones' end")
        for event in self._events():
            if event["event"] == "message":
                self.killed += "it is killed" in event["text"]
                if self.traces is not None:
                    self.traces.events.append(Line(event["time"], event["text"]))

    def _events(self) -> Iterator[dict[str, Any]]:
        """What the master has said; the servers' own words stand between."""
        for line in (self.folder / "log").read_text(errors="replace").splitlines():
            if line.startswith('{"schema":'):
                yield json.loads(line)

    def close(self) -> None:
        if self.master.poll() is None:
            try:
                ask(self.path, "hurry", timeout=PATIENCE)
            except HandoffError:
                pass
            self.master.terminate()
            try:
                self.master.wait(20)
            except subprocess.TimeoutExpired:
                self.master.kill()
                self.master.wait()


def kill(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(after(5.0))
    process.close()


def tail(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-12:])


def prepared() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fdhandoff-swaps-"))
    folder.chmod(0o755)  # nginx reads as somebody else
    return folder


def measure(server: Server, way: str, swaps: int, wrk_swaps: int, traced: Traced | None) -> dict[str, Any]:
    """One server, one way; ``traced`` is told of each kind of trouble, with what happened."""
    make: Callable[[Server, Path, int], Plain | Mastered] = Plain if way == "plain" else Mastered
    began = time.monotonic()
    found: dict[str, Any] = {}
    for what, count in (("clients", swaps), ("wrk", wrk_swaps if shutil.which("wrk") else 0)):
        if not count:
            continue
        folder, port = prepared(), free_port()
        held = make(server, folder, port)
        try:
            found |= under_pressure(held, count, traced) if what == "clients" else under_wrk(held, count)
        finally:
            held.close()
            shutil.rmtree(folder, ignore_errors=True)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def under_pressure(held: Plain | Mastered, swaps: int, traced: Traced | None) -> dict[str, Any]:
    held.traces = None if traced is None else Traces(held.port)
    clients = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pressure", "127.0.0.1", str(held.port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert clients.stdout is not None
        if not select.select([clients.stdout], [], [], PATIENCE)[0]:
            raise TimeoutError("the clients had no answers")
        clients.stdout.readline()
        for _ in range(swaps):
            held.swap()
        held.settle()
        output, _ = clients.communicate(timeout=90)
    finally:
        clients.kill()
        clients.wait()
        if held.traces is not None:
            held.traces.close()
    found = json.loads(output)
    examples = found.pop("examples")
    if traced is not None and held.traces is not None:
        for how, ((at, port), *_) in sorted(examples.items()):
            traced(how, held.traces.tell(how, at, port))
    return {"swaps": swaps, **found, "killed": held.killed}


def under_wrk(held: Plain | Mastered, swaps: int) -> dict[str, Any]:
    counter = held.folder / "connects"
    counter.write_bytes(bytes(8))
    with open(counter, "r+b") as file, mmap.mmap(file.fileno(), 8) as memory:

        def connects() -> int:
            return int(struct.unpack("=Q", memory[:])[0])

        words = ["wrk", "-t1", "-c8", f"-d{_WRK_SECONDS}", "--timeout", "20", f"http://127.0.0.1:{held.port}/"]
        wrk = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": preload(), "CONNECTS": str(counter)},
        )
        try:
            wait_for(lambda: connects() > 8, "wrk's connections")  # one to see whether somebody is there, and eight
            before = connects()
            for _ in range(swaps):
                held.swap()
            held.settle()
            again = connects() - before
            wrk.send_signal(signal.SIGINT)
            output, _ = wrk.communicate(timeout=60)
        finally:
            wrk.kill()
            wrk.wait()
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    requests = re.search(r"(\d+) requests in", output)
    if requests is None:
        raise SystemExit(f"wrk said nothing that can be read: {output!r}")
    return {
        "wrk": {
            "swaps": swaps,
            "requests": int(requests[1]),
            "errors": dict(zip(("connect", "read", "write", "timeout"), map(int, errors.groups()), strict=True))
            if errors
            else {},
            "bad": int(other[1]) if other else 0,
            "reconnects": again,
        }
    }


_preloaded = ""


def preload() -> str:
    global _preloaded
    if not _preloaded:
        folder = tempfile.mkdtemp(prefix="fdhandoff-bench-")
        atexit.register(shutil.rmtree, folder)
        _preloaded = os.path.join(folder, "connects.so")
        command = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-shared", "-fPIC", "-D_GNU_SOURCE"]
        subprocess.run([*command, str(C_PROGRAMS / "connects.c"), "-o", _preloaded, "-ldl"], check=True)
    return _preloaded


# --- the table ----------------------------------------------------------------------------------------------

KEPT = ("busy", "idle", "big", "post")
HEAD = (
    "| server | how | swaps | requests | one to a connection | kept alive | silent, half-sent | connected again "
    "| `wrk`: requests | read errors | connected again |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, way: str, found: dict[str, Any]) -> str:
    def failed(*kinds: str) -> str:
        kinds_of: dict[str, int] = {}
        for kind in kinds:
            for how, count in found["failures"].get(kind, {}).items():
                kinds_of[how] = kinds_of.get(how, 0) + count
        said = ", ".join(f"{count} {how}" for how, count in sorted(kinds_of.items(), key=lambda item: -item[1]))
        return said or "0"

    killed = f"; {found['killed']} killed" if found["killed"] else ""
    wrk = found.get("wrk")
    cells = [
        name, f"{way}{killed}", str(found["swaps"]), f"{sum(found['answers'].values()):,}", failed("one-shot", "slow"),
        failed(*KEPT), failed("silent", "half"), str(found["reconnects"]),
        *([""] * 3 if wrk is None else [
            f"{wrk['requests']:,} in {wrk['swaps']}", str(sum(wrk["errors"].values()) + wrk["bad"]), str(wrk["reconnects"])
        ]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def chosen(names: list[str], ways: list[str]) -> Iterator[tuple[str, str, Server]]:
    with_adapter = adapters()
    for name in names or [*UNMODIFIED, *(name for name in with_adapter if name not in UNMODIFIED)]:
        for way in ways:
            server = (with_adapter if way == "adapter" else UNMODIFIED).get(name)
            if server is not None:
                yield name, way, server


def kept(path: str) -> list[dict[str, Any]]:
    """The rows of a file that was begun earlier."""
    if not os.path.exists(path):
        return []
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def same(row: dict[str, Any], name: str, way: str, swaps: int, wrk_swaps: int) -> bool:
    there = row.get("wrk", {}).get("swaps", 0) if shutil.which("wrk") else wrk_swaps
    return (row["server"], row["way"], row["swaps"], there) == (name, way, swaps, wrk_swaps)


def into(folder: Path, name: str, way: str) -> Traced:
    def write(how: str, text: str) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {way} {how}".lower()).strip("-")
        (folder / f"{slug}.txt").write_text(f"{name}, {way}: {text}", encoding="utf-8")

    return write


def main(arguments: list[str]) -> int:
    with_adapter = adapters()
    known = sorted({*UNMODIFIED, *with_adapter})
    parser = argparse.ArgumentParser(prog="python -m benchmarks swaps", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SERVER", help=f"which: {', '.join(known)}; all of them by default")
    parser.add_argument("--swaps", type=int, default=50, help="how often each is swapped (default: 50)")
    parser.add_argument("--wrk-swaps", type=int, default=10, help="how often under wrk (default: 10; 0 leaves it out)")
    parser.add_argument("--way", action="append", choices=WAYS, help="plain, run or adapter; all of them by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--rows",
        metavar="FILE",
        help="append each row to it, as JSON, once it is there; what it has is not measured again",
    )
    parser.add_argument(
        "--traces", metavar="DIR", type=Path, help="write there what happened on the wire and in the server, once for each "
        "kind of trouble; as root, with strace; it slows the server down, so its counts are not for the table",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(known):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    if options.swaps < 1:
        parser.error("--swaps is a number from 1 on")
    if options.traces and options.rows:
        parser.error("--traces changes what is counted: leave --rows out")
    if options.traces:
        options.traces.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    earlier = kept(options.rows) if options.rows else []
    if not options.json:
        print(HEAD, flush=True)
    for name, way, server in chosen(options.names, options.way or list(WAYS)):
        result = next((row for row in earlier if same(row, name, way, options.swaps, options.wrk_swaps)), None)
        if result is None:
            if not server.there():
                print(f"{name} is left out: {server.needs} is not installed", file=sys.stderr)
                continue
            traced = into(options.traces, name, way) if options.traces else None
            try:
                found = measure(server, way, options.swaps, options.wrk_swaps, traced)
            except (SystemExit, HandoffError, TimeoutError) as error:  # the others are measured all the same
                print(f"{name} ({way}) could not be measured: {error}", file=sys.stderr)
                continue
            result = {"server": name, "way": way, **found}
            if options.rows:
                with open(options.rows, "a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
        results.append(result)
        if not options.json:
            print(row(name, way, result), flush=True)
    if options.json:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
        print(json.dumps({"schema": 1, "machine": machine, "swaps": results}, indent=1))
    return 0
