"""Other tools' ways to tell a program of its listeners."""

from __future__ import annotations

from fdhandoff.master.conventions import CONVENTIONS, REUSEPORT, strip, variables

ADDRESSES = ["127.0.0.1:80", "[::]:443", "unix:/run/s", "udp:127.0.0.1:53"]


def test_nothing_is_said_unasked() -> None:
    assert variables([], ADDRESSES, 1) == {}


def test_who_binds_itself_is_told_nothing() -> None:
    assert variables([REUSEPORT], ADDRESSES, 1) == {}


def test_each_convention_counts_from_three() -> None:
    found = variables(CONVENTIONS, ADDRESSES, 7)
    assert found["NGINX"] == "3;4;5;6;"
    assert found["EINHORN_FD_COUNT"] == "4"
    assert [found[f"EINHORN_FD_{place}"] for place in range(4)] == ["3", "4", "5", "6"]
    assert found["SERVER_STARTER_PORT"] == "127.0.0.1:80=3;[::]:443=4;/run/s=5;127.0.0.1:53=6"
    assert found["SERVER_STARTER_GENERATION"] == "7"


def test_without_listeners_nginx_is_told_nothing() -> None:
    assert variables(CONVENTIONS, [], 1) == {
        "EINHORN_FD_COUNT": "0", "SERVER_STARTER_PORT": "", "SERVER_STARTER_GENERATION": "1",
    }  # fmt: skip


def test_what_was_meant_for_us_goes_no_further() -> None:
    environ = {"NGINX": "3;", "EINHORN_FD_COUNT": "1", "EINHORN_FD_0": "3", "SERVER_STARTER_PORT": "x", "HOME": "/"}
    strip(environ)
    assert environ == {"HOME": "/"}
