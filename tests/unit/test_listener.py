"""Names, kinds and the row of listeners, as values."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from fdhandoff.listener import KIND_FILE, KIND_LISTENER, Connection, Entry, File, Listener, Listeners, check_name


@pytest.fixture
def row() -> Iterator[Listeners]:
    sockets = [socket.socket() for _ in range(3)]
    yield Listeners(["http", "dns", "http"], sockets)
    for sock in sockets:
        sock.close()


def test_listeners_are_a_sequence_and_a_mapping(row: Listeners) -> None:
    assert len(row) == 3
    assert row[0] is row["http"]
    assert row[-1] is row.all("http")[1]
    assert [name for name, _ in row.items()] == ["http", "dns", "http"] == list(row.names)
    assert "dns" in row
    assert row.get("smtp") is None
    with pytest.raises(KeyError):
        row["smtp"]
    with pytest.raises(IndexError):
        row[3]


def test_whatever_was_asked_for_is_claimed(row: Listeners) -> None:
    assert len(row.unclaimed()) == 3
    row["http"]
    assert [name for name, _ in row.unclaimed()] == ["dns", "http"]
    row.all("http")
    assert [name for name, _ in row.unclaimed()] == ["dns"]
    list(row)
    assert row.unclaimed() == []


@pytest.mark.parametrize("name", ["http", "a b", "~", "x" * 255])
def test_a_name_is_printable_ascii(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a:b", "é", "a\tb", "x" * 256])
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a listener's name"):
        Listener(name, 0)


def test_a_name_is_text() -> None:
    with pytest.raises(TypeError, match="not bytes"):
        check_name(b"http")


def test_a_connections_state_has_a_limit() -> None:
    Connection("c", 0, bytes(512 * 1024))
    with pytest.raises(ValueError, match="at most 524288"):
        Connection("c", 0, bytes(512 * 1024 + 1))


def test_the_descriptor_is_borrowed_from_whatever_has_one() -> None:
    with socket.socket() as sock:
        assert Listener("a", sock).fileno() == sock.fileno()
        assert File("b", sock.fileno()).fileno() == sock.fileno()
        assert repr(File("b", 7)) == "File('b', 7)"


def test_two_entries_differ_in_what_identifies_them_only() -> None:
    def entry(**values: object) -> Entry:
        return Entry("a", KIND_LISTENER, **{"family": 2, "type": 1, "cookie": 5, "address": "127.0.0.1:1", **values})

    assert entry().differences(entry()) == []
    assert entry(connected=True).differences(entry()) == []
    assert entry(cookie=6, address="x").differences(entry()) == ["cookie", "address"]
    file = Entry("f", KIND_FILE, mode=1, device=2, inode=3)
    assert file.differences(Entry("f", KIND_FILE, mode=1, device=2, inode=4)) == ["inode"]
    assert "mode" in file.differences(Entry("f", KIND_FILE, family=2))
