"""How long a new generation of test_adapters.py's programs is on probation: half a second, or as ``PROBATION_SECONDS`` says."""

import os

SECONDS = float(os.environ.get("PROBATION_SECONDS", "0.5"))
