"""What a command shows of the server that it starts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from fdhandoff.master import config, recognition
from fdhandoff.master.config import Configuration
from fdhandoff.master.recognition import ANNOUNCED, SERVERS, recognise, unwrap

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "servers" / "unmodified.md"


def known(command: str, *binds: str, choice: str = "auto") -> dict[str, Any]:
    return recognise(shlex.split(command), binds or ["http=127.0.0.1:8000"], choice)


@pytest.mark.parametrize(
    ("command", "words", "forks"),
    [
        ("uvicorn app:app", "uvicorn app:app", ""),
        ("/venv/bin/uvicorn app:app", "/venv/bin/uvicorn app:app", ""),
        ("python -m uvicorn app:app", "uvicorn app:app", ""),
        ("/usr/bin/python3.12 -u -X dev -m uvicorn app:app", "uvicorn app:app", ""),
        ("python /venv/bin/uvicorn app:app", "/venv/bin/uvicorn app:app", ""),
        ("env -i A=1 B=2 uvicorn app:app", "uvicorn app:app", ""),
        ("nice -n 5 python -m uvicorn x", "uvicorn x", ""),
        ("poetry run uvicorn app:app", "uvicorn app:app", ""),
        ("uv run --with x python -m uvicorn app:app", "uvicorn app:app", "uv run"),
        ("tini -- uvicorn app:app", "uvicorn app:app", "tini"),
        ("sh -c 'exec uvicorn app:app'", "uvicorn app:app", ""),
        ("sh -c 'uvicorn app:app'", "uvicorn app:app", ""),
        ("sh -c 'cd /srv && uvicorn app:app'", "uvicorn app:app", "sh"),
        ("sh -c 'uv run uvicorn app:app'", "uvicorn app:app", "uv run"),
        ('sh -c "an \'open quotation"', "", ""),
        ("python -c pass", "", ""),
        ("python", "", ""),
        ("uv run", "", "uv run"),
        ("sh -c", "", ""),
        ("pythonic uvicorn", "pythonic uvicorn", ""),
    ],
)
def test_what_stands_before_a_server_is_seen_through(command: str, words: str, forks: str) -> None:
    assert unwrap(shlex.split(command)) == (shlex.split(words), forks)


@pytest.mark.parametrize(
    ("command", "server"),
    [
        ("python manage.py runserver", "runserver"),
        ("django-admin runserver 8000", "runserver"),
        ("python -m django migrate", ""),
        ("flask --app x run", "flask"),
        ("flask --app x shell", ""),
        ("python -m aiohttp.web x:y", "aiohttp.web"),
        ("python -m twisted web", "twist"),
        ("runserver", ""),
        ("./server uvicorn", ""),
        ("python app.py", ""),
        *((name, server.names[0]) for server in SERVERS for name in server.names if name not in ("runserver", "flask")),
    ],
)
def test_a_server_is_known_by_its_command(command: str, server: str) -> None:
    assert known(command)["server"] == server


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("uvicorn a:b --fd 3", ""),
        ("uvicorn a:b --fd '{fd:http}'", ""),
        ("uvicorn a:b --port 8000", ""),
        ("uvicorn a:b --fd 7", "none of its listeners (3)"),
        ("uvicorn a:b --fd", "none of its listeners"),
        ("uvicorn a:b --port 9000", "port 9000 itself"),
        ("uvicorn a:b --uds x", "--uds"),
        ("gunicorn a:b", ""),
        ("gunicorn -b 0.0.0.0:8000 a:b", ""),
        ("gunicorn a:b --daemon", "background"),
        ("uv run gunicorn a:b", "LISTEN_PID does not name"),
        ("uv run gunicorn -b fd://3 a:b", ""),
        ("sh -c 'true; gunicorn -b fd://3 a:b'", "exec before it"),
        ("hypercorn a:b", "unless it is told --bind fd://3"),
        ("hypercorn -b fd://3 a:b", ""),
        ("hypercorn --bind=fd://3 a:b", ""),
        ("hypercorn --bind fd://9 a:b", "none of its listeners (fd://3)"),
        ("daphne a:b", "unless it is told --fd 3"),
        ("daphne -e fd:fileno=3 a:b", ""),
        ("flask run --debug", "reloader"),
        ("flask run", ""),
        ("twistd -y app.tac", "without -n"),
        ("twistd -n web", "--listen systemd"),
        ("twistd -noy app.tac", ""),
        ("twistd -n web --listen systemd:domain=INET:index=0", ""),
        ("uv run twist web --listen systemd:domain=INET:index=0", "LISTEN_PID"),
        ("cheroot wsgi:app", ""),
        ("cherryd", ""),
        ("cherryd -d", "background"),
        ("uwsgi --http-socket fd://3", ""),
        ("uwsgi --http-socket :8000", "unless it is told --http-socket fd://3"),
        ("uwsgi app.ini", ""),
        ("nginx", "daemon off"),
        ("nginx -g 'daemon off;'", ""),
        ("haproxy -D -f x", "background"),
        ("haproxy -f x", ""),
        ("granian a:b", "--convention reuseport"),
        ("waitress-serve a:b", "no option for a listener"),
    ],
)
def test_what_keeps_a_server_from_its_listener_is_said(command: str, what: str) -> None:
    found = known(command)
    assert what in found["wrong"]
    assert bool(what) == bool(found["wrong"])
    assert len(found["says"]) == 1
    assert found["wrong"] in found["says"][0]


def test_several_listeners_and_other_kinds_are_looked_at_too() -> None:
    assert "one listener only" in known("uvicorn a:b", "a=:1", "b=:2")["wrong"]
    assert known("hypercorn -b fd://4 a:b", "a=:1", "b=:2")["wrong"] == ""
    assert "IPv4" in known("cheroot wsgi:app", "[::1]:8000")["wrong"]
    assert "IPv4" in known("cherryd", "[::1]:8000")["wrong"]
    assert "IPv4" in known("cherryd", "unix:/run/x")["wrong"]


def test_what_the_environment_can_say_is_said_there() -> None:
    assert known("uvicorn a:b")["env"] == {"UVICORN_FD": "3"}
    assert known("uvicorn a:b --fd 3")["env"] == {}
    assert known("uvicorn a:b --port 9")["env"] == {}
    assert known("uvicorn a:b", "a=:1", "b=:2")["env"] == {}
    assert known("flask run")["env"] == {"WERKZEUG_SERVER_FD": "3", "WERKZEUG_RUN_MAIN": "true"}
    assert "gracefully_kill_them_all" in known("uwsgi --http-socket fd://3")["env"]["UWSGI_HOOK_MASTER_START"]
    assert known("uwsgi --http-socket fd://3 --die-on-term")["env"] == {}
    assert recognise(["flask", "run"], [])["env"] == {}, "no listener, nothing to say of it"


def test_signals_and_conventions_are_those_that_the_server_knows() -> None:
    nginx = known("/usr/sbin/nginx -g 'daemon off;'")
    assert (nginx["signal"], nginx["conventions"]) == ("SIGQUIT", ["nginx"])
    assert known("env A=1 haproxy -f x")["signal"] == "SIGUSR1"
    assert known("uvicorn a:b")["signal"] == ""


def test_gunicorn_with_the_workers_of_uvicorn_or_its_own_for_asgi_closes_as_uvicorn_does() -> None:
    assert ANNOUNCED in known("gunicorn -k gthread a:b")["says"][0]
    said = known("gunicorn -k asgi a:b")["says"][0]
    assert "is lost; python -m fdhandoff.servers.gunicorn instead loses none" in said
    said = known("gunicorn -k uvicorn_worker.UvicornWorker a:b")["says"][0]
    assert ANNOUNCED not in said
    assert said.endswith("-k fdhandoff.servers.gunicorn_uvicorn.Worker instead loses none")
    assert ANNOUNCED in known("gunicorn -k fdhandoff.servers.gunicorn_uvicorn.Worker a:b")["says"][0]


def test_the_adapter_is_named_where_there_is_one() -> None:
    assert known("uvicorn a:b")["says"][0].endswith("python -m fdhandoff.servers.uvicorn instead loses none")
    assert "fdhandoff.servers" not in known("gunicorn a:b")["says"][0]
    assert known("uwsgi --http-socket fd://3")["says"][0].endswith(
        "python -m fdhandoff.servers.uwsgi instead loses none"
    )
    said = known("granian a:b")["says"][0]
    assert said.endswith("the same --port; python -m fdhandoff.servers.granian takes it"), said
    for server in SERVERS:
        said = known(server.names[0] if server.names[0] not in ("flask", "runserver") else "flask run")["says"][0]
        there = (Path(recognition.__file__).parents[1] / "servers" / f"{server.adapter}.py").exists()
        assert not (".servers." in said and not there)


def test_what_has_no_command_line_to_stand_for_it_is_told_as_it_is() -> None:
    """CherryPy's daemon reads no program of the user's in which a word could be changed."""
    said = known("cherryd -i x")["says"][0]
    assert said.endswith("; a program with fdhandoff.servers.cherrypy.quickstart instead loses none")


def test_an_operator_says_which_server_it_is_or_that_it_is_none() -> None:
    assert known("./start", choice="uvicorn")["env"] == {"UVICORN_FD": "3"}
    none = known("nginx", choice="none")
    assert none == {"server": "", "env": {}, "conventions": [], "signal": "SIGTERM", "wrong": "", "says": []}


def configured(command: str, **given: Any) -> Any:
    return Configuration(shlex.split(command), {"bind": ["127.0.0.1:80"], **given}, "", lambda name: f"/run/{name}/h")()


def test_what_was_said_counts_more_than_what_is_known() -> None:
    options = configured("nginx -g 'daemon off;'")
    assert (options.stop_signal, options.conventions) == ("SIGQUIT", ["nginx"])
    options = configured("nginx -g 'daemon off;'", **{"drain-signal": "TERM", "convention": ["einhorn"]})
    assert (options.stop_signal, options.conventions) == ("SIGTERM", ["einhorn"])
    assert configured("nginx", server="none").stop_signal == "SIGTERM"
    assert configured("nginx", server="none").remarks == []
    with pytest.raises(ValueError, match="'gunicron' is no server that is known: say none, auto or one of gunicorn, "):
        configured("x", server="gunicron")


def test_the_table_is_asked_once_for_a_command_and_not_kept() -> None:
    configuration = Configuration(["uvicorn"], {"bind": ["127.0.0.1:80"]}, "", lambda name: f"/run/{name}/h")
    assert configuration().defused == {"UVICORN_FD": "3"}
    assert recognition.__name__ not in sys.modules
    assert configuration.recognised is not None
    configuration.recognised[1]["says"][:] = ["kept"]
    assert configuration().remarks == ["kept"]
    configuration.given["bind"] = ["127.0.0.1:80", "127.0.0.1:81"]  # type: ignore[index]
    assert "one listener only" in configuration().remarks[0]
    assert config.__name__ in sys.modules


def rows() -> str:
    """The page's table, as the code has it."""
    lines = ["| command | what it needs | what `run` does unasked | at an upgrade |", "|---|---|---|---|"]
    for server in SERVERS:
        names = ", ".join(f"`{name}`" for name in server.names)
        lines.append(
            f"| {names} | {server.needs or 'its adapter, or a program that passes the socket: it has no option for it'} "
            f"| {server.unasked or 'nothing'} | {recognition.IN_SHORT[server.expects]} |"
        )
    return "\n".join(lines)


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not part of this copy")
def test_the_page_has_the_table() -> None:
    assert rows() in PAGE.read_text(encoding="utf-8"), f"docs/how-to/servers/unmodified.md is to have\n{rows()}"
