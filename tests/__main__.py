"""``python -m tests [PYTEST-OPTION…]``: all tests. Those of the supervisors, which mostly wait, run beside the others; what
they say comes when the others are through. Ends with 0 if all passed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SUPERVISORS = "tests/integration/supervisors"


def pytest(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *words, *sys.argv[1:]]


def main() -> int:
    # What failed is noted apart: for --last-failed, which both are given then.
    cache = Path(".pytest_cache", "supervisors")
    with tempfile.TemporaryFile() as out:
        beside = subprocess.Popen(
            pytest(SUPERVISORS, "-o", f"cache_dir={cache}"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            mine = subprocess.run(pytest("tests", f"--ignore={SUPERVISORS}"), check=False).returncode
            print(f"=== {SUPERVISORS}, beside", flush=True)
            theirs = beside.wait()
        except BaseException:
            beside.terminate()
            beside.wait()
            raise
        out.seek(0)
        sys.stdout.buffer.write(out.read())
        sys.stdout.flush()
    fine = (0, 5) if "--last-failed" in sys.argv else (0,)  # 5: there was none, as all of that half had passed
    return next((status for status in (mine, theirs) if status not in fine), 0)


if __name__ == "__main__":
    sys.exit(main())
