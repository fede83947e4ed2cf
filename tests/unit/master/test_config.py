"""The options of ``run``: from the command line, from the file, and from both."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.master.config import SETTINGS, Configuration, read_file
from fdhandoff.master.options import Options

if TYPE_CHECKING:
    from pathlib import Path

needs_toml = pytest.mark.skipif(
    sys.version_info < (3, 11) and importlib.util.find_spec("tomli") is None, reason="needs tomli (it is optional)"
)


def configured(file: Path | str = "", command: list[str] | None = None, **given: Any) -> Configuration:
    return Configuration(command or [], given, str(file), lambda name: f"/run/{name}/handoff.sock")


def test_every_setting_is_an_option_and_its_default_and_example_can_be_read() -> None:
    for setting in SETTINGS:
        assert hasattr(Options(["x"]), setting.attribute), setting.name
        if setting.name not in ("env-file", "directory"):
            setting.read(setting.example)
        default = getattr(Options(["x"]), setting.attribute)
        if setting.default[:1].isdigit():
            assert setting.read(setting.default) == default, setting.name


def test_defaults_are_those_of_the_command() -> None:
    options = configured(command=["/usr/bin/server", "x"])()
    assert (options.name, options.path) == ("server", "/run/server/handoff.sock")
    assert options.command == ["/usr/bin/server", "x"]
    assert options.stop_signal == "SIGTERM"


@needs_toml
def test_a_file_has_the_options_own_names(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        """
        command = "server --flag 'a b'"
        name = "app"
        bind = ["http=127.0.0.1:0", "unix:s?mode=0660"]
        grace = "forever"
        probation = 1.5
        settle = "200ms"
        workers = 3
        drain-signal = "quit"
        convention = "nginx"
        env = { A = "1", B = 2 }
        restart-every = "24h"
        """
    )
    options = configured(file)()
    assert options.command == ["server", "--flag", "a b"]
    assert (options.name, options.binds) == ("app", ["http=127.0.0.1:0", "unix:s?mode=0660"])
    assert (options.grace, options.probation, options.settle, options.workers) == (None, 1.5, 0.2, 3)
    assert (options.drain_signal, options.conventions, options.env) == ("SIGQUIT", ["nginx"], ["A=1", "B=2"])
    assert options.restart_every == 86400


@needs_toml
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workers = 'many'", "workers: 'many' is not a number from 1 to 10000"),
        ("workers = true", "workers: True is neither text nor a number"),
        ("ready_timeout = 3", "ready_timeout: there is no such option; did you mean 'ready-timeout'?"),
        ("command = []", "command: say a list of words"),
        ("command = [1]", "command: say a list of words"),
        ("grace = ", "is not TOML: "),
        ("bind = ['x']", "bind: 'x' has no port"),
        ("env = ['x']", "env: 'x' is not NAME=value"),
        ("ready = 'http:x'", "ready: 'http:x': an HTTP readiness names a path"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"run\.toml") as caught:
        read_file(str(file))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_toml
def test_what_a_running_master_can_not_change_stays(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("command = ['one']\nname = 'app'\nmax-draining = 2\n")
    configuration = configured(file)
    configuration()
    file.write_text("command = ['two']\nname = 'other'\nswitch = 'shared'\nmax-draining = 9\nworkers = 2\n")
    options = configuration()
    assert (options.name, options.switch, options.max_draining) == ("app", "kernel", 2)
    assert (options.command, options.workers) == (["two"], 2)


@needs_toml
def test_the_command_line_counts_more(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("command = ['one']\nworkers = 2\ngrace = 5\n")
    options = configured(file, ["two"], workers="3")()
    assert (options.command, options.workers, options.grace) == (["two"], 3, 5.0)


def test_toml_on_an_old_python_asks_for_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise ImportError(name)

    file = tmp_path / "run.toml"
    file.write_text("")
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ValueError, match=r"needs the package tomli \(pip install 'fdhandoff\[config\]'\)"):
        read_file(str(file))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"bind": ["a=:0", "a=:1"]}, "two listeners are called 'a'"),
        ({"bind": [":0", ":0"]}, "is to be bound twice"),
        ({"bind": ["a=:80", "b=:80?backlog=9"]}, r"a=:80 and b=:80\?backlog=9 are one address, :80: say it once"),
        ({"bind": ["a=unix:/s", "b=/s"]}, "are one address, unix:/s"),
        ({"directory": "/no/such"}, "the working directory /no/such does not exist"),
    ],
)
def test_what_makes_no_sense_together_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        configured(command=["x"], **given)()


def test_addresses_that_only_look_alike_are_not_one() -> None:
    binds = ["a=127.0.0.1:0", "b=127.0.0.1:0", "c=:80", "udp:127.0.0.1:80", "127.0.0.1:81", "127.0.0.2:81"]
    assert configured(command=["x"], bind=binds)().binds == binds


def test_nginx_has_no_unix_socket_that_is_switched_by_a_rename() -> None:
    for command in (["nginx"], ["/usr/sbin/nginx", "-g", "daemon off;"]):
        with pytest.raises(ValueError, match="nginx knows a listener by its address, and unix:/s has another one"):
            configured(command=command, bind=["127.0.0.1:0", "/s"])()
        configured(command=command, bind=["/s"], switch="shared")()
        configured(command=command, bind=["@s"])()


def test_there_must_be_a_command() -> None:
    with pytest.raises(ValueError, match="say which command to run"):
        configured()()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"convention": ["reuseport", "nginx"]}, "leave out --convention nginx"),
        ({"switch": "shared"}, "that takes --switch kernel"),
        ({"bind": ["unix:s"]}, "unix:s is to be passed"),
        ({"bind": ["udp:127.0.0.1:5000"]}, "udp:127.0.0.1:5000 is to be passed"),
        ({"bind": ["127.0.0.1:0"]}, "127.0.0.1:0 names none"),
        ({"workers": "2"}, "leave --workers to the command"),
        ({"worker-lifetime": "1h"}, "say --restart-every"),
        ({"user": "nobody"}, "leave out --user"),
    ],
)
def test_who_binds_itself_is_refused_what_it_can_not_have(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        configured(command=["server"], **{"bind": ["127.0.0.1:5000"], "convention": ["reuseport"], **given})()
