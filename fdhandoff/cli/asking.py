"""A question to a service, and where nobody answers it: what a dead master left, which may serve all the same."""

from __future__ import annotations

from .. import client
from ..errors import NOBODY, HandoffError, PathError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def ask(path: str, verb: str, body: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """``client.ask``, for an operator who may have to act."""
    try:
        return client.ask(path, verb, body, **options)
    except PathError as error:
        left = _left_over(path) if error.serving == NOBODY else ""
        if not left:
            raise
        raise PathError(f"{error}; {left}", path=path, serving=NOBODY) from None


def _left_over(path: str) -> str:
    """The generations that the journal beside the path names and that live, and what to do; empty where there are none."""
    from ..master import journal  # late: nobody needs it whose service answers
    from ..master.resume import living

    try:
        state = journal.read(journal.path_of(path))
    except (HandoffError, ValueError):
        return ""  # one that can't be believed: the next start says so
    if state is None:
        return ""
    words = []
    for number, processes in living(state).items():
        words.append(f"generation {number} (pid {', '.join(str(process.pid) for process in processes)})")
        for process in processes:
            process.close()
    if not words:
        return ""
    return f"of a master that died there lives {', '.join(words)}: the same run again goes on with it, stop --left-over ends it"
