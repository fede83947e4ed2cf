"""What a process has to hand over: described, collected, and checked on arrival."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from fdhandoff.errors import ListenerError, ListenerMismatch
from fdhandoff.inventory import collect, entry_of, fits, verify
from fdhandoff.listener import KIND_CONNECTION, KIND_FILE, KIND_LISTENER, Connection, File, Listener
from fdhandoff.system.sockets import parse_bind

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_the_kind_is_told_by_what_the_descriptor_is(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as client, tempfile.TemporaryFile() as file:
        assert entry_of("a", listener.fileno()).kind == KIND_LISTENER
        assert entry_of("a", client.fileno()).kind == KIND_CONNECTION
        assert entry_of("a", file.fileno()).kind == KIND_FILE


def test_a_datagram_socket_is_a_listener_once_it_is_bound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert entry_of("udp", sock.fileno()).kind == KIND_LISTENER


def test_a_mapping_gives_the_names_and_a_sequence_the_positions(listener: socket.socket) -> None:
    assert [entry.name for entry, _ in collect({"http": listener, "more": listener.fileno()})] == ["http", "more"]
    mixed = [listener, Listener("named", listener), listener.fileno()]
    assert [entry.name for entry, _ in collect(mixed)] == ["listener0", "named", "listener2"]


def test_the_path_of_a_file_object_is_not_its_name_here() -> None:
    with tempfile.NamedTemporaryFile() as file:
        (entry, fd) = collect([file])[0]
        assert entry.name == "listener0"
        assert fd == file.fileno()


def test_a_file_and_a_connection_go_as_what_they_were_called(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as client:
        (entry, _) = collect([Connection("chat", client, b"half a frame")])[0]
        assert (entry.kind, entry.state) == (KIND_CONNECTION, b"half a frame")
        (entry, _) = collect([File("log", client)])[0]
        assert entry.kind == KIND_FILE


@pytest.mark.parametrize("thing", ["a text", 1.5, True, None])
def test_what_has_no_descriptor_is_a_type_error(thing: object) -> None:
    with pytest.raises(TypeError, match="'http' is neither"):
        collect({"http": thing})


def test_what_is_closed_or_unbound_is_a_listener_error(listener: socket.socket) -> None:
    closed = socket.socket()
    closed.close()
    with pytest.raises(ListenerError, match="closed"):
        collect({"http": closed})
    with socket.socket() as unbound, pytest.raises(ListenerError, match=r"bind|listen"):
        collect({"http": unbound})
    with pytest.raises(ListenerError, match="Bad file descriptor"):
        collect({"http": 10**6})


def test_a_name_that_listen_fdnames_could_not_carry_is_refused(listener: socket.socket) -> None:
    for name in ("", "a:b", "ü", "x" * 256, "new\nline"):
        with pytest.raises(ValueError, match="name"):
            collect({name: listener})


def test_verifying_compares_the_socket_itself_not_only_its_address(listener: socket.socket) -> None:
    entry = entry_of("http", listener.fileno())
    copy = os.dup(listener.fileno())
    try:
        description = verify(entry, copy)
        assert description is not None
        assert description.listening
    finally:
        os.close(copy)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ListenerMismatch, match="cookie") as caught:
            verify(entry, other.fileno())
        assert caught.value.expected is entry


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        ("127.0.0.1:{port}", True),
        ("127.0.0.1:0", True),
        ("localhost:{port}", True),
        ("127.0.0.2:{port}", False),
        ("127.0.0.1:1", False),
        (":{port}", False),
        ("udp:127.0.0.1:{port}", False),
        ("unix:/run/x", False),
    ],
)
def test_what_came_fits_when_binding_would_make_the_same(listener: socket.socket, text: str, fitting: bool) -> None:
    spec = parse_bind(text.format(port=listener.getsockname()[1]))
    assert fits(spec, listener.fileno()) is fitting


def test_a_free_port_fits_nothing_strictly(listener: socket.socket) -> None:
    assert not fits(parse_bind("127.0.0.1:0"), listener.fileno(), strictly=True)
