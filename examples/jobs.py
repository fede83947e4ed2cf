"""A job runner that is replaced while it works: accepted jobs finish where they are, new ones go to the successor.

    python examples/jobs.py /tmp/spool --path /tmp/jobs/handoff.sock     # in one terminal
    echo 'sleep 5; date > /tmp/done' > /tmp/spool/a.job                  # in another
    python examples/jobs.py /tmp/spool --path /tmp/jobs/handoff.sock     # in a third: it takes over, a.job finishes

Each file NAME.job is a shell script; it becomes NAME.running when it is accepted, and NAME.done or NAME.failed. There is no
listener: the gate counts jobs instead of connections.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import threading
from pathlib import Path

from fdhandoff import Service

running: dict[str, subprocess.Popen[bytes]] = {}


def run(job: Path, service: Service) -> None:
    """One accepted job, in a thread of its own; it has entered the gate."""
    try:
        # A process group of its own: what is signalled to ours (Ctrl-C, a supervisor that stops "as group") does not
        # reach it. The job is ours to end.
        process = subprocess.Popen(["sh", "-e", str(job)], start_new_session=True)
        running[job.stem] = process
        status = process.wait()
        running.pop(job.stem, None)
        job.rename(job.with_suffix(".failed" if status else ".done"))
    finally:
        service.gate.leave()


def take_jobs(spool: Path, service: Service) -> None:
    """Accepts what lies there, unless the gate is closed: then it is the successor's."""
    for job in sorted(spool.glob("*.job")):
        if service.gate.closed or not service.gate.enter():
            return
        try:
            accepted = job.rename(job.with_suffix(".running"))
        except FileNotFoundError:  # somebody took it back
            service.gate.leave()
            continue
        threading.Thread(target=run, args=(accepted, service), daemon=True).start()


def end_jobs() -> None:
    """The deadline has passed: no job outlives the runner unwatched."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        for process in list(running.values()):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                pass
        for process in list(running.values()):
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("spool", type=Path, help="directory of *.job files")
    parser.add_argument("--path", default="", help="the handoff path, where generations meet")
    parser.add_argument("--probation", type=float, default=5.0, help="seconds in which a dead successor is replaced")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that accepted jobs get to finish")
    options = parser.parse_args()
    options.spool.mkdir(parents=True, exist_ok=True)

    with Service("jobs", path=options.path, probation=options.probation, grace=options.grace) as service:
        service.ready()
        # wait() is false until this process shall end. After a handover that failed the gate is open again, and the
        # intake simply goes on.
        while not service.wait(0.1):
            take_jobs(options.spool, service)
        if service.drain().forced:
            end_jobs()


if __name__ == "__main__":
    main()
