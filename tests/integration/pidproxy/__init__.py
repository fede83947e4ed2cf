"""``pidproxy`` with programs that replace themselves: one of our own, whose every fault can be asked for, and real servers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from ..cli import Running, wait_for

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

#: A server of the endless kind: HUP starts a successor with the listener, which tells its parent to drain once it serves. TERM
#: drains. What else it does is asked for in its environment.
ENDLESS = """
import os, signal, socket, subprocess, sys, threading, time
folder = sys.argv[1]
mode = os.environ.get("MODE", "")
if mode == "background" and "FD" not in os.environ and os.fork():
    os._exit(0)
number = int(os.environ.get("NUMBER", "1"))
if "FD" in os.environ:
    listener = socket.socket(fileno=int(os.environ["FD"]))
else:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
listener.settimeout(0.02)
state = {"stop": 0, "open": True}
def note(word):
    with open(f"{folder}/signals", "a") as file:
        file.write(f"{number} {word}\\n")
def upgrade(*_):
    if mode == "forked":
        if os.fork() == 0:
            globals()["number"] += 1
            announce()
        return
    subprocess.Popen([sys.executable, *sys.argv], pass_fds=[listener.fileno()],
                     env={**os.environ, "FD": str(listener.fileno()), "NUMBER": str(number + 1)})
def stop(number_, _):
    note(signal.Signals(number_).name)
    if mode == "lastgasp" and number == 1:
        upgrade()
    state["stop"] = 1
def announce():
    if number > 1 and os.environ.get("FAULT") == "boot":
        os._exit(9)
    path = os.environ.get("PIDFILE")
    if path:
        with open(path + ".new", "w") as file:
            file.write(f"{os.getpid()}\\n")
        os.rename(path + ".new", path)
    with open(f"{folder}/port.new", "w") as file:
        file.write(f"{listener.getsockname()[1]} {number} {os.getpid()}")
    os.rename(f"{folder}/port.new", f"{folder}/port")
    if number > 1 and mode != "manual":
        os.kill(os.getppid(), signal.SIGTERM)
signal.signal(signal.SIGHUP, upgrade)
signal.signal(signal.SIGUSR1, lambda *_: note("USR1"))
signal.signal(signal.SIGTERM, stop)
if mode == "workers":
    for _ in range(2):
        if os.fork() == 0:
            for name in ("SIGHUP", "SIGUSR1", "SIGTERM"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            while True:
                time.sleep(100)
def serve(connection):
    with connection:
        connection.settimeout(30)
        try:
            asked = connection.recv(4096)
            if b"/sleep" in asked:
                time.sleep(float(asked.split(b"/sleep")[1].split()[0]))
            body = f"app {number} {os.getpid()}".encode()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body)
        except OSError:
            pass
announce()
threads = []
while not state["stop"]:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        continue
    threads = [thread for thread in threads if thread.is_alive()]
    threads.append(threading.Thread(target=serve, args=(connection,)))
    threads[-1].start()
listener.close()
for thread in threads:
    thread.join()
sys.exit(int(os.environ.get("STATUS", "0")))
"""


class Proxied:
    """``ENDLESS`` under a proxy, ours unless ``command`` is another one; nobody survives it."""

    def __init__(self, folder: Path, *options: str, wait: bool = True, **environ: str) -> None:
        self.folder = folder
        script = folder / "endless.py"
        script.write_text(ENDLESS, encoding="utf-8")
        self.running = Running("pidproxy", *options, "--", sys.executable, str(script), str(folder), env=environ)
        if wait:
            self.serves(1)

    def __enter__(self) -> Proxied:
        return self

    def __exit__(self, *_: object) -> None:
        family = descendants_of(self.pid)
        if self.running.process.poll() is None:
            self.running.process.kill()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.running.ends()

    @property
    def pid(self) -> int:
        return self.running.pid

    def facts(self) -> list[int]:
        """Port, number and pid of the one that announced itself last."""
        try:
            return [int(word) for word in (self.folder / "port").read_text().split()]
        except FileNotFoundError:
            return []

    def serves(self, number: int) -> int:
        """The pid of generation ``number``, once it serves."""

        def look() -> int:
            if self.running.process.poll() is not None:
                raise AssertionError(f"it ended with {self.running.process.returncode}: {self.running.text()}")
            facts = self.facts()
            return facts[2] if facts and facts[1] == number else 0

        return int(wait_for(look, f"generation {number}: {self.running.text()}"))

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.facts()[0]

    def signals(self) -> list[str]:
        """What the generations wrote down: number and signal."""
        try:
            return (self.folder / "signals").read_text().splitlines()
        except FileNotFoundError:
            return []

    def signal(self, number: int) -> None:
        self.running.signal(number)

    def upgrade(self, to: int) -> int:
        self.signal(signal.SIGHUP)
        return self.serves(to)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.running.ends()


def descendants_of(pid: int) -> list[int]:
    from fdhandoff.system.processes import descendants

    return descendants(pid)


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    from fdhandoff.system.processes import state_of

    return state_of(pid) in ("", "Z", "X")


def alone(proxy: Any, pid: int) -> None:
    """Until ``pid`` is the only child left of the proxy."""
    wait_for(lambda: [one for one in descendants_of(proxy) if not gone(one)] == [pid], f"{pid} to be alone")
