"""A service in an event loop, and one with forked workers."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from .services import App, alive, ask_on, eventually

if TYPE_CHECKING:
    from pathlib import Path

# --- asyncio --------------------------------------------------------------------------------------------------


def test_in_an_event_loop_everything_can_be_awaited(tmp_path: Path) -> None:
    with App(tmp_path, "on_asyncio.py", hooks=True) as app:
        first = app.start()
        with app.connect() as silent:
            assert app.ask("upgrade") == "handed 2"
            app.wait_for(f"^{first.pid} ends handed over")
            assert ask_on(silent) == f"1 {first.pid} "
        assert first.wait(20) == 0
        assert app.generation() == 2
        assert app.ask("state") == "made in the loop"
        os.kill(app.pid(), signal.SIGHUP)
        app.wait_for("ready 3")
        app.wait_for("closed", count=2)
        app.stop()
        hooks = [" ".join(line.split()[2:]) for line in app.find(f"^{first.pid} hook")]
        assert hooks == ["before ready True", "before commit True", "before drain True"]


def test_a_coroutine_hook_may_veto(tmp_path: Path) -> None:
    with App(tmp_path, "on_asyncio.py", hooks=True, veto=["before commit"]) as app:
        app.start()
        assert "Vetoed old a hook before commit said no: not today" in app.ask("upgrade")
        assert app.generation() == 1
        app.stop()


def test_in_an_event_loop_a_bad_release_is_told_and_the_loop_goes_on(tmp_path: Path) -> None:
    with App(tmp_path, "on_asyncio.py") as app:
        app.start()
        app.deploy(misbehave="boot:exit1")
        with app.connect() as asking, app.connect() as other:
            asking.sendall(b"upgrade\n")
            assert ask_on(other).startswith("1 ")
            assert asking.recv(500).startswith(b"SuccessorDied old ")
        app.stop()


def test_a_call_that_would_wait_for_itself_is_refused(tmp_path: Path) -> None:
    with App(tmp_path, "on_asyncio.py") as app:
        app.start()
        assert app.ask("block").startswith("UpgradeError upgrade() would wait for itself here")
        app.stop()


# --- forked workers -------------------------------------------------------------------------------------------


def test_workers_serve_drain_and_end_with_their_generation(tmp_path: Path) -> None:
    with App(tmp_path, "workers.py", listeners={"main": f"unix:{tmp_path}/s"}) as app:
        first = app.start()
        app.wait_for("worker default", count=2)
        with app.connect() as kept:
            assert ask_on(kept).startswith("1 ")
            first.send_signal(signal.SIGHUP)
            app.wait_for(f"^{first.pid} ends handed over")
            app.wait_for("worker default", count=4)
            assert app.ask().startswith("2 ")
            assert alive(first.pid), "somebody is inside one of its workers"
            assert ask_on(kept).startswith("1 ")
        assert first.wait(20) == 0
        assert app.find(rf"^{first.pid} drained \d+ 0")
        assert len(app.find(rf"^{first.pid} reaped \d+ 0")) == 2
        os.kill(int(app.find(r"ready 2")[0].split()[0]), signal.SIGTERM)
        app.gone()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_a_workers_death_or_exit_hurts_nobody_else(tmp_path: Path) -> None:
    with App(tmp_path, "workers.py", listeners={"main": f"unix:{tmp_path}/s"}) as app:
        first = app.start()
        app.wait_for("worker default", count=2)
        with app.connect() as one:
            one.sendall(b"leave\n")
            assert one.recv(10) == b""
        app.wait_for(r"reaped \d+ 3")
        assert (tmp_path / "s").exists()
        assert (tmp_path / "handoff.sock").exists()
        assert app.ask().startswith("1 ")
        first.send_signal(signal.SIGHUP)
        app.wait_for("ready 2")
        assert first.wait(20) == 0
        app.wait_for("worker default", count=4)
        with app.connect() as other:
            other.sendall(b"die\n")
            assert other.recv(10) == b""
        assert app.ask().startswith("2 ")
        second = int(app.find(r"ready 2")[0].split()[0])
        os.kill(second, signal.SIGTERM)
        eventually(lambda: not alive(second))
        assert app.find(rf"^{second} drained \d+ [01]")
        app.gone()


def test_a_worker_holds_the_listener_and_nothing_else_of_the_service(tmp_path: Path) -> None:
    with App(tmp_path, "workers.py") as app:
        app.start()
        app.wait_for("worker default", count=2)
        # The listener and this connection.
        assert app.ask("fds") == "2"
        os.kill(app.starters[0].pid, signal.SIGTERM)
        app.gone()
