"""What the adapter for uWSGI takes from uWSGI's own options, and what it leaves to uWSGI."""

from __future__ import annotations

import pytest

from fdhandoff.servers.uwsgi import Options

APP = ["--module", "app:app"]


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["--http-socket", ":8000"], ":8000?backlog=100"),
        (["--http11-socket=*:8000", "-l", "50"], ":8000?backlog=50"),
        (["--socket", "[::1]:8000", "--listen=7"], "[::1]:8000?backlog=7"),
        (["-s", "@abstract"], "unix:@abstract?backlog=100"),
        (["-s/run/app.sock", "--chmod-socket", "--master"], "unix:/run/app.sock?backlog=100&mode=0666"),
        (["-s", "/run/app.sock", "--chmod-socket=660"], "unix:/run/app.sock?backlog=100&mode=0660"),
    ],
)
def test_a_listener_is_found_however_it_is_written(words: list[str], address: str) -> None:
    options = Options([*words, *APP])
    ((_, text),) = options.sockets
    assert options.address(text) == address


def test_what_is_ours_is_taken_away_and_the_rest_goes_on_as_it_is() -> None:
    words = [
        "-w",
        "app",
        "--callable=make",
        "--pidfile",
        "p",
        "--processes",
        "4",
        "--reload-mercy=9",
        "-s",
        ":1",
        "--lazy",
    ]
    options = Options(words)
    assert (options.application, options.values["--callable"], options.values["--pidfile"]) == ("app", "make", "p")
    assert options.grace == 9.0
    assert options.rest == ["--processes", "4", "--reload-mercy=9", "--lazy"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (APP, "name a listener on the command line"),
        (["--socket", ":1"], "name the application on the command line"),
        (["--socket", ":1", *APP, "--wsgi-file", "app.py"], "or else by --wsgi-file"),
        (["--http", ":1", *APP], "a listener of its own"),
        (["-d", "log", "--socket", ":1", *APP], "hides the process that serves"),
        (["--emperor", "/etc", *APP], "known to uWSGI alone"),
        (["--gevent=4", "--socket", ":1", *APP], "for processes and threads"),
        (["--socket"], "--socket wants a value"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Options(words)


def test_an_inherited_listener_is_not_named_by_its_number() -> None:
    options = Options(["--socket", "fd://3", *APP])
    with pytest.raises(ValueError, match="LISTEN_FDS"):
        options.address(options.sockets[0][1])
