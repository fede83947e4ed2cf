"""A job runner that is replaced while it works: accepted jobs finish where they are, new ones go to the successor.

    python examples/jobs.py /tmp/spool --path /tmp/jobs/handoff.sock     # in one terminal
    echo 'sleep 5; date > /tmp/done' > /tmp/spool/a.job                  # in another
    python examples/jobs.py /tmp/spool --path /tmp/jobs/handoff.sock     # in a third: it takes over, a.job finishes

Each file NAME.job is a shell script; it becomes NAME.running when it is accepted, and NAME.done or NAME.failed. There is no
listener: the gate counts jobs instead of connections.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fdhandoff import Service
from fdhandoff.jobs import Jobs


def accept(spool: Path) -> Path | None:
    """A job that nobody else has: whoever renames it has it."""
    for job in sorted(spool.glob("*.job")):
        try:
            return job.rename(job.with_suffix(".running"))
        except FileNotFoundError:
            continue  # somebody took it back
    return None


def run(job: Path, jobs: Jobs) -> None:
    """In a thread of its own. What is signalled to our process group does not reach the script, and it does not outlive us."""
    status = jobs.popen(["sh", "-e", str(job)]).wait()
    job.rename(job.with_suffix(".failed" if status else ".done"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("spool", type=Path, help="directory of *.job files")
    parser.add_argument("--path", default="", help="the handoff path, where generations meet")
    parser.add_argument("--probation", type=float, default=5.0, help="seconds in which a dead successor is replaced")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that accepted jobs get to finish")
    parser.add_argument("--at-most", type=int, default=0, help="jobs at once, all generations together; 0: no limit")
    options = parser.parse_args()
    options.spool.mkdir(parents=True, exist_ok=True)

    with (
        Service("jobs", path=options.path, probation=options.probation, grace=options.grace) as service,
        Jobs(service, at_most=options.at_most) as jobs,
    ):
        service.ready()
        for place in jobs:  # one at a time, until this process shall end; after a handover that failed it goes on
            job = accept(options.spool)
            if job is not None:
                place.start(run, job, jobs, name=job.stem)
            else:
                service.wait(0.1)
        jobs.drain()


if __name__ == "__main__":
    main()
