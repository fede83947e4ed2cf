"""Entries and fields, there and back."""

from __future__ import annotations

import socket

import pytest

from fdhandoff.errors import ProtocolError
from fdhandoff.listener import KIND_CONNECTION, KIND_CONTROL, KIND_COUNTERS, KIND_FILE, KIND_LISTENER, Entry
from fdhandoff.protocol.messages import (
    Abort,
    Hello,
    Refused,
    Request,
    decode_entry,
    decode_payload,
    encode_entry,
    encode_payload,
)

ENTRIES = [
    Entry("http", KIND_LISTENER, family=2, type=1, protocol=6, listening=True, cookie=2**64 - 1, address="0.0.0.0:80"),
    Entry("v6", KIND_LISTENER, family=10, type=1, protocol=6, listening=True, v6only=True, cookie=9, address="[::]:80"),
    Entry("dns", KIND_LISTENER, family=2, type=2, protocol=17, cookie=3, address="127.0.0.1:53"),
    Entry(
        "peer", KIND_CONNECTION, family=2, type=1, protocol=6, connected=True, address="127.0.0.1:80", state=b"\0\xff"
    ),
    Entry("bytes", KIND_LISTENER, family=1, type=5, listening=True, address="unix:/run/\udcff\udc80"),
    Entry("abstract", KIND_LISTENER, family=1, type=1, listening=True, address="unix:@x"),
    Entry("log", KIND_FILE, mode=0o100644, device=2**64 - 1, inode=2**64 - 1),
    Entry("fdhandoff.control", KIND_CONTROL, family=1, type=1, listening=True, address="unix:/run/x"),
    Entry("fdhandoff.counters", KIND_COUNTERS, mode=0o100600, device=1, inode=2),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_comes_back_as_it_went(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


def field(tag: int, value: bytes) -> bytes:
    return tag.to_bytes(2, "big") + len(value).to_bytes(4, "big") + value


NAME = field(1, b"http")
KIND = field(2, (1).to_bytes(8, "big"))
SOCKET = field(3, bytes(20))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (KIND + SOCKET, "lacks its field 1"),
        (NAME + SOCKET, "lacks its field 2"),
        (NAME + KIND, "neither what socket nor what file"),
        (NAME + KIND + field(3, bytes(19)), "socket field of 19 bytes"),
        (NAME + KIND + field(5, bytes(19)), "file field of 19 bytes"),
        (NAME + KIND + SOCKET + NAME, "field 1 twice"),
        (field(1, b"") + KIND + SOCKET, "1 to 255 characters"),
        (field(1, b"a:b") + KIND + SOCKET, "without ':'"),
        (field(1, b"\xff") + KIND + SOCKET, "not UTF-8"),
        (field(1, "é".encode()) + KIND + SOCKET, "printable ASCII"),
        (field(1, b"x" * 256) + KIND + SOCKET, "1 to 255 characters"),
        (NAME + field(2, b"\x01") + SOCKET, "a number has 8"),
        (NAME + KIND + b"\x00", "ends inside a field's head"),
    ],
)
def test_each_wrong_entry_has_its_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        decode_entry(data)


def test_a_longer_socket_field_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    entry = decode_entry(NAME + KIND + field(3, bytes(20) + b"later") + field(99, b"unknown"))
    assert (entry.name, entry.family, entry.address) == ("http", 0, "")


def test_what_has_its_default_is_left_out() -> None:
    assert encode_payload(Abort()) == b""
    assert decode_payload(Abort, b"") == Abort(code="aborted", reason="")
    assert len(encode_payload(Hello(min_version=1, max_version=1))) == 2 * 14


def test_text_that_is_not_utf8_is_nonsense() -> None:
    with pytest.raises(ProtocolError, match="not UTF-8"):
        decode_payload(Abort, field(1, b"\xff"))


def test_text_that_utf8_cannot_say_is_escaped() -> None:
    sent = Refused(code="x", reason="path \udcff")
    assert decode_payload(Refused, encode_payload(sent)).reason == r"path \udcff"


def test_a_request_has_an_empty_object_for_a_body_unless_it_has_another() -> None:
    request = decode_payload(Request, encode_payload(Request(min_version=1, max_version=1, verb="status")))
    assert request.body == b"{}"


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="this system has no such family")
def test_a_family_that_we_do_not_know_travels_as_a_number() -> None:
    entry = Entry("vm", KIND_LISTENER, family=socket.AF_VSOCK, type=1, listening=True, address="family:40")
    assert decode_entry(encode_entry(entry)) == entry
