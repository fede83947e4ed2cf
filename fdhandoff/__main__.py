"""``python -m fdhandoff``: the command line, where the package is importable and nothing was installed."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
