"""What only hypercorn has: its websockets, and options of its own that can't be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, Running, environment, free_port, stopping
from . import KeepAlive

pytest.importorskip("hypercorn", reason="needs hypercorn: pip install 'fdhandoff[test]'")

APP = "tests.integration.servers.app:app"


class Hypercorn(Running):
    def __init__(self, folder: Path, *options: str, app: str = APP, port: int = 0, **env: str) -> None:
        self._start(
            [sys.executable, "-m", f"{PACKAGE}.servers.hypercorn", app, "--bind", f"127.0.0.1:{port}", "--handoff-path",
             str(folder / "h.sock"), "--handoff-probation", "500ms", *options],
            env=environment(**env),
        )  # fmt: skip


def test_a_websocket_is_told_to_come_again(tmp_path: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client as websockets

    port = free_port()
    old = Hypercorn(tmp_path, port=port)
    with stopping(old):
        old.says("generation 1 serves")
        with websockets.connect(f"ws://127.0.0.1:{port}/") as socket:
            socket.send("hello")
            assert socket.recv() == "1 hello"
            new = Hypercorn(tmp_path, port=port)
            with stopping(new):
                new.says("generation 2 serves")
                with pytest.raises(ConnectionClosed) as closed:
                    socket.recv(timeout=20)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
                with websockets.connect(f"ws://127.0.0.1:{port}/") as again:
                    again.send("back")
                    assert again.recv() == "2 back"
                assert old.ends() == 0
        assert "Traceback" not in old.text()


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (["--reload"], 2, "the reloader is for development"),
        (["--worker-class", "trio"], 2, "only asyncio and uvloop"),
        (["--quic-bind", "127.0.0.1:0"], 2, "QUIC"),
        (["--bind", "fd://3"], 2, "LISTEN_FDS"),
        (["--handoff-probation", "soon"], 2, "soon"),
    ],
)
def test_what_can_not_be_is_refused_in_a_sentence(tmp_path: Path, options: list[str], status: int, why: str) -> None:
    refused = Hypercorn(tmp_path, *options)
    assert refused.ends() == status
    assert why in refused.text()
    assert "Traceback" not in refused.text()


def test_an_application_that_does_not_start_leaves_nothing(tmp_path: Path) -> None:
    for app, why in ((APP, "the database is not there"), ("nowhere:app", "module not found")):
        refused = Hypercorn(tmp_path, app=app, BOOT="fail")
        assert refused.ends() == 1
        assert why in refused.text()
        assert "Traceback" not in refused.text()
    assert list(tmp_path.iterdir()) == []


def test_serve_in_a_program_of_ones_own_hands_over_and_returns(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys\n"
        "from hypercorn.config import Config\n"
        "from tests.integration.servers.app import app\n"
        "from fdhandoff.servers.hypercorn import serve\n"
        "config = Config()\n"
        "config.bind = [f'127.0.0.1:{sys.argv[1]}']\n"
        "asyncio.run(serve(app, config, handoff_path=sys.argv[2], handoff_probation=0.5))\n"
        "print('behind it')\n"
    )
    port, path = free_port(), tmp_path / "h" / "h.sock"
    path.parent.mkdir(mode=0o700)

    class Program(Running):
        def __init__(self) -> None:
            self._start([sys.executable, str(program), str(port), str(path)], env=environment())

    old = Program()
    with stopping(old):
        old.says("generation 1 serves")
        with KeepAlive(("127.0.0.1", port), count=2) as busy:
            new = Program()
            with stopping(new):
                new.says("generation 2 serves")
                assert old.ends() == 0, old.text()
                assert old.out[-1] == "behind it"
                busy.heard(2)
                busy.end()
        assert not busy.failures
        assert busy.reconnects == 0
