"""Users and modes as an operator writes them."""

from __future__ import annotations

import os


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


class Account:
    """Whom a process shall be: ``uid`` and ``gid``, all its groups, and the variables that go with it."""

    __slots__ = ("environ", "gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], environ: dict[str, str]) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.environ = environ


def find_account(user: str, group: str) -> Account | None:
    """What ``--user`` and ``--group`` mean, each a name or a number, or empty: as it is, and the user's own group.
    ``None`` when both are empty. ``ValueError`` for one that there is not, and for a number without an entry
    where no group is named.
    """
    if not user and not group:
        return None
    gid = parse_group(group) if group else -1
    if not user:
        return Account(os.geteuid(), gid, [gid], {})
    import pwd

    uid = parse_user(user)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        if gid < 0:
            raise ValueError(f"user {user} has no entry that names its group: say which group") from None
        return Account(uid, gid, [gid], {})
    gid = gid if gid >= 0 else entry.pw_gid
    who = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    return Account(uid, gid, os.getgrouplist(entry.pw_name, gid), who)
