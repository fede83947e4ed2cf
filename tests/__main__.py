"""``python -m tests [--again] [PYTEST-OPTION…]``: all tests. Those that mostly wait, of the supervisors and the like, run
beside the others; what they say comes when the others are through. Ends with 0 if all passed.

``--again``: only what failed the last time, and what was not run to its end then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

WAITING = [f"tests/integration/{name}" for name in ("supervisors", "jobs", "pidproxy", "releases")]
CACHE = Path(".pytest_cache")
RECORD = CACHE / "ended.json"
FAILED = 1  # pytest's own: tests ran to the end, and some failed

#: What is run, with a cache for each, in which pytest notes what failed.
HALVES = {
    "others": ["tests", *(f"--ignore={one}" for one in WAITING)],
    "waiting": [*WAITING, "-o", f"cache_dir={CACHE / 'waiting'}"],
}


def main(words: list[str]) -> int:
    again = "--again" in words
    options = [word for word in words if word != "--again"]
    ended: dict[str, int] = json.loads(RECORD.read_text()) if again and RECORD.exists() else {}
    commands = {
        half: [
            sys.executable,
            "-m",
            "pytest",
            *arguments,
            *(["--last-failed"] if ended.get(half) == FAILED else []),
            *options,
        ]
        for half, arguments in HALVES.items()
        if ended.get(half) != 0
    }
    RECORD.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as out:
        beside = None
        try:
            if "waiting" in commands:
                beside = subprocess.Popen(
                    commands["waiting"], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
                )
            if "others" in commands:
                ended["others"] = subprocess.run(commands["others"], check=False).returncode
            if beside is not None:
                print(f"=== {', '.join(WAITING)}, beside", flush=True)
                ended["waiting"] = beside.wait()
        finally:
            if beside is not None and beside.poll() is None:
                beside.terminate()
                beside.wait()
        out.seek(0)
        sys.stdout.buffer.write(out.read())
        sys.stdout.flush()
    CACHE.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(ended))
    return next((status for status in ended.values() if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
