"""Users and modes as an operator writes them."""

from __future__ import annotations


def parse_mode(text: str) -> int:
    """``0660``. ``ValueError`` when it is no octal number of permissions."""
    if not text or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise ValueError(f"{text!r} is no mode: say an octal number such as 0660")
    return int(text, 8)


def parse_user(text: str) -> int:
    """A user's number, or name: the number. ``ValueError`` when there is none of that name."""
    if text.isascii() and text.isdigit():
        return _number(text, "user")
    import pwd  # late: most say a number, or nothing

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {text!r}") from None


def parse_group(text: str) -> int:
    """The same of a group."""
    if text.isascii() and text.isdigit():
        return _number(text, "group")
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {text!r}") from None


def _number(text: str, what: str) -> int:
    if int(text) >= 2**32 - 1:
        raise ValueError(f"{text} is no {what}'s number")
    return int(text)
