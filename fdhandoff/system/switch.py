"""The switch: one accept queue per generation behind one address, and a program in the kernel that says which of them gets
the next connection.

A ``Group`` is one bound TCP or UDP address. Its members are sockets in one SO_REUSEPORT group, and they all listen from the
start: first the **slots**, of which each generation is given one (its socket, and so its queue), then for TCP as many
**spares** behind them. The kernel's program returns an index, so everything rests on knowing which member has which:

- A socket joins with the highest index. When one leaves, the *last* takes its index; the others stay.
- The master holds every member, so none leaves because a generation ends. One does leave when a server calls ``shutdown()``
  on its listener: then the last spare takes its index. No other slot moves, the program stays right, and what arrives for the
  lost slot waits in a queue that the master holds, until ``repair`` makes that spare the slot's new socket.
- A member is replaced by adding the new one first: last, it takes the index of the old one when that leaves.
- Whoever binds the same address with SO_REUSEPORT and listens joins behind ours, and gets nothing: no program returns that
  index. ``admit`` makes such a socket a slot's own.

So slot *i* always has index *i*. An index outside the group makes the kernel hash over all members, spares included; the
program never returns one. All of this was tried on Linux 6.18; the tests try it again, operation by operation.

With ``net.ipv4.tcp_migrate_req=1`` the kernel gives what waits in the queue of a member that leaves to any other one, spares
included.
"""

from __future__ import annotations

import errno
import os
import socket

from ..errors import ListenerError, SystemCallError, Unsupported
from . import sockets
from .connections import bound, half_open
from .fds import describe, listener_queue
from .hearing import be_deaf, hear, hung_up, meminfo
from .native import check, features, ffi, lib
from .prober import HOPS, Prober, packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .connections import Seen
    from .sockets import BindSpec

_ALL = 0xFFFFFFFF

# Options that connections inherit from their listener, or that decide who may share its address: level, number.
_COPIED = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, 12),  # SO_PRIORITY
    (socket.IPPROTO_IP, 1),  # IP_TOS
    (socket.IPPROTO_IP, 15),  # IP_FREEBIND
    (socket.IPPROTO_IP, 19),  # IP_TRANSPARENT
)
_COPIED_V6 = ((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), (socket.IPPROTO_IPV6, 67))  # IPV6_TCLASS
_COPIED_TCP = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, 4),  # TCP_KEEPIDLE
    (socket.IPPROTO_TCP, 5),  # TCP_KEEPINTVL
    (socket.IPPROTO_TCP, 6),  # TCP_KEEPCNT
    (socket.IPPROTO_TCP, 9),  # TCP_DEFER_ACCEPT
    (socket.IPPROTO_TCP, 18),  # TCP_USER_TIMEOUT
    (socket.IPPROTO_TCP, 23),  # TCP_FASTOPEN
)
_COPIED_UDP = (
    (socket.IPPROTO_IP, 8),  # IP_PKTINFO
    (socket.IPPROTO_IPV6, 49),  # IPV6_RECVPKTINFO
)


class Choice:
    """What a group's program does. ``old`` and ``new`` are ranges of slots, ``new`` empty where there is none; ``share`` of
    the new connections, 0 to 1, goes to ``new``; what comes from ``probe`` (address and port) goes to the first slot of
    ``new``; with ``by_flow`` a hash of source address and port decides, else chance.
    """

    __slots__ = ("by_flow", "new", "old", "probe", "share")

    def __init__(
        self,
        old: range,
        new: range = range(0),
        share: float = 0.0,
        probe: tuple[str, int] | None = None,
        by_flow: bool = False,
    ) -> None:
        self.old = old
        self.new = new
        self.share = share
        self.probe = probe
        self.by_flow = by_flow

    def __repr__(self) -> str:
        return f"Choice({', '.join(f'{name}={getattr(self, name)!r}' for name in ('old', 'new', 'share', 'probe'))})"


_UNKNOWN = Choice(range(0xFFFF, 0x10000))  # no index of any group: the kernel hashes over all members


class Group:
    """One address with its slots. ``bind``, ``join`` or ``from_sockets`` makes one; ``close`` it. ``choice`` is what is
    attached, ``None`` where that is not known (``from_sockets`` without one); ``slots`` is how many there are.

    A slot's socket polls as hung up once a server called ``shutdown()`` on it: registered with no events at all, the master
    is woken by that and nothing else. Then ``repair``.
    """

    __slots__ = (
        "_backlog",
        "_effective",
        "_joined",
        "_members",
        "_name",
        "_nodelay",
        "choice",
        "family",
        "slots",
        "type",
    )

    def __init__(self, members: list[socket.socket], slots: int, backlog: int) -> None:
        """Takes the sockets, in the order of their indices. Use one of the class methods."""
        first = members[0]
        self._members = members
        self._name = first.getsockname()
        self._backlog = backlog
        self._effective = 0
        self._joined = -1  # what SO_REUSEPORT of the listener was that we joined
        self._nodelay = self._is_tcp(first) and bool(first.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.slots = slots
        self.choice: Choice | None = None
        self.family = int(first.family)
        self.type = int(first.type)

    @classmethod
    def bind(cls, spec: BindSpec, slots: int) -> list[Group]:
        """A group for each address that ``spec`` resolves to, all or none. Everything goes to slot 0, from the first
        connection on (what ``join`` says of some microseconds holds here, too).

        Errors as of ``sockets.bind``: a port that anybody has is taken, whatever SO_REUSEPORT says, and ``reuseport`` in
        ``spec`` means nothing here. ``Unsupported`` where there is no switch, and for Unix sockets.
        """
        if spec.kind not in ("tcp", "udp"):
            raise Unsupported(f"{spec}: only TCP and UDP have a switch in the kernel")
        _supported(slots)
        groups: list[Group] = []
        # Without SO_REUSEPORT, so that whoever has the address is in the way, and nobody can come in between.
        claimed = sockets.bind(_exclusive(spec))
        try:
            while claimed:
                groups.append(cls([claimed[0]], slots, spec.backlog))
                del claimed[0]
                groups[-1]._found()
                groups[-1]._fill()
                os.set_blocking(groups[-1].slot(0).fileno(), False)
        except BaseException:
            for sock in claimed:
                sock.close()
            for group in groups:
                group.close()
            raise
        return groups

    @classmethod
    def join(cls, listener: socket.socket, slots: int, backlog: int = sockets.BACKLOG) -> Group:
        """A group around a listener (or bound UDP socket) that was inherited or adopted: it becomes slot 0, which gets
        everything, without a connection lost. Takes the socket, except when it raises.

        A connection that comes in the microseconds in which the kernel lets a second socket join and no program be
        attached yet is either queued in slot 0, or its first packet is dropped and the client's kernel sends it again
        (after a second; UDP clients at their own discretion).

        ``Unsupported`` when the kernel refuses or others share the address already: share the listener between the
        generations instead.
        """
        _supported(slots)
        described = describe(listener.fileno())
        tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
        if described is None or described.family not in (socket.AF_INET, socket.AF_INET6):
            raise Unsupported("only TCP and UDP have a switch in the kernel")
        if described.type != (tcp if described.listening else udp) or described.connected:
            raise Unsupported(f"{described} neither listens nor is an unconnected UDP socket")
        _alone(listener, described.cookie)
        before = listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        queue = listener_queue(listener.fileno())
        group = cls([listener], slots, max(backlog, queue[1]) if queue else backlog)
        group._joined = int(before)
        try:
            group._found()
            group._fill()
        except (SystemCallError, Unsupported) as error:
            group._release(before)
            if isinstance(error, Unsupported):
                raise
            why = _why_no_second(error.errno)
            raise Unsupported(f"{described} can't get a second queue{why}: {error}") from None
        except BaseException:
            group._release(before)
            raise
        return group

    @classmethod
    def from_sockets(
        cls,
        members: Sequence[socket.socket],
        slots: int,
        *,
        in_order: bool = True,
        backlog: int = sockets.BACKLOG,
        choice: Choice | None = None,
    ) -> Group:
        """A group of sockets that are one already, after this process replaced another that made it. Takes them, except when it
        raises.

        ``in_order``: they are ``members()`` of that other, all of them, and ``choice`` was its choice, which is attached again
        (without one, the program stays what it is). Else some members have gone, as after a SIGKILL, and the order of these
        is asked from the kernel, which takes a packet for each, and meanwhile lets the kernel hash over them. They become the
        first slots (``slot_of`` tells which); the first of ``members``, as they are given, gets everything. What is missing
        is added.

        ``ListenerError`` when the sockets are no group, or not all of it.
        """
        _supported(slots)
        group = cls(list(members), max(slots, 1 if in_order else len(members)), backlog)
        try:
            if not in_order:
                if len(members) > 1:
                    group._members = group._located(group._members)
                live = group._members.index(members[0])
                group._attach(Choice(range(live, live + 1)))  # before there are members that nobody accepts from
            elif choice is not None:
                group._attach(choice)
            group._fill()
        except BaseException:
            group._keep(len(members))
            raise
        return group

    def __repr__(self) -> str:
        return f"<Group {self.address} {self.slots} slots, {self.choice}>"

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what there is --------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        host, port = self._name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def port(self) -> int:
        return int(self._name[1])

    def slot(self, index: int) -> socket.socket:
        """The socket for the generation that has this slot. It stays the group's; ``repair`` and ``renew`` close it."""
        return self._members[range(self.slots)[index]]

    def slot_of(self, cookie: int) -> int | None:
        """Which slot has the socket of this SO_COOKIE."""
        for index in range(self.slots):
            described = describe(self._members[index].fileno())
            if described is not None and described.cookie == cookie:
                return index
        return None

    def members(self) -> list[socket.socket]:
        """All sockets in the order of their indices, the spares behind the slots: what ``from_sockets`` wants."""
        return list(self._members)

    def queue(self, index: int) -> tuple[int, int]:
        """Connections that wait in the slot's queue, and its backlog in force; for UDP the bytes that its waiting datagrams
        occupy, 0 when none waits, and the limit.
        """
        sock = self.slot(index)
        if not self._is_tcp(sock):
            used, limit = meminfo(sock)[:2]
            return used, limit
        return listener_queue(sock.fileno()) or (0, 0)

    def half_open(self) -> frozenset[int]:
        """The connections whose client has not yet answered, whichever slot saw them begin. Asked right after ``choose``
        and again: once the two share nothing, no connection that began before can reach the old slot any more.
        """
        return half_open(self.port, self.family) if self._is_tcp(self._members[0]) else frozenset()

    # --- choosing -------------------------------------------------------------------------------------------------

    def choose(
        self,
        old: int | range,
        new: int | range | None = None,
        share: float = 0.0,
        probe: tuple[str, int] | None = None,
        by_flow: bool | None = None,
    ) -> None:
        """From the next connection on: ``share`` of them (0 to 1) to ``new``, the others to ``old``, each a slot or a range of
        them, and what comes from the source ``probe`` to ``new`` alone, to its first slot. ``by_flow`` is true for UDP unless
        one says otherwise, so that a flow stays where it is.

        One system call. When it fails (``SystemCallError``) what was attached stays.
        """
        olds, news = self._range(old), range(0) if new is None else self._range(new)
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a share is a number from 0 to 1, not {share!r}")
        if not news and (share or probe):
            raise ValueError("a share or a probe needs new slots to go to")
        by_flow = self.type == socket.SOCK_DGRAM if by_flow is None else by_flow
        self._attach(Choice(olds, news, share, probe, by_flow))

    def _range(self, slots: int | range) -> range:
        wanted = range(slots, slots + 1) if isinstance(slots, int) else slots
        if not wanted or wanted.step != 1 or wanted.start < 0 or wanted.stop > self.slots:
            raise ValueError(f"{slots!r} are no slots: there are 0 to {self.slots - 1}")
        return wanted

    def _attach(self, choice: Choice) -> None:
        target = choice.new.start if choice.new else choice.old.start
        self._program(choice, target)
        self.choice = choice

    def _program(self, choice: Choice, probe_index: int) -> None:
        """Compiles and attaches; remembers nothing."""
        wanted = ffi.new("struct fdh_switch *")
        wanted.old_share.base, wanted.old_share.count = choice.old.start, len(choice.old)
        wanted.new_share.base, wanted.new_share.count = choice.new.start, len(choice.new)
        wanted.new_per_2_32 = _ALL if choice.share == 1.0 else min(int(choice.share * 2**32), _ALL - 1)
        wanted.family = self.family
        wanted.by_flow = choice.by_flow
        if choice.probe is not None:
            family, raw = packed(choice.probe[0])
            if family == socket.AF_INET6 != self.family:
                raise ValueError(f"{choice.probe[0]} can't reach {self.address}: it is of the other family")
            wanted.probe_family, wanted.probe_port, wanted.probe_index = family, choice.probe[1], probe_index
            ffi.memmove(wanted.probe_address, raw, len(raw))
        program, count = ffi.new("struct fdh_instruction[]", lib.FDH_SWITCH_MAX), ffi.new("size_t *")
        doing = "switching connections"
        check("compile", lib.fdh_switch_compile(wanted, program, lib.FDH_SWITCH_MAX, count), doing)
        # By the last member, which no server has, unless a server shut too many down.
        fd = next((sock for sock in reversed(self._members) if self._is_member(sock)), self._members[0]).fileno()
        check("setsockopt(SO_ATTACH_REUSEPORT_CBPF)", lib.fdh_switch_attach(fd, program, count[0]), doing)

    # --- mending --------------------------------------------------------------------------------------------------

    def check(self, index: int, *, serving: bool = False) -> list[str]:
        """What a server did to the slot's socket, repaired: ``SO_ACCEPTCONN`` (it no longer listened: ``repair`` gave the slot
        a new socket), ``backlog`` (lowered), ``O_NONBLOCK`` (cleared), ``TCP_NODELAY`` (changed). Empty when all is well.

        The last two are the server's own business while it is ``serving``; the next one must not find them changed.
        """
        wrong = []
        sock = self.slot(index)
        if self._is_tcp(sock):
            if not self._is_member(sock):
                self.repair()
                return ["SO_ACCEPTCONN"]
            if self.queue(index)[1] < self._effective:
                self._listen(sock)
                wrong.append("backlog")
        elif hung_up(sock):
            wrong.append("shutdown")
        if serving:
            return wrong
        if os.get_blocking(sock.fileno()):
            os.set_blocking(sock.fileno(), False)
            wrong.append("O_NONBLOCK")
        if self._is_tcp(sock) and bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) != self._nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(self._nodelay))
            wrong.append("TCP_NODELAY")
        return wrong

    def repair(self, *, thorough: bool = False) -> list[int]:
        """Gives each slot whose socket left the group, because a server called ``shutdown()`` on it, a new one: the spare that
        the kernel has put in its place, with the connections that wait there. Returns those slots: their generations accept
        nothing any more. The other slots are not disturbed, and what is attached stays right.

        A server that makes its socket listen again is back in the group, elsewhere. That shows when a connection for it waits
        in a spare's queue, or when we look ``thorough``ly, which takes a packet to ourselves for each member.
        """
        if self.type == socket.SOCK_DGRAM:
            return []
        members = self._members
        alive = [sock for sock in members if self._is_member(sock)]
        lost = [sock for sock in members if not self._is_member(sock)]
        stray = any((listener_queue(sock.fileno()) or (0, 0))[0] for sock in members[self.slots :] if sock in alive)
        if not lost and not stray and not thorough:
            return []
        before = members[: self.slots]
        if len(lost) == 1 and not stray and not thorough:
            order = members[:-1]
            if lost[0] is not members[-1]:
                order[members.index(lost[0])] = members[-1]
        else:
            order = self._located(alive)  # in which order they left can't be seen from here
        if len(order) < self.slots:
            raise ListenerError(f"{self.address}: too many of its queues were shut down at once, start it afresh")
        self._members = order
        for sock in lost:
            sock.close()
        # A slot's socket anywhere else than at its index was shut down and listens again.
        for index, sock in enumerate(order):
            if sock in before and (index >= self.slots or before[index] is not sock):
                self._replace(index)
        self._fill()
        if self.choice is not None:
            self._attach(self.choice)
        return [index for index, sock in enumerate(before) if self._members[index] is not sock]

    def renew(self, index: int) -> socket.socket:
        """A new socket for this slot, also when a process that we don't want to serve still has the old one: that hears no
        more connections, and what waited in its queue is reset, so wait until it is empty. No other slot is disturbed.
        ``Unsupported`` for UDP, whose sockets stay in the group until the last process that has them closes them.
        """
        if self.type == socket.SOCK_DGRAM:
            raise Unsupported(f"{self.address}: a UDP socket can't be taken out of its group while a process has it")
        if self._is_member(self.slot(index)):
            self._replace(index)
        else:
            self.repair()  # a server shut it down, and so a spare has its place
        return self._members[index]

    def admit(self, index: int, sock: socket.socket) -> int:
        """Makes ``sock``, a copy of a listener that another process bound to this very address with SO_REUSEPORT, the socket of
        slot ``index``; the one that the slot had leaves, and what waited in its queue is reset. Returns the slot that it has:
        another one, if a server shut that one's socket down before we looked, because then the kernel put the newcomer in
        that place. Nothing else moves. Takes ``sock``.

        ``ListenerError`` when it is not in this group; ``Unsupported`` for UDP, where nothing can be taken out.
        """
        try:
            if self.type == socket.SOCK_DGRAM:
                raise Unsupported(f"{self.address}: a UDP socket can't give its place to another")
            if not self._is_member(sock):
                raise ListenerError(f"{self.address}: what was to be a queue of it does not listen there")
            alive = [member for member in self._members if self._is_member(member)]
            order = self._located([*alive, sock])
            place = order.index(sock)
            if len(order) < self.slots:
                raise ListenerError(f"{self.address}: too many of its queues were shut down at once, start it afresh")
        except BaseException:
            sock.close()
            raise
        lost = [member for member in self._members if member not in alive]
        self._members = order
        if place >= self.slots:
            while order[-1] is not sock:  # a spare that was added since it came
                self._take_out(order.pop())
            leaving, order[index] = order[index], order.pop()
            self._take_out(leaving)
            place = index
        for member in lost:
            member.close()
        self._fill()
        if self.queue(place)[1] < self._effective:
            self._listen(sock)
        if self.choice is not None:
            self._attach(self.choice)
        return place

    def strangers(self) -> list[Seen]:
        """The listeners at our port, whatever their address, that are none of this group's members as we know them."""
        ours = {described.cookie for sock in self._members if (described := describe(sock.fileno())) is not None}
        return [seen for seen in bound(self.port, self.type) if seen.cookie not in ours]

    def has_address_of(self, seen: Seen) -> bool:
        """Whether it is bound to the very address of this group."""
        return seen.family == self.family and seen.local == (self._name[0].partition("%")[0], self._name[1])

    def deafen(self, index: int) -> None:
        """What comes to this slot from now on is dropped, as if the network had lost it: a client's kernel sends it again."""
        be_deaf(self.slot(index), 255, [(0x06, 0, 0, 0)])

    def add_slot(self) -> int:
        """One slot more; its number. The first spare becomes it, so nothing else changes."""
        self.slots += 1
        try:
            self._fill()
        except BaseException:
            self.slots -= 1
            raise
        return self.slots - 1

    def close(self) -> None:
        """Closes every socket. Those that generations have stay in the group. Idempotent."""
        # From the end: as long as there are others behind it, none takes the index of one that stays.
        while self._members:
            self._members.pop().close()

    def leave_to(self, index: int, others: Collection[int] = ()) -> None:
        """Closes every socket of ours so that from now on all goes to this slot's, which somebody else holds too. ``others``
        are further slots that outlive us. A listener that we joined, and that is left alone, is as it was.

        What comes in the moment in which the kernel renumbers the members is dropped, as if the network had lost it. No
        generation may serve the rest any more. Idempotent.
        """
        if not self._members:
            return
        staying = {range(self.slots)[place] for place in (index, *others)}
        for place, sock in enumerate(self._members):
            if place not in staying:
                be_deaf(sock, 255, [(0x06, 0, 0, 0)])
        order = list(range(len(self._members)))
        leaving = []
        while order[-1] not in staying:
            leaving.append(order.pop())
        for place in range(len(order)):
            while place < len(order) and order[place] not in staying:
                leaving.append(order[place])
                order[place] = order[-1]
                order.pop()
        # Where the slot will be there is itself now, or one that is deaf and gives way to it.
        final = order.index(range(self.slots)[index])
        self._attach(Choice(range(final, final + 1)))
        for place in leaving:
            self._members[place].close()
        staying_socks = [self._members[place] for place in order]
        if len(staying_socks) == 1 and self._joined >= 0 and index == 0:
            lib.fdh_switch_detach(staying_socks[0].fileno())
            staying_socks[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, self._joined)
        for sock in staying_socks:
            sock.close()
        self._members = []

    # --- members --------------------------------------------------------------------------------------------------

    @staticmethod
    def _is_tcp(sock: socket.socket) -> bool:
        return sock.type == socket.SOCK_STREAM

    def _is_member(self, sock: socket.socket) -> bool:
        """Whether it is in the group. A UDP socket is, as long as it is open. A TCP socket for which the kernel chose the port
        loses that by ``shutdown()``, and listens elsewhere when it is made to listen again.
        """
        if not self._is_tcp(sock):
            return True
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and sock.getsockname() == self._name

    def _found(self) -> None:
        """Makes a group of the one bound socket that there is, which the kernel founds when a second one joins."""
        self._reuse(self._members[0])
        # The only moment without a program: what the kernel would put into the second queue is dropped until there is one.
        self._members.append(self._another(deaf=True))
        self._attach(Choice(range(1)))
        hear(self._members[1], (0, 0))

    def _fill(self) -> None:
        """Adds what is missing at the end. A server may have those that are there: their flags stay."""
        wanted = self.slots * 2 if self.type == socket.SOCK_STREAM else self.slots
        while len(self._members) < wanted:
            self._members.append(self._another())
        if self.type == socket.SOCK_STREAM:
            self._effective = (listener_queue(self._members[-1].fileno()) or (0, 0))[1]

    def _replace(self, index: int) -> None:
        fresh = self._another()
        self._members.append(fresh)
        self._take_out(self._members[index])
        self._members[index] = self._members.pop()

    def _take_out(self, sock: socket.socket) -> None:
        """Whoever else has it: the last member gets its place."""
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise SystemCallError("shutdown", error.errno or 0, doing=f"taking {self.address} back") from None
        sock.close()

    def _another(self, *, deaf: bool = False) -> socket.socket:
        """A new member with the address and options of the others; last in the group. ``deaf``: it drops all that comes."""
        model = self._members[-1]
        sock = socket.socket(model.family, model.type)
        try:
            if deaf:
                be_deaf(sock, 255, [(0x06, 0, 0, 0)])
            self._imitate(model, sock)
            self._reuse(sock)
            try:
                sock.bind(self._name)
            except OSError as error:
                raise SystemCallError("bind", error.errno or 0, doing=f"adding a queue to {self.address}") from None
            if self._is_tcp(sock):
                self._listen(sock)
            os.set_blocking(sock.fileno(), False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _imitate(self, model: socket.socket, sock: socket.socket) -> None:
        options = _COPIED + (_COPIED_TCP if self._is_tcp(sock) else _COPIED_UDP)
        options += _COPIED_V6 if self.family == socket.AF_INET6 else ()
        for level, option in options:
            try:
                value = model.getsockopt(level, option)
                if value != sock.getsockopt(level, option):
                    sock.setsockopt(level, option, value)
            except OSError as error:
                if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                    raise SystemCallError(
                        "setsockopt", error.errno or 0, doing=f"adding a queue to {self.address}"
                    ) from None
        try:
            device = model.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
            if device.rstrip(b"\0"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        except OSError as error:
            raise SystemCallError("setsockopt(SO_BINDTODEVICE)", error.errno or 0, doing="adding a queue") from None

    def _reuse(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            raise SystemCallError("setsockopt(SO_REUSEPORT)", error.errno or 0, doing="forming a group") from None

    def _listen(self, sock: socket.socket) -> None:
        try:
            sock.listen(self._backlog)
        except OSError as error:
            raise SystemCallError("listen", error.errno or 0, doing="adding a queue") from None

    def _release(self, reuseport: int) -> None:
        """Leaves the first member as it was, and to its owner."""
        first = self._members[0]
        self._keep(1)
        lib.fdh_switch_detach(first.fileno())
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuseport)

    def _keep(self, count: int) -> None:
        """Closes all but the first ``count``, and forgets those."""
        while len(self._members) > count:
            self._members.pop().close()
        self._members = []

    # --- asking the kernel for the order --------------------------------------------------------------------------

    def _located(self, members: list[socket.socket]) -> list[socket.socket]:
        """The members in the order of their indices, by experiment: each is made to drop what a prober sends, the program to
        send that to index 0, 1, …, and whose count of drops rises has that index. No server notices: a packet is dropped
        before there is a connection.
        """
        users = self.choice or _UNKNOWN
        order: list[socket.socket] = []
        with Prober(self._name, self.family, self.type) as prober:
            deaf: list[tuple[socket.socket, tuple[int, int]]] = []
            try:
                for sock in members:
                    deaf.append((sock, be_deaf(sock, HOPS + 1, prober.filter())))
                for index in range(len(members)):
                    probe = Choice(users.old, users.new, users.share, prober.source, users.by_flow)
                    self._program(probe, index)
                    order.append(prober.who(members))
            finally:
                for sock, before in deaf:
                    hear(sock, before)
                if self.choice is not None:
                    self._attach(self.choice)
        if len({sock.fileno() for sock in order}) != len(members):
            raise ListenerError(f"{self.address}: these sockets are not one group, or others share the address")
        return order


# --- claiming an address --------------------------------------------------------------------------------------


def _supported(slots: int) -> None:
    if slots < 1:
        raise ValueError(f"a group has at least one slot, not {slots}")
    if "switch" not in features():
        raise Unsupported("this kernel has no switch (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5): share the listener")


def _exclusive(spec: BindSpec) -> BindSpec:
    copy = sockets.BindSpec(spec.kind)
    for name in sockets.BindSpec.__slots__:
        setattr(copy, name, getattr(spec, name))
    copy.reuseport = False
    return copy


def _alone(listener: socket.socket, cookie: int) -> None:
    """``Unsupported`` unless this is the only listener of its address, and in our network namespace."""
    host, port = listener.getsockname()[:2]
    found = bound(port, listener.type, listener.family)
    if cookie and not any(seen.cookie == cookie for seen in found):
        raise Unsupported(
            f"the listener {host} port {port} belongs to another network namespace, in which we can't bind"
        )
    if any(seen.cookie != cookie and seen.local[0] == host.partition("%")[0] for seen in found):
        raise Unsupported(f"others listen on {host} port {port} already, each with a queue of its own")


def _why_no_second(number: int | None) -> str:
    if number == errno.EADDRINUSE:
        return " (it belongs to another user, or connections of a listener without SO_REUSEADDR still have the port)"
    return ""
