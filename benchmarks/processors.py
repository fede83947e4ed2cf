"""For ``os.sched_setaffinity``: a processor of its own for what is measured, and another for whoever asks it."""

from __future__ import annotations

import os

ALL = os.sched_getaffinity(0)
MEASURED, ASKING = {max(ALL)}, {min(ALL)}
