"""What ``run`` is told, read."""

from __future__ import annotations

import resource
import time
from calendar import timegm
from pathlib import Path

import pytest

from fdhandoff.master.options import (
    Options,
    Window,
    assignments,
    drain_signal_of,
    for_release,
    parse_canary,
    parse_limit,
    parse_memory,
    parse_readiness,
    read_env_file,
)


def test_a_canary_is_shares_and_seconds() -> None:
    steps = parse_canary("0.5%:60s,5%:1m,100%:500ms")
    assert [(step.share, step.seconds) for step in steps] == [(0.005, 60.0), (0.05, 60.0), (1.0, 0.5)]


@pytest.mark.parametrize(
    "text", ["5", "5%", "5:60s", "0%:1s", "101%:1s", "-5%:1s", "x%:1s", "5%:soon", "nan%:1s", "5%:1s,1%:1s"]
)
def test_what_is_no_canary(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_canary(text)


@pytest.mark.parametrize("text", ["accept", "notify", "http:/healthz?deep=1", "command:curl -f localhost", "delay:2s"])
def test_a_readiness_shows_as_it_was_written(text: str) -> None:
    assert str(parse_readiness(text)) == text


@pytest.mark.parametrize("text", ["", "later", "http", "http:healthz", "command:", "delay:soon", "ACCEPT"])
def test_what_is_no_readiness(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_readiness(text)


def test_an_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\nexport B = 'two words'\nC=\"=\"\nEMPTY=\n")
    assert read_env_file(str(file)) == {"A": "1", "B": "two words", "C": "=", "EMPTY": ""}
    file.write_text("A=1\nnonsense\n")
    with pytest.raises(ValueError, match="line 2"):
        read_env_file(str(file))


def test_assignments() -> None:
    assert assignments(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("A", "=1"):
        with pytest.raises(ValueError, match="NAME=value"):
            assignments([wrong])


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["/usr/sbin/nginx"], "SIGQUIT"), (["haproxy", "-f", "x"], "SIGUSR1"), (["uvicorn"], "SIGTERM"), ([], "SIGTERM")],
)
def test_known_servers_are_told_to_stop_in_their_own_way(command: list[str], expected: str) -> None:
    assert drain_signal_of(command) == expected


@pytest.mark.parametrize(
    ("text", "size", "seconds"),
    [
        ("100", 100, 30.0),
        ("2K", 2048, 30.0),
        ("512M", 512 << 20, 30.0),
        ("1.5G:10s", 3 << 29, 10.0),
        ("1MiB", 1 << 20, 30.0),
    ],
)
def test_an_amount_of_memory_is_read(text: str, size: int, seconds: float) -> None:
    limit = parse_memory(text)
    assert (limit.size, limit.seconds) == (size, seconds)


@pytest.mark.parametrize("text", ["", "M", "-1M", "1T", "1..5M", ".", "0", "1M:", "1M:soon", "1M:0", "٣M"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no|is not|all the time"):
        parse_memory(text)


@pytest.mark.parametrize(("text", "name", "soft", "hard"), [
    ("NOFILE=20000", "nofile", 20000, 20000),
    ("nofile=1:2", "nofile", 1, 2),
    ("as=2G", "as", 2 << 30, 2 << 30),
    ("rlimit_as=512K:unlimited", "as", 512 << 10, -1),
    ("core=infinity", "core", -1, -1),
])  # fmt: skip
def test_a_limit_is_read(text: str, name: str, soft: int, hard: int) -> None:
    limit = parse_limit(text)
    assert (limit.name, limit.soft, limit.hard) == (name, soft, hard)
    assert limit.resource == getattr(resource, f"RLIMIT_{name.upper()}")


@pytest.mark.parametrize("text", [
    "", "nofile", "nofile=", "nofile=x", "nofile=-1", "nofile=1:", "nofile=2:1", "nofile=unlimited:5", "color=3", "infinity=3",
    "=3", "nofile=1:2:3", "nofile=G", "nofile=1.5", f"nofile={1 << 70}",
])  # fmt: skip
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit|amount"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("text", "moment", "opened"),
    [
        ("02:00-04:00", "2026-11-26 02:00", True),
        ("02:00-04:00", "2026-11-26 04:00", False),
        ("22:00-04:00", "2026-11-26 03:59", True),
        ("22:00-04:00", "2026-11-26 21:59", False),
        ("Mon-Fri 02:00-04:00", "2026-11-28 03:00", False),  # a Saturday
        ("Fri 22:00-04:00", "2026-11-28 03:00", True),
        ("Fri 22:00-04:00", "2026-11-27 03:00", False),
        ("Sat-Mon 00:00-24:00", "2026-11-29 12:00", True),
        ("Sat-Mon 00:00-24:00", "2026-11-25 12:00", False),
        ("01:00-02:00, Sat 05:00-06:00", "2026-11-28 05:30", True),
    ],
)
def test_a_window_is_open_in_its_hours(text: str, moment: str, opened: bool) -> None:
    assert Window(text).is_open(time.strptime(moment, "%Y-%m-%d %H:%M")) == opened


@pytest.mark.parametrize(
    ("text", "moment", "opened"),
    [
        # In Berlin it is 03:00 after 01:59 on 2026-03-29, and 02:00 once more after 02:59 on 2026-10-25.
        ("02:00-04:00", "2026-03-29 00:59", False),
        ("02:00-04:00", "2026-03-29 01:00", True),
        ("02:00-04:00", "2026-03-29 02:00", False),
        ("02:15-02:45", "2026-03-29 01:15", False),  # there is no such time that day
        ("Sat 23:00-04:00", "2026-03-29 01:59", True),
        ("Sat 23:00-04:00", "2026-03-29 02:00", False),
        ("02:15-02:45", "2026-10-25 00:30", True),
        ("02:15-02:45", "2026-10-25 00:50", False),
        ("02:15-02:45", "2026-10-25 01:30", True),
        ("02:15-02:45", "2026-10-25 02:30", False),
    ],
)
def test_a_window_goes_by_the_clock_on_the_wall_also_when_that_is_put_forward_or_back(
    monkeypatch: pytest.MonkeyPatch, text: str, moment: str, opened: bool
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    try:
        time.tzset()
        assert Window(text).is_open(time.localtime(timegm(time.strptime(moment, "%Y-%m-%d %H:%M")))) == opened
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text", ["", "noon", "02:00", "02:00-25:00", "02:00-24:30", "Mon-Fry 02:00-04:00", "Mon 2-4", "02:00-04:00 Mon"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no window"):
        Window(text)


def test_a_generation_has_its_releases_own_paths() -> None:
    options = Options(
        ["{release}/bin/x", "/srv/current", "/srv/current2", "--app=/srv/current"],
        env=["A=/srv/current/y", "B={release}=1"],
        directory="/srv/current",
        ready=parse_readiness("command:{release}/probe"),
    )
    own = for_release(options, "v1", "/srv/v1", "/srv/current")
    assert own.command == ["/srv/v1/bin/x", "/srv/v1", "/srv/current2", "--app=/srv/current"]
    assert own.env == ["A=/srv/v1/y", "B=/srv/v1=1"]
    assert (own.directory, own.release, own.place) == ("/srv/v1", "v1", "/srv/v1")
    assert str(own.ready) == "command:/srv/v1/probe"
    assert options.command[0] == "{release}/bin/x", "the others keep theirs"
