"""The switch against the running kernel: whatever happens to the members of a group, a connection lands in the queue of the
slot that was chosen, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.errors import ListenerError, SystemCallError, Unsupported
from fdhandoff.system import native
from fdhandoff.system.fds import describe, listener_queue
from fdhandoff.system.sockets import BindSpec, parse_bind
from fdhandoff.system.switch import Group

from . import as_nobody, ipv6, python, root

if TYPE_CHECKING:
    from collections.abc import Iterator

"".encode("idna")  # loaded while we may read it: a test does without privileges
pytestmark = pytest.mark.skipif("switch" not in native.features(), reason="this kernel has no switch")


def has_ipv6() -> bool:
    return not ipv6.args[0]


@contextlib.contextmanager
def bound(text: str, slots: int = 3) -> Iterator[Group]:
    (group,) = Group.bind(parse_bind(text), slots)
    with group:
        yield group


def target(group: Group) -> tuple[str, int]:
    host = group.slot(0).getsockname()[0]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), group.port


def waiting(group: Group) -> list[int]:
    """What waits in each member's queue, the spares' included."""
    if group.type == socket.SOCK_DGRAM:
        return [group.queue(index)[0] for index in range(group.slots)]
    return [(listener_queue(sock.fileno()) or (0, 0))[0] for sock in group.members()]


def empty(group: Group) -> None:
    for sock in group.members():
        os.set_blocking(sock.fileno(), False)
        with contextlib.suppress(OSError):  # no more, or no listener
            while True:
                if group.type == socket.SOCK_DGRAM:
                    sock.recv(1)
                else:
                    sock.accept()[0].close()


def connect(group: Group, count: int = 1, host: str = "") -> list[socket.socket]:
    address = (host or target(group)[0], group.port)
    return [socket.create_connection(address, timeout=5) for _ in range(count)]


def landed(group: Group, count: int = 4) -> list[int]:
    """The members, by index, in whose queues new connections land."""
    empty(group)
    clients = connect(group, count)
    queues = waiting(group)
    assert sum(queues) == count, queues
    empty(group)
    for client in clients:
        client.close()
    return [index for index, queue in enumerate(queues) if queue]


# --- what a group is ------------------------------------------------------------------------------------------


def test_every_slot_listens_and_slot_0_gets_everything() -> None:
    with bound("127.0.0.1:0?backlog=77") as group:
        assert [group.queue(index) for index in range(3)] == [(0, 77)] * 3
        assert len(group.members()) == 6
        assert group.address == f"127.0.0.1:{group.port}" == str(describe(group.slot(1).fileno())).split()[-1]
        assert landed(group, 30) == [0]
        for sock in group.members():
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not any(os.get_blocking(group.slot(index).fileno()) for index in range(3))


def test_each_slot_can_be_chosen() -> None:
    with bound("127.0.0.1:0", 4) as group:
        for index in (2, 0, 3, 1, 3):
            group.choose(index)
            assert landed(group) == [index]
            assert group.choice is not None
            assert group.choice.old == range(index, index + 1)


def test_a_host_of_several_addresses_gets_a_group_for_each_with_one_port() -> None:
    groups = Group.bind(parse_bind("localhost:0"), 2)
    assert len({group.port for group in groups}) == 1
    for group in groups:
        with group:
            group.choose(1)
            assert landed(group) == [1]


def test_options_are_every_members() -> None:
    with bound("127.0.0.1:0?nodelay=0&freebind=1&interface=lo&reuseport=1", 2) as group:
        for sock in group.members():
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            assert sock.getsockopt(socket.IPPROTO_IP, 15) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


def test_several_slots_share_what_comes_and_the_others_get_nothing() -> None:
    with bound("127.0.0.1:0", 5) as group:
        group.choose(range(1, 4))
        assert landed(group, 60) == [1, 2, 3]


def test_a_share_goes_to_the_new_one() -> None:
    with bound("127.0.0.1:0") as group:
        counts = [0] * len(group.members())
        for share, low, high in ((0.0, 0, 0), (0.5, 150, 250), (1.0, 400, 400)):
            group.choose(0, 2, share=share)
            clients = connect(group, 400)
            counts = waiting(group)
            assert low <= counts[2] <= high, counts
            assert counts[0] + counts[2] == 400
            empty(group)
            for client in clients:
                client.close()


@pytest.mark.parametrize(("text", "host"), [
    ("127.0.0.1:0", "127.0.0.1"),
    pytest.param("[::1]:0", "::1", marks=ipv6),
    pytest.param(":0", "::1", marks=ipv6),
    pytest.param(":0", "127.0.0.1", marks=ipv6),
])  # fmt: skip
def test_a_probe_reaches_the_new_one_and_users_do_not(text: str, host: str) -> None:
    with bound(text) as group, socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        group.choose(0, 1, probe=probe.getsockname()[:2])
        users = connect(group, 10, host)
        assert waiting(group)[:3] == [10, 0, 0]
        probe.connect((host, group.port))
        assert waiting(group)[:3] == [10, 1, 0]
        for user in users:
            user.close()


@pytest.mark.parametrize("wrong", [
    {"old": 3}, {"old": -1}, {"old": range(0)}, {"old": range(0, 3, 2)}, {"old": range(2, 5)}, {"old": 0, "new": 7},
    {"old": 0, "new": 1, "share": 1.5}, {"old": 0, "share": 0.5}, {"old": 0, "new": 1, "share": float("nan")},
    {"old": 0, "probe": ("127.0.0.1", 1)}, {"old": 0, "new": 1, "probe": ("::1", 1)},
])  # fmt: skip
def test_a_choice_without_sense_changes_nothing(wrong: dict[str, Any]) -> None:
    with bound("127.0.0.1:0") as group:
        group.choose(2)
        with pytest.raises(ValueError):
            group.choose(**wrong)
        assert landed(group) == [2]


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_that_a_group_has_is_taken_even_for_another_group(kind: str) -> None:
    with bound(f"{kind}:127.0.0.1:0") as group:
        group.choose(1)
        with pytest.raises(SystemCallError, match=rf"is taken by pid {os.getpid()}"):
            Group.bind(parse_bind(f"{kind}:127.0.0.1:{group.port}?reuseport=1"), 2)
        if kind == "tcp":
            assert landed(group) == [1]


def test_only_tcp_and_udp_have_a_switch() -> None:
    with pytest.raises(Unsupported):
        Group.bind(BindSpec("unix", path=b"/nowhere"), 2)
    with pytest.raises(ValueError):
        Group.bind(parse_bind("127.0.0.1:0"), 0)


HAMMER = """
import socket, sys
address = ("127.0.0.1", int(sys.argv[1]))
print("up", flush=True)
clients = []
while True:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(address)
    clients.append(client)
    if len(clients) > 50:
        clients.pop(0).close()
"""


def test_no_connection_lands_elsewhere_while_a_group_begins() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    hammer = python(HAMMER, str(port))
    with hammer:
        assert hammer.stdout is not None
        assert hammer.stdout.readline() == "up\n"
        try:
            met = 0
            for _ in range(40):
                with bound(f"127.0.0.1:{port}?backlog=4096", 2) as group:
                    while not (queues := waiting(group))[0]:
                        pass
                    assert queues[1:] == [0, 0, 0]
                    met += queues[0]
            assert met >= 40
        finally:
            hammer.kill()


# --- what servers do to it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_listener_that_a_server_shuts_down_takes_no_other_slot_with_it(lost: int) -> None:
    with bound("127.0.0.1:0") as group, group.slot(lost).dup() as servers:
        servers.shutdown(socket.SHUT_RDWR)
        for other in {0, 1, 2} - {lost}:
            group.choose(other)
            assert landed(group) == [other]
        assert group.repair() == [lost]
        assert group.repair() == []
        assert len(group.members()) == 6
        for index in (lost, 0, 1, 2):
            group.choose(index)
            assert landed(group) == [index]


def test_what_comes_for_a_lost_slot_waits_for_its_next_socket() -> None:
    with bound("127.0.0.1:0") as group:
        group.choose(1)
        group.slot(1).shutdown(socket.SHUT_RDWR)
        clients = connect(group, 5)
        assert group.repair() == [1]
        assert group.queue(1)[0] == 5
        for client in clients:
            client.close()


def test_several_listeners_lost_in_any_order_are_found_again() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (1, 3, 0), (3, 0)):
        with bound("127.0.0.1:0", 4) as group:
            group.choose(({0, 1, 2, 3} - set(order)).pop())
            for lost in order:
                group.slot(lost).shutdown(socket.SHUT_RDWR)
            assert group.repair() == sorted(order)
            for index in range(4):
                group.choose(index)
                assert landed(group) == [index]


def test_a_listener_that_was_shut_down_and_listens_again_is_found_out() -> None:
    with bound("127.0.0.1:0") as group:
        group.choose(1)
        group.slot(1).shutdown(socket.SHUT_RDWR)
        group.slot(1).listen(5)
        assert group.repair() == []  # nothing shows yet
        clients = connect(group)
        assert group.repair() == [1]
        assert group.queue(1)[0] == 1
        assert landed(group) == [1]
        for client in clients:
            client.close()


def test_the_master_is_woken_when_a_listener_is_shut_down_and_by_nothing_else() -> None:
    with bound("127.0.0.1:0") as group, select.epoll() as poll:
        poll.register(group.slot(0), 0)
        clients = connect(group, 3)
        assert poll.poll(0) == []
        group.slot(0).shutdown(socket.SHUT_RDWR)
        assert [event & select.EPOLLHUP for _, event in poll.poll(5)] == [select.EPOLLHUP]
        for client in clients:
            client.close()


def test_what_a_server_changed_is_told_and_repaired() -> None:
    with bound("127.0.0.1:0?backlog=500") as group:
        assert group.check(1) == []
        sock = group.slot(1)
        sock.listen(5)
        os.set_blocking(sock.fileno(), True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        assert group.check(1, serving=True) == ["backlog"]
        assert group.check(1) == ["O_NONBLOCK", "TCP_NODELAY"]
        assert group.check(1) == []
        assert group.queue(1) == (0, 500)
        sock.listen(1000)
        assert group.check(1) == []  # more is no harm
        sock.shutdown(socket.SHUT_RDWR)
        assert group.check(1) == ["SO_ACCEPTCONN"]
        assert group.check(1) == []
        group.choose(1)
        assert landed(group) == [1]


def test_a_renewed_slot_is_out_of_reach_for_whoever_had_it() -> None:
    with bound("127.0.0.1:0") as group, group.slot(1).dup() as lingering:
        group.choose(2)
        group.renew(1)
        with pytest.raises(OSError, match="Invalid argument"):
            lingering.accept()
        for index in range(3):
            group.choose(index)
            assert landed(group) == [index]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_slot_that_was_shut_down_is_renewed_as_well(index: int) -> None:
    """As a server does it whose end we have seen, before the next one gets the slot."""
    with bound("127.0.0.1:0") as group:
        group.choose((index + 1) % 3)
        with group.slot(index).dup() as servers:
            servers.shutdown(socket.SHUT_RDWR)
        group.renew(index)
        assert len(group.members()) == 6
        assert group.repair(thorough=True) == []
        for other in range(3):
            group.choose(other)
            assert landed(group) == [other]


def test_a_slot_is_added_without_disturbing_the_others() -> None:
    with bound("127.0.0.1:0", 1) as group:
        for expected in (1, 2, 3):
            group.choose(expected - 1)
            assert group.add_slot() == expected
            assert landed(group) == [expected - 1]
            group.choose(expected)
            assert landed(group) == [expected]
        assert len(group.members()) == 8


def test_a_slot_that_is_not_there_has_no_socket() -> None:
    with bound("127.0.0.1:0") as group:
        for index in (3, 5, -4):
            with pytest.raises(IndexError):
                group.slot(index)


@pytest.mark.parametrize("seed", range(12))
def test_after_any_sequence_a_connection_lands_in_the_chosen_slot_only(seed: int) -> None:
    chance = random.Random(seed)
    address = "127.0.0.1:0" if seed % 3 or not has_ipv6() else chance.choice(["[::1]:0", ":0"])
    (group,) = Group.bind(parse_bind(address), chance.randint(1, 4))
    lost: set[int] = set()  # shut down since the last repair
    history: list[str] = []
    try:
        for _ in range(30):
            step = chance.choice(["shutdown"] * 3 + ["relisten", "repair", "renew", "add", "check", "replace", "kill"])
            index = chance.randrange(group.slots)
            history.append(f"{step} {index}")
            if step == "shutdown" and index not in lost:
                group.slot(index).shutdown(socket.SHUT_RDWR)
                lost.add(index)
            elif step == "relisten" and index not in lost:
                group.slot(index).shutdown(socket.SHUT_RDWR)
                group.slot(index).listen(5)
                lost.add(index)
            elif step == "repair":
                group.repair(thorough=True)
                lost.clear()
            elif step == "check":
                if "SO_ACCEPTCONN" in group.check(index):
                    group.repair(thorough=True)
                    lost.clear()
            elif step == "renew" and not lost:
                group.renew(index)
            elif step == "add" and not lost and group.slots < 6:
                assert group.add_slot() == group.slots - 1
            elif step == "replace" and not lost:  # another process takes over with all descriptors
                copies = [sock.dup() for sock in group.members()]
                slots, choice = group.slots, group.choice
                group.close()
                group = Group.from_sockets(copies, slots, choice=choice)
            elif step == "kill" and not lost:  # some members outlive the master, the rest go in any order
                survivors = chance.sample(range(group.slots), chance.randint(1, group.slots))
                copies = [group.slot(survivor).dup() for survivor in survivors]
                slots, members = group.slots, group.members()
                for member in chance.sample(members, len(members)):
                    member.close()
                group.close()
                group = Group.from_sockets(copies, slots, in_order=False)
                cookies = [described.cookie for copy in copies if (described := describe(copy.fileno()))]
                assert {group.slot_of(cookie) for cookie in cookies} == set(range(len(copies)))
                assert landed(group) == [group.slot_of(cookies[0])]
            good = [slot for slot in range(group.slots) if slot not in lost]
            for chosen in chance.sample(good, min(2, len(good))):
                group.choose(chosen)
                assert landed(group, 2) == [chosen], history
    finally:
        group.close()


# --- a server's own listener ---


def own_listener(group: Group) -> socket.socket:
    """As a server binds one that was told the address."""
    sock = socket.socket(group.family, group.type)
    if group.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(group.members()[0].getsockname())
    sock.listen(5)
    return sock


@pytest.mark.parametrize(
    "text", ["127.0.0.1:0", pytest.param("[::ffff:127.0.0.1]:0", marks=ipv6), pytest.param(":0", marks=ipv6)]
)
def test_a_servers_own_listener_gets_nothing_until_it_is_a_slots(text: str) -> None:
    with bound(text) as group:
        for index in (1, 2, 1):  # the last one replaces another server's
            group.choose(0)
            with own_listener(group) as servers:
                assert [seen.inode for seen in group.strangers()] == [os.fstat(servers.fileno()).st_ino]
                assert group.has_address_of(group.strangers()[0])
                assert landed(group) == [0]
                assert group.admit(index, servers.dup()) == index
                assert group.strangers() == []
                for other in (0, index):
                    group.choose(other)
                    assert landed(group) == [other]
                assert group.queue(index)[1] > 5
                group.choose(0)
        assert group.repair(thorough=True) == []
        group.choose(1)
        clients = connect(group, 3)  # the server has gone, and its queue is ours
        assert group.queue(1)[0] == 3
        for client in clients:
            client.close()
        group.choose(0)
        group.renew(1)
        assert len(group.members()) == 6
        group.choose(1)
        assert landed(group) == [1]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_listener_that_was_put_in_a_lost_slots_place_is_found_there(lost: int) -> None:
    with bound("127.0.0.1:0") as group, own_listener(group) as servers:
        group.choose((lost + 1) % 3)
        group.slot(lost).shutdown(socket.SHUT_RDWR)
        place = group.admit(1, servers.dup())
        assert place == lost
        for index in range(3):
            group.choose(index)
            assert landed(group) == [index]
        assert group.slot_of(describe(servers.fileno()).cookie) == lost  # type: ignore[union-attr]


def test_a_listener_behind_which_a_spare_was_added_becomes_the_slots() -> None:
    with bound("127.0.0.1:0") as group, own_listener(group) as servers:
        group.choose(0)
        group.add_slot()
        assert group.admit(1, servers.dup()) == 1
        for index in range(4):
            group.choose(index)
            assert landed(group) == [index]


def test_what_listens_elsewhere_becomes_no_slots() -> None:
    with bound("127.0.0.1:0") as group, bound("127.0.0.1:0") as other:
        group.choose(1)
        with pytest.raises(ListenerError, match="does not listen there"):
            group.admit(0, other.slot(0).dup())
        assert landed(group) == [1]


# --- joining what is there ------------------------------------------------------------------------------------


@contextlib.contextmanager
def listener(*options: int) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        for option in (socket.SO_REUSEADDR, *options):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen(300)
        yield sock


def test_an_adopted_listener_becomes_slot_0() -> None:
    with listener() as sock:
        with sock.dup() as owners, Group.join(sock.dup(), 3, backlog=100) as group:
            assert landed(group) == [0]
            assert group.queue(2)[1] == 300
            group.choose(1)
            assert landed(group) == [1]
            group.choose(0)
            clients = connect(group)
            owners.setblocking(False)
            owners.accept()[0].close()
            clients[0].close()
        sock.setblocking(False)
        with socket.create_connection(sock.getsockname()):  # the group is gone, the owner's listener is not
            sock.accept()[0].close()


@pytest.mark.parametrize(("index", "others"), [(0, []), (1, []), (2, []), (2, [0]), (0, [2]), (1, [2]), (1, [0, 2])])
def test_a_group_leaves_everything_to_one_slot_that_somebody_else_holds(index: int, others: list[int]) -> None:
    with bound("127.0.0.1:0") as group, contextlib.ExitStack() as holders:
        held = [holders.enter_context(group.slot(place).dup()) for place in (index, *others)]
        address = target(group)
        group.leave_to(index, others)
        assert group.members() == []
        for _ in range(20):
            with socket.create_connection(address, timeout=5):
                queues = [(listener_queue(sock.fileno()) or (0, 0))[0] for sock in held]
                assert queues == [1] + [0] * len(others)
                held[0].accept()[0].close()


def test_no_connection_lands_elsewhere_while_others_join_a_busy_listener() -> None:
    with listener() as sock:
        port = sock.getsockname()[1]
    hammer = python(HAMMER, str(port))
    with hammer:
        assert hammer.stdout is not None
        assert hammer.stdout.readline() == "up\n"
        try:
            for _ in range(60):
                busy = socket.create_server(("127.0.0.1", port), backlog=4096)
                while not (listener_queue(busy.fileno()) or (0, 0))[0]:
                    pass
                with Group.join(busy, 2) as group:
                    before = waiting(group)[0]
                    while waiting(group)[0] == before:
                        pass
                    assert waiting(group)[1:] == [0, 0, 0]
        finally:
            hammer.kill()


def test_a_listener_that_others_share_is_not_joined() -> None:
    with listener(socket.SO_REUSEPORT) as sock, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(sock.getsockname())
        other.listen()
        with pytest.raises(Unsupported, match="others listen"):
            Group.join(sock, 2)
        assert sock.fileno() >= 0


@root
def test_another_users_listener_is_not_joined() -> None:
    os.seteuid(65534)
    try:
        sock = socket.socket()
    finally:
        os.seteuid(0)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(Unsupported, match="belongs to another user"):
            Group.join(sock, 2)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        with socket.create_connection(sock.getsockname()):
            sock.accept()[0].close()


def test_what_is_no_listener_is_not_joined() -> None:
    with socket.socket() as sock, pytest.raises(Unsupported, match="neither listens"):
        Group.join(sock, 2)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(Unsupported, match="only TCP and UDP"):
        Group.join(sock, 2)


def test_sockets_that_are_no_group_are_not_taken_for_one() -> None:
    with bound("127.0.0.1:0", 2) as one, bound("127.0.0.1:0", 2) as other:
        mixed = [one.slot(0), other.slot(0)]
        with pytest.raises(ListenerError):
            Group.from_sockets(mixed, 2, in_order=False)
        assert all(sock.fileno() >= 0 for sock in mixed)


@root
def test_a_group_works_without_privileges() -> None:
    def life() -> object:
        with bound("127.0.0.1:0", 2) as group:
            group.choose(1)
            group.slot(0).shutdown(socket.SHUT_RDWR)
            repaired = group.repair(thorough=True)
            return repaired, landed(group), len(group.half_open())

    assert as_nobody(life) == "([0], [1], 0)"


# --- UDP ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def flows(group: Group, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(group.family, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.connect(target(group))
        yield socks


def got(group: Group, socks: list[socket.socket]) -> list[list[int]]:
    """Which flows' datagrams each slot got, by the flow's port."""
    for sock in socks:
        sock.send(b"x")
    received = []
    for index in range(group.slots):
        ports = []
        while group.queue(index)[0]:
            ports.append(group.slot(index).recvfrom(10)[1][1])
        received.append(sorted(ports))
    return received


@pytest.mark.parametrize("text", ["udp:127.0.0.1:0", pytest.param("udp:[::1]:0", marks=ipv6),
                                  pytest.param("udp::0", marks=ipv6)])  # fmt: skip
def test_datagrams_go_to_the_chosen_slot_and_flows_stay_together(text: str) -> None:
    with bound(text) as group, flows(group, 60) as socks:
        assert [len(ports) for ports in got(group, socks)] == [60, 0, 0]
        group.choose(2)
        assert [len(ports) for ports in got(group, socks)] == [0, 0, 60]
        group.choose(0, 1, share=0.5)
        first = got(group, socks)
        assert len(first[0]) > 10
        assert len(first[1]) > 10
        assert len(first[0]) + len(first[1]) == 60
        assert got(group, socks) == first
        assert group.half_open() == frozenset()


def test_a_udp_group_is_taken_over_mended_and_extended() -> None:
    with bound("udp:127.0.0.1:0", 4) as group:
        assert group.repair(thorough=True) == []
        with pytest.raises(Unsupported):
            group.renew(1)
        assert group.add_slot() == 4
        with contextlib.suppress(OSError):
            group.slot(3).shutdown(socket.SHUT_RDWR)
        assert group.check(3) == ["shutdown"]
        copies = [group.slot(index).dup() for index in (3, 1)]
        members = group.members()
        for index in (1, 4, 0, 3, 2):
            members[index].close()
        group.close()
        with Group.from_sockets(copies, 4, in_order=False) as again, flows(again, 20) as socks:
            for index in (1, 0, 3, 2):
                again.choose(index)
                assert [len(ports) for ports in got(again, socks)] == [20 * (slot == index) for slot in range(4)]


def test_a_udp_socket_is_joined() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with Group.join(sock.dup(), 2) as group, flows(group, 30) as socks:
            assert [len(ports) for ports in got(group, socks)] == [30, 0]
            group.choose(1)
            assert [len(ports) for ports in got(group, socks)] == [0, 30]


def test_a_slot_is_known_by_its_cookie() -> None:
    with bound("127.0.0.1:0") as group:
        for index in range(3):
            described = describe(group.slot(index).fileno())
            assert described is not None
            assert group.slot_of(described.cookie) == index
        assert group.slot_of(1) is None
