"""Two forked workers that accept, and a parent that lives the service's life."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from fdhandoff import Service

DIRECTORY = Path(sys.argv[1])
CONFIG = json.loads((DIRECTORY / "config.json").read_text())


def tell(*words: object) -> None:
    os.write(1, f"{os.getpid()} {' '.join(map(str, words))}\n".encode())


def work(service: Service, parent_signals: list[int]) -> None:
    ours = [signal.getsignal(number) for number in parent_signals]
    tell("worker", "default" if set(ours) <= {signal.SIG_DFL, signal.default_int_handler} else ours)

    def talk(connection, _) -> None:  # type: ignore[no-untyped-def]
        with connection:
            for line in connection.makefile("rb"):
                if line == b"die\n":
                    os.kill(os.getpid(), signal.SIGKILL)
                if line == b"leave\n":
                    connection.close()
                    sys.exit(3)  # through the service's context manager, in the worker
                if line == b"fds\n":
                    found = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
                    connection.sendall(f"{sum('socket:' in path for path in found)}\n".encode())
                    continue
                connection.sendall(f"{service.generation.number} {os.getpid()} worker\n".encode())
                if service.draining:
                    return

    tell("worker ends", service.serve(talk, batch=1))


def main() -> None:
    with Service(
        "workers", path=str(DIRECTORY / "handoff.sock"), probation=0.3, log=lambda line: tell("log", line)
    ) as service:
        listener = service.listen("main", CONFIG["listeners"]["main"])
        tell("listens", "main", json.dumps(listener.getsockname()).replace(" ", ""))
        service.ready()
        tell("ready", service.generation.number)
        workers = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                work(service, [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
                sys.exit(0)
            workers.append(pid)

        def reap() -> None:
            left = set(workers)
            while left:
                # Each as it ends; the service's own child, the successor, is not ours to wait for.
                for pid in list(left):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        left.discard(pid)
                        tell("reaped", pid, os.waitstatus_to_exitcode(status))
                time.sleep(0.01)

        reaper = threading.Thread(target=reap)
        reaper.start()
        tell("ends", service.wait())
        report = service.drain()
        tell("drained", report.finished, report.forced)
        reaper.join()
    tell("closed")


if __name__ == "__main__":
    main()
