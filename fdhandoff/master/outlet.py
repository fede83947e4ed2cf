"""A listener as the master sees it, whatever its kind: which generation's queue gets a new connection."""

from __future__ import annotations

from ..errors import Unsupported
from ..system.fds import listener_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

RENAME = "rename"
# What ``mend`` says of a listener that was shut down.
LOST = "SO_ACCEPTCONN"

# Where a listener comes from, in ``status``.
BOUND, INHERITED, TAKEN, ADOPTED = "bound", "inherited", "taken over", "adopted"

# Instead of a slot: whoever had the listener before us.
BEFORE = -2


class Outlet:
    """One bound address. ``name`` is the listener's, ``address`` its canonical text, ``mode`` how it switches: ``kernel``
    (an accept queue per generation), ``rename`` (Unix: a socket per generation) or ``shared`` (one queue for all)."""

    name: str
    address: str
    mode: str
    text = ""  # as it was bound; empty where it was not bound here
    origin = BOUND
    home = -1  # where all shall wait at the end: the group's number for it
    stays = False  # also where the configuration says nothing of it
    probed = False
    host = ""
    only = -1  # the one slot whose generation knows this listener, where the others do not

    def give(self, slot: int) -> socket.socket:
        """The socket that the generation in ``slot`` gets; it stays the master's."""
        raise NotImplementedError

    def choose(self, old: int, new: int = -1, share: float = 0.0) -> None:
        """From now on ``share`` of the new connections go to slot ``new``, the others to ``old``."""

    def narrowed(self, old: int, new: int, share: float) -> tuple[int, int, float]:
        """What ``choose`` is to do."""
        return (old, new, share) if self.only < 0 else (self.only, -1, 0.0)

    def waiting(self, slot: int) -> int | None:
        """Connections in the slot's queue; ``None`` where the kernel does not say."""
        queue = listener_queue(self.give(slot).fileno())
        return queue[0] if queue else None

    def backlog(self, slot: int) -> int | None:
        queue = listener_queue(self.give(slot).fileno())
        return queue[1] if queue else None

    def connections(self, pids: Collection[int]) -> int:  # noqa: ARG002
        """How many connections through this listener these processes have."""
        return 0

    def half_open(self) -> frozenset[int]:
        """The connections whose client has not yet answered: promised to a queue, nobody can say to which."""
        return frozenset()

    def mend(self, slot: int, *, serving: bool = False) -> list[str]:  # noqa: ARG002
        """What a server did to its listener that others would suffer from, repaired: ``backlog``, ``O_NONBLOCK``,
        ``TCP_NODELAY``, or ``LOST``, after which ``give`` gives another socket where one can be had, and where new connections
        wait. While a generation is ``serving``, what concerns it alone is its own business."""
        return []

    def leave(self, slot: int) -> None:
        """The generation in ``slot`` has ended."""

    def connect_to(self, slot: int) -> socket.socket:  # noqa: ARG002
        """A non-blocking connection that goes to ``slot``, whoever the others go to, until ``end_probe``."""
        raise Unsupported(f"{self.name} can't be probed: its generations share one queue, or it is UDP")

    def end_probe(self) -> None:
        """The probe is over."""

    def accepted(self, slot: int, probe: socket.socket) -> bool:  # noqa: ARG002
        """Whether ``probe``, which is connected, has left the slot's queue: somebody accepted it."""
        return self.waiting(slot) == 0

    def connect(self) -> socket.socket:
        """A connection to whoever serves now."""
        raise Unsupported(f"{self.name} has no connections that could be given to another generation")

    def forsaken(self, slot: int) -> list[socket.socket]:
        """The connections that wait in the queue of a generation that is dead, accepted."""
        if not self.probed or not self.waiting(slot):
            return []
        return accept_all(self.give(slot))

    def stranded(self) -> list[socket.socket]:
        """The connections that wait where no generation of ours accepts, accepted."""
        return []

    def admit(self, slot: int, sock: socket.socket) -> None:
        """The generation in ``slot`` has bound this address itself, and ``sock`` is a copy of its listener: from here on it is
        the slot's. Takes it."""
        raise NotImplementedError

    def turn_away(self) -> None:
        """From now on new connections reach no generation; how that looks to a client depends on the kind."""

    def give_back(self) -> None:
        """As ``turn_away``, where somebody else holds this listener, too, and what comes will wait there."""

    def sockets(self) -> dict[int, socket.socket]:
        """The sockets that it holds, by slot: what a successor of the master must find again."""
        raise NotImplementedError

    def successor(self, slot: int, whole: bool) -> socket.socket:  # noqa: ARG002
        """The socket for whoever takes the service over; ``slot`` is free. ``whole``: they get all the others as well."""
        return self.give(slot)

    def succeed(self, slot: int, whole: bool) -> None:  # noqa: ARG002
        """From now on new connections go to the ``successor``."""
        self.choose(slot)

    def part(self, slot: int, whole: bool) -> None:  # noqa: ARG002
        """Closes it; the ``successor`` has it now."""
        self.close(unlink=False)

    def decline(self) -> None:
        """Closes it; it stays with whoever had it before."""
        self.close(unlink=False)

    def taken_from(self, slot: int) -> None:
        """Until we ``choose``, everything goes to ``slot``, where the generation of another master serves."""

    def go_back(self) -> None:
        """Everything to whoever served before us."""

    def stranded_count(self) -> int:
        """How many connections ``stranded`` would return."""
        return 0

    def settled(self) -> None:
        """It is ours alone: whoever had it before serves no more."""

    def lent_sockets(self) -> list[socket.socket]:
        """Those of its sockets that others hold as well."""
        return []

    def close(self, *, unlink: bool) -> None:
        """Ends it; ``unlink`` when no other process serves there."""
        raise NotImplementedError


def accept_all(listener: socket.socket) -> list[socket.socket]:
    """What waits in its queue."""
    found = []
    listener.setblocking(False)
    while True:
        try:
            found.append(listener.accept()[0])
        except BlockingIOError:
            return found
        except ConnectionAbortedError:
            continue
