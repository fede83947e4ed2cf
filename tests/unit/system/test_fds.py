from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from fdhandoff.errors import ListenerMismatch, SystemCallError
from fdhandoff.system import fds

linux = pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")


def described(sock: socket.socket) -> fds.Description:
    found = fds.describe(sock.fileno())
    assert found is not None
    return found


@pytest.mark.parametrize(("host", "family", "text"), [
    ("127.0.0.1", socket.AF_INET, "127.0.0.1:{}"),
    ("0.0.0.0", socket.AF_INET, "0.0.0.0:{}"),
    ("::1", socket.AF_INET6, "[::1]:{}"),
    ("::", socket.AF_INET6, "[::]:{}"),
])  # fmt: skip
def test_a_tcp_listener_is_described_with_its_canonical_address(host: str, family: int, text: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        assert not described(sock).listening
        sock.listen()
        found = described(sock)
        assert found.address == text.format(sock.getsockname()[1])
        assert (found.family, found.type, found.listening, found.connected) == (family, socket.SOCK_STREAM, True, False)
        assert found.protocol == socket.IPPROTO_TCP
        assert str(found) == f"TCP listener {found.address}"


def test_a_v6_only_socket_says_so() -> None:
    for wanted in (0, 1):
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, wanted)
            sock.bind(("::", 0))
            assert described(sock).v6only == bool(wanted)


def test_a_udp_socket_and_a_tcp_listener_on_one_port_differ() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(tcp.getsockname())
            assert described(udp).address == described(tcp).address
            assert described(udp) != described(tcp)
            assert str(described(udp)).startswith("UDP socket ")


def test_the_same_socket_has_the_same_description_by_another_descriptor() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with sock.dup() as other:
            assert described(sock) == described(other)
            assert hash(described(sock)) == hash(described(other))
        with socket.socket() as stranger:
            assert described(stranger) != described(sock)
    if sys.platform == "linux":
        with socket.socket() as one, socket.socket() as two:
            assert described(one).cookie != described(two).cookie


def test_a_connected_pair_is_connected_and_has_no_name() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert described(left).connected
        assert described(left).address == "unix:"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_unix_path_is_described_as_it_was_bound(kind: socket.SocketKind, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path / "a socket") + b"\xff"
    if sys.platform != "linux":
        name = name[:-1]
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(name)
        found = described(sock)
        assert (found.type, found.address) == (kind, fds.unix_text(name))
        assert fds.unix_name(found.address) == name


def test_a_path_of_the_greatest_length_is_whole() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        longest = 107 if sys.platform == "linux" else 103
        path = os.path.join(directory, "x" * (longest - len(directory) - 1))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            assert described(sock).address == f"unix:{path}"


@linux
@pytest.mark.parametrize("name", [b"plain", b"with\0nul", b"\xff\\x00@", b"x" * 107])
def test_an_abstract_name_is_described_without_its_nul(name: bytes) -> None:
    name += b"." + str(os.getpid()).encode() if len(name) < 100 else b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(b"\0" + name)
        text = described(sock).address
        assert text.startswith("unix:@")
        assert "\0" not in text
        assert fds.unix_name(text) == b"\0" + name


@given(st.binary(max_size=107))
def test_every_unix_name_has_one_text_and_every_text_its_name(name: bytes) -> None:
    text = fds.unix_text(name)
    assert fds.unix_name(text) == name
    assert not any(ord(character) < 32 for character in text)


def test_a_path_that_begins_like_an_abstract_name_is_not_taken_for_one() -> None:
    assert fds.unix_text(b"@x") != fds.unix_text(b"\0x") == "unix:@x"


@pytest.mark.parametrize("text", ["unix:\\", "unix:a\\b", "unix:\\xg0", "unix:\\x0"])
def test_an_escape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        fds.unix_name(text)


def test_other_addresses_are_no_unix_names() -> None:
    assert fds.unix_name("127.0.0.1:80") is None


def test_a_scope_is_named_or_numbered() -> None:
    raw = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", 80, 0) + socket.inet_pton(socket.AF_INET6, "fe80::1")
    loopback = socket.if_nametoindex("lo" if sys.platform == "linux" else "lo0")
    name = socket.if_indextoname(loopback)
    assert fds.address_text(socket.AF_INET6, raw + struct.pack("=I", loopback)) == f"[fe80::1%{name}]:80"
    assert fds.address_text(socket.AF_INET6, raw + struct.pack("=I", 0x7FFFFFF)) == f"[fe80::1%{0x7FFFFFF}]:80"
    assert fds.address_text(socket.AF_INET6, raw + struct.pack("=I", 0)) == "[fe80::1]:80"
    with socket.socket(socket.AF_INET6) as sock:
        text = fds.address_text(socket.AF_INET6, raw + struct.pack("=I", loopback), sock.fileno())
        assert text == f"[fe80::1%{name}]:80"


def test_an_unknown_family_is_a_number() -> None:
    assert fds.address_text(77, b"\x4d\0abcdef") == "family:77"
    assert fds.address_text(socket.AF_INET, b"\2\0") == f"family:{int(socket.AF_INET)}"


def test_what_is_no_socket_is_none() -> None:
    reading, writing = os.pipe()
    try:
        assert fds.describe(reading) is None
        with pytest.raises(ListenerMismatch, match=f"descriptor {reading} is not a socket"):
            fds.socket_from_fd(reading)
        assert fds.is_open(reading)
    finally:
        fds.close_all([reading, writing])


def test_what_is_not_open_is_an_error_with_its_number() -> None:
    reading, writing = os.pipe()
    fds.close_all([reading, writing])
    assert not fds.is_open(reading)
    with pytest.raises(SystemCallError, match=f"descriptor {reading}") as caught:
        fds.describe(reading)
    assert caught.value.errno == errno.EBADF


def test_a_socket_object_takes_the_descriptor_with_its_true_type() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        fd = sock.detach()
    with fds.socket_from_fd(fd) as again:
        assert again.fileno() == fd
        assert (again.family, again.type, again.proto) == (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    assert not fds.is_open(fd)


def test_flags_are_set_and_cleared() -> None:
    pipe = os.pipe()
    fds.set_inheritable(pipe)
    assert [os.get_inheritable(fd) for fd in pipe] == [True, True]
    fds.set_cloexec(pipe)
    assert [os.get_inheritable(fd) for fd in pipe] == [False, False]
    fds.set_nonblocking(pipe)
    assert [os.get_blocking(fd) for fd in pipe] == [False, False]
    fds.set_blocking(pipe)
    assert [os.get_blocking(fd) for fd in pipe] == [True, True]
    fds.close_all([*pipe, -1])
    assert [fds.is_open(fd) for fd in pipe] == [False, False]


def test_close_all_goes_on_after_one_that_is_closed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    fds.close_all([reading, writing])
    assert not fds.is_open(writing)


@linux
def test_a_listeners_queue_tells_who_waits() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(7)
        with socket.create_connection(sock.getsockname()), socket.create_connection(sock.getsockname()):
            assert fds.listener_queue(sock.fileno()) == (2, 7)
    with socket.socket(socket.AF_UNIX) as unix:
        assert fds.listener_queue(unix.fileno()) is None
