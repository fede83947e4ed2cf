"""Runs the benchmarks and prints one table. ``--check`` exits with 1 when a claim does not hold here and now.
``swaps`` counts what clients lose instead, and has options of its own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
from importlib import import_module

from .measure import Row

MODULES = ("gate", "accept", "channel", "ready", "cost", "upgrade", "windows", "master", "moving", "adapters")


def main() -> int:
    if sys.argv[1:2] == ["swaps"]:
        from .swaps import main as swaps

        return swaps(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(MODULES)}; all of them by default")
    parser.add_argument("--turns", type=int, default=9, help="how often each way is measured (default: 9)")
    parser.add_argument("--only", action="append", default=[], metavar="SERVER", help="of adapters, and of no other")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a claim does not hold")
    options = parser.parse_args()
    unknown = set(options.names) - set(MODULES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if options.only and options.names != ["adapters"]:
        parser.error("--only SERVER is for adapters alone")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    results: dict[str, list[Row]] = {}
    for name in options.names or MODULES:
        module = import_module(f".{name}", __package__)
        results[name] = module.run(options.turns, *([options.only] if options.only else []))
        if not options.json:
            show((module.__doc__ or "").partition("\n")[0], results[name])
    rows = [row for each in results.values() for row in each]
    if options.json:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
        print(json.dumps({"machine": machine, **{k: [r.as_dict() for r in v] for k, v in results.items()}}, indent=1))
    missed = [row.name for row in rows if row.holds is False]
    if missed:
        print(f"not as claimed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if options.check and missed else 0


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    wide = max(len(row.name) for row in rows)
    for row in rows:
        spread = f"{row.median:10,.1f} {row.unit:<3} ({min(row.samples):,.1f} - {max(row.samples):,.1f})"
        ratio = ""
        if row.against is not None:
            ratio = (
                f"{row.ratio:.2f} ±{row.doubt:.2f} x {'as fast as' if row.inverse else 'as long as'} {row.against.name}"
            )
        verdict = {True: "ok", False: "MISSED", None: ""}[row.holds]
        print(f"  {row.name:<{wide}}  {spread:<36} {ratio:<64} {row.claim:<8} {verdict}".rstrip())
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
