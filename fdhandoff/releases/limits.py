"""What this process may have of something, for a while."""

from __future__ import annotations

import resource
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def at_most(number: int, which: int) -> Iterator[None]:
    """No more than ``number`` of ``which`` (``resource.RLIMIT_…``); a lower limit that is there already holds."""
    soft, hard = resource.getrlimit(which)
    limit = number if hard == resource.RLIM_INFINITY else min(number, hard)
    resource.setrlimit(which, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))
