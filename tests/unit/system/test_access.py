"""Users and modes as an operator writes them."""

from __future__ import annotations

import pwd

import pytest

from fdhandoff.system.access import parse_mode, parse_user


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("0", 0), ("777", 0o777)])
def test_a_mode_is_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "rw", "0o660", "888", "1777", "-1", " 660"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no mode: say an octal number such as 0660"):
        parse_mode(text)


def test_a_user_is_a_number_or_a_name() -> None:
    assert parse_user("1000") == 1000
    assert parse_user("root") == pwd.getpwnam("root").pw_uid


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "there is no user ''"), ("no-such-user", "there is no user"), ("4294967295", "is no user's number")],
)
def test_what_is_no_user_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_user(text)
