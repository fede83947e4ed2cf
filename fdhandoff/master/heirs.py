"""Generations that can give connections to each other (docs/reference/protocol.md, "Moving connections"): the master says which
of them serves, and asks one that is to go to begin with it, before anybody would have told it to stop. Imported when there is
such a generation.
"""

from __future__ import annotations

import threading

from ..client import ask
from ..errors import HandoffError
from ..heir import doors_of, name_heir, user_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .master import Master
    from .run import Run

_ANSWER_SECONDS = 5.0


def ask_to_leave(master: Master, run: Run, directory: str) -> None:
    """Its processes that know how to drain do so from now on: they give their connections to the generation that serves, and
    end. The others are watched as ever."""
    paths = doors_of(directory, run.number)
    if not paths or master.current is None or master.current is run:
        return
    try:
        name_heir(directory, master.current.number)
    except (HandoffError, OSError) as error:
        master.say(f"the connections of {run} can't move to {master.current}: {error}")

    users = (user_of(directory),)

    def tell(path: str) -> None:
        try:
            ask(path, "drain", timeout=_ANSWER_SECONDS, allow_uids=users)
        except HandoffError as error:
            why = str(error)
            master.loop.call(lambda: master.say(f"{run} could not be asked to give its connections away: {why}"))

    for path in paths:
        threading.Thread(target=tell, args=(path,), name="fdhandoff-ask", daemon=True).start()
