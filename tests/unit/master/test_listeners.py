"""Which listeners an upgrade binds, keeps and gives up."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

import pytest

from fdhandoff.errors import ListenerError
from fdhandoff.master.listeners import match, open_all
from fdhandoff.master.options import KERNEL, SHARED
from fdhandoff.master.outlet import INHERITED, Outlet
from fdhandoff.master.outlets import KernelOutlet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Stub(Outlet):
    """Bound from a text; without one, the ``sock`` that came from elsewhere."""

    def __init__(self, text: str, name: str = "", sock: socket.socket | None = None) -> None:
        self.text, self.name, self._sock = text, name, sock

    def sockets(self) -> dict[int, socket.socket]:
        return {} if self._sock is None else {0: self._sock}


def outlet(text: str) -> Outlet:
    return Stub(text)


def matched(bound: list[str], wanted: list[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    pairs, removed = match([outlet(text) for text in bound], wanted)
    return [(text, [one.text for one in found]) for text, found in pairs], [one.text for one in removed]


def test_the_same_stays_whatever_its_order() -> None:
    assert matched(["a=:1", "b=:2"], ["b=:2", "a=:1"]) == ([("b=:2", ["b=:2"]), ("a=:1", ["a=:1"])], [])


def test_a_new_one_comes_and_a_missing_one_goes() -> None:
    assert matched(["a=:1"], ["b=:2"]) == ([("b=:2", [])], ["a=:1"])


def test_a_new_name_or_option_is_no_new_listener() -> None:
    assert matched(["a=:1"], ["b=:1?backlog=5"]) == ([("b=:1?backlog=5", ["a=:1"])], [])


def test_of_two_with_one_address_each_finds_its_own() -> None:
    pairs, removed = matched(["a=h:0", "b=h:0"], ["b=h:0", "c=h:0"])
    assert (pairs, removed) == ([("b=h:0", ["b=h:0"]), ("c=h:0", ["a=h:0"])], [])


def test_both_families_of_one_address_go_together() -> None:
    assert matched(["a=localhost:1", "a=localhost:1"], []) == ([], ["a=localhost:1"] * 2)


def test_what_was_inherited_stays() -> None:
    assert matched([""], ["a=:1"]) == ([("a=:1", [])], [])


# --- what came from elsewhere -----------------------------------------------------------------------------------


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def opened(given: list[tuple[str, socket.socket]], binds: list[str], switch: str = KERNEL) -> list[Outlet]:
    return open_all(given, binds, switch=switch, slots=3, say=lambda _: None)


def test_a_bind_with_the_name_of_what_came_means_it(sock: socket.socket) -> None:
    assert match([Stub("", "http", sock)], ["http=127.0.0.1:1"]) == ([], [])


def test_a_bind_with_the_address_of_what_came_means_it(sock: socket.socket) -> None:
    assert match([Stub("", "web", sock)], [f"http=127.0.0.1:{port(sock)}"]) == ([], [])


def test_any_port_is_not_the_one_that_came(sock: socket.socket) -> None:
    assert match([Stub("", "web", sock)], ["http=127.0.0.1:0"]) == ([("http=127.0.0.1:0", [])], [])


def test_what_came_and_what_is_bound_keep_names_and_order(sock: socket.socket) -> None:
    given = [("web", sock.dup())]
    outlets = opened(given, ["web=127.0.0.1:1", "127.0.0.1:0"])
    try:
        assert [(one.name, one.origin) for one in outlets] == [("web", INHERITED), ("listener2", "bound")]
        assert given == []
    finally:
        for one in outlets:
            one.close(unlink=True)


def test_what_does_not_listen_is_refused_and_closed() -> None:
    came = socket.socket()
    with pytest.raises(ListenerError, match="does not listen"):
        opened([("web", came)], [])
    assert came.fileno() == -1


def test_all_or_nothing_is_opened(sock: socket.socket) -> None:
    came = sock.dup()
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        opened([("web", came)], [f"127.0.0.1:{port(other)}"])
    assert came.fileno() == -1


def test_a_unix_socket_that_came_is_shared_and_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        (one,) = opened([("web", sock.dup())], [])
        assert one.mode == SHARED
        one.close(unlink=True)
        assert path.exists()


def client(sock: socket.socket) -> socket.socket:
    return socket.create_connection(sock.getsockname(), timeout=5)


def accepted(sock: socket.socket) -> bool:
    """Whether a connection waits in that very queue."""
    sock.setblocking(False)
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_the_first_generation_gets_what_waited(sock: socket.socket) -> None:
    with client(sock):
        (one,) = opened([("web", sock.dup())], [])
        assert one.waiting(0) == 1
        one.close(unlink=True)
        assert accepted(sock)


def test_the_others_queue_is_never_given_twice_nor_shut_down(sock: socket.socket) -> None:
    (one,) = opened([("web", sock.dup())], [])
    first = one.give(0)
    one.choose(1)
    one.leave(0)
    assert one.give(0) is not first
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    for slot in (2, 1, 0):
        one.choose(slot)
        with client(sock):
            assert one.waiting(slot) == 1
            assert accepted(one.give(slot))
    one.close(unlink=True)


def test_at_the_end_all_waits_where_it_came_from(sock: socket.socket) -> None:
    (one,) = opened([("web", sock.dup())], [])
    one.choose(1)
    one.leave(0)
    one.turn_away()
    with client(sock):
        assert accepted(sock)
    one.close(unlink=True)
    with client(sock):
        assert accepted(sock)


def test_while_the_first_generation_drains_nothing_new_reaches_it(sock: socket.socket) -> None:
    (one,) = opened([("web", sock.dup())], [])
    one.turn_away()
    late = socket.socket()
    late.setblocking(False)
    with late:
        late.connect_ex(sock.getsockname())
        assert one.waiting(0) == 0
        one.close(unlink=True)
        _, writable, _ = select.select([], [late], [], 10)  # its kernel asks again
        assert writable
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert accepted(sock)


def test_what_a_dead_group_left_is_one_listener(sock: socket.socket) -> None:
    (one,) = opened([("web", sock.dup())], [])
    assert isinstance(one, KernelOutlet)
    kept = [("web", one.give(slot).dup()) for slot in (2, 0, 1)]
    one.choose(1)
    waiting = client(sock)
    for member in one.group.members():
        member.close()  # as the death of a master does
    (again,) = opened(kept, [])
    with waiting:
        stranded = again.stranded()
        assert len(stranded) + (again.waiting(0) or 0) == 1
        for each in stranded:
            each.close()
    again.choose(0)
    with client(sock):
        assert again.waiting(0) == 1
    again.close(unlink=True)
