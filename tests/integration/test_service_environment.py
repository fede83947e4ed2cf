"""What a service finds in its environment, right and wrong."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from .services import HERE, App, alive

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


def pass_listener(sock: socket.socket, **variables: str) -> dict[str, object]:
    """As a service manager would: the listener as descriptor 3, LISTEN_PID the process's own."""
    assignments = " ".join(f"{name}={value}" for name, value in variables.items())
    return {"pass_fds": [sock.fileno()], "script": f"exec 3<&{sock.fileno()}; {assignments} exec " + '"$0" "$@"'}


def start_with(app: App, sock: socket.socket, *, wait: bool = True, **variables: str) -> subprocess.Popen[str]:
    how = pass_listener(sock, **variables)
    command = ["bash", "-c", str(how["script"]), sys.executable, str(HERE / app.script), str(app.directory)]
    return app.start(wait=wait, command=command, pass_fds=how["pass_fds"])


@pytest.mark.parametrize(
    "variables",
    [{"LISTEN_FDS": "1", "LISTEN_PID": "$$"}, {"LISTEN_FDS": "1", "LISTEN_PID": "$$", "LISTEN_FDNAMES": "main"}],
    ids=["unnamed", "named"],
)
def test_an_inherited_listener_is_used_and_goes_on(tmp_path: Path, variables: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with App(tmp_path, listeners={"main": f"127.0.0.1:{port}"}) as app:
            start_with(app, sock, **variables)
            assert app.generation() == 1
            assert "LISTEN" not in app.ask("environment")
            app.ask("upgrade")
            assert app.generation() == 2
            app.start()
            assert app.generation() == 3
            app.stop()


WRONG = {
    "empty": ({"LISTEN_FDS": "''", "LISTEN_PID": "$$"}, "LISTEN_FDS='' is not a number from 1 on"),
    "zero": ({"LISTEN_FDS": "0", "LISTEN_PID": "$$"}, "LISTEN_FDS='0' is not a number from 1 on"),
    "letter": ({"LISTEN_FDS": "a", "LISTEN_PID": "$$"}, "LISTEN_FDS='a' is not a number from 1 on"),
    "too many": ({"LISTEN_FDS": "90", "LISTEN_PID": "$$"}, "is not open: pass them all"),
    "names": ({"LISTEN_FDS": "1", "LISTEN_PID": "$$", "LISTEN_FDNAMES": "a:b"}, "has 2 names, but LISTEN_FDS is 1"),
    "generation": ({"FDHANDOFF_GENERATION": "x"}, "FDHANDOFF_GENERATION='x' is not a number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_environment_is_an_exact_error(tmp_path: Path, case: str) -> None:
    variables, words = WRONG[case]
    with socket.create_server(("127.0.0.1", 0)) as sock, App(tmp_path) as app:
        process = start_with(app, sock, wait=False, **variables)
        assert process.wait(20) == 1
        app.gone()
        assert app.find("EnvironmentInvalid: .*" + re.escape(words)), app.lines
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_a_descriptor_that_is_no_socket_is_an_exact_error(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as file, App(tmp_path) as app:
        process = start_with(app, file, wait=False, LISTEN_FDS="1", LISTEN_PID="$$")  # type: ignore[arg-type]
        assert process.wait(20) == 1
        app.gone()
        assert app.find("ListenerError: LISTEN_FDS passes descriptor 3 as 'listener0', which is no socket")


def test_listeners_for_another_process_are_left_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, App(tmp_path) as app:
        start_with(app, sock, LISTEN_FDS="1", LISTEN_PID="1")
        assert app.address()[1] != sock.getsockname()[1]
        assert app.ask("came") == "none"
        app.stop()


def test_an_inherited_listener_beside_a_live_owner_of_the_path_is_served_without_the_path(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, App(tmp_path) as app:
        first = app.start()
        app.deploy(listeners={"main": f"127.0.0.1:{sock.getsockname()[1]}"})
        second = start_with(app, sock, LISTEN_FDS="1", LISTEN_PID="$$")
        assert app.find("log .*this process can't be upgraded through it")
        assert app.pid() == second.pid
        assert app.ask("upgrade").startswith("Unsupported old ")
        assert alive(first.pid)
        app.stop()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
