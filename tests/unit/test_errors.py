from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
from typing import Any

import pytest

from fdhandoff import errors
from fdhandoff.errors import (
    NEW,
    NOBODY,
    OLD,
    UNKNOWN,
    DeadlineExceeded,
    HandoffError,
    InProgress,
    ListenerMismatch,
    NotReady,
    PathInUse,
    PeerRefused,
    SuccessorDied,
    SystemCallError,
    Unconfirmed,
    UpgradeError,
    VersionMismatch,
    sentence,
)

EVERY = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, HandoffError)]
VALUES = {
    "code": "starting",
    "expected": 1,
    "got": 2,
    "path": "/run/x",
    "pid": 7,
    "call": "accept4",
    "errno": errno.EMFILE,
}


def make(cls: type[HandoffError], **given: Any) -> HandoffError:
    """One of ``cls``, with every argument that it insists on."""
    needed = [p for p in inspect.signature(cls).parameters.values() if p.default is inspect.Parameter.empty]
    values = {
        p.name: VALUES.get(p.name, "what happened") for p in needed if p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return cls(**{**values, **given})


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_says_who_serves(cls: type[HandoffError]) -> None:
    assert make(cls).serving in (OLD, NEW, NOBODY, UNKNOWN)


@pytest.mark.parametrize("cls", [cls for cls in EVERY if "serving" in inspect.signature(cls).parameters])
def test_who_serves_can_be_told(cls: type[HandoffError]) -> None:
    assert make(cls, serving=NOBODY).serving == NOBODY


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_explains_itself_at_its_definition(cls: type[HandoffError]) -> None:
    assert cls.__doc__


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_is_one_sentence_as_text(cls: type[HandoffError]) -> None:
    text = str(make(cls))
    assert text
    assert "\n" not in text
    assert text in repr(make(cls)) or issubclass(cls, OSError)


@pytest.mark.parametrize("how", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
@pytest.mark.parametrize("cls", EVERY)
def test_an_error_crosses_to_another_process_whole(cls: type[HandoffError], how: Any) -> None:
    error = make(cls)
    again = how(error)
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert getattr(again, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize("cls", [DeadlineExceeded, NotReady, Unconfirmed])
def test_what_a_deadline_cut_is_a_timeout_error_too(cls: type[HandoffError]) -> None:
    with pytest.raises(TimeoutError, match="too slow"):
        raise cls("too slow", serving=OLD)


def test_a_failed_system_call_is_an_os_error_with_the_call_and_the_number() -> None:
    with pytest.raises(OSError) as caught:
        raise SystemCallError("accept4", errno.EMFILE, doing="taking connections", serving=OLD)
    error = caught.value
    assert isinstance(error, SystemCallError)
    assert error.errno == errno.EMFILE
    assert error.strerror == os.strerror(errno.EMFILE)
    assert error.call == "accept4"
    assert error.serving == OLD
    assert str(error).startswith(f"taking connections: accept4 failed: {os.strerror(errno.EMFILE)}: raise the ")


def test_a_failed_system_call_needs_no_occasion() -> None:
    assert str(SystemCallError("bind", errno.EADDRINUSE)) == f"bind failed: {os.strerror(errno.EADDRINUSE)}"


def test_what_the_system_says_of_a_file_is_a_sentence_without_numbers() -> None:
    absent = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/run/app")
    assert sentence(absent) == f"/run/app: {os.strerror(errno.ENOENT)}"
    assert sentence(OSError(errno.EMFILE, os.strerror(errno.EMFILE))).endswith("(ulimit -n, LimitNOFILE=)")
    assert sentence(OSError("in its own words")) == "in its own words"
    assert sentence(SystemCallError("bind", errno.EADDRINUSE)) == f"bind failed: {os.strerror(errno.EADDRINUSE)}"
    assert sentence(ValueError("no number")) == "no number"


def test_a_refusal_carries_the_protocol_s_word() -> None:
    assert PeerRefused("not yet", code="starting").code == "starting"
    assert VersionMismatch("1 and 2").code == "version"


def test_a_second_upgrade_is_a_refusal_and_a_failed_upgrade() -> None:
    error = InProgress("pid 12 is at it")
    assert isinstance(error, UpgradeError)
    assert isinstance(error, PeerRefused)
    assert error.code == "in-progress"
    assert error.serving == OLD


def test_the_successor_s_end_is_told() -> None:
    assert SuccessorDied("it died", signal=9).signal == 9
    assert SuccessorDied("it died", status=3).status == 3


def test_a_mismatch_shows_both_sides() -> None:
    error = ListenerMismatch("another address", expected="127.0.0.1:80", got="127.0.0.1:81")
    assert (error.expected, error.got) == ("127.0.0.1:80", "127.0.0.1:81")


def test_a_path_error_names_the_path() -> None:
    assert PathInUse("somebody answers", path="/run/x").path == "/run/x"
