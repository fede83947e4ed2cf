"""Each way in which supervisor's own ``pidproxy`` fails is shown with that one, and absent with ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs
from ..cli import wait_for
from . import ENDLESS, Proxied, gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no subreapers")

LOOKS = 12.0  # seconds: it looks every five


class Stock:
    """``ENDLESS`` under supervisor's proxy. ``server`` is the first generation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pidfile = folder / "app.pid"
        script = folder / "endless.py"
        script.write_text(ENDLESS, encoding="utf-8")
        with open(folder / "errors", "w") as errors:
            self.process = subprocess.Popen(
                [needs("pidproxy", "supervisor"), str(self.pidfile), sys.executable, str(script), str(folder)],
                env={**os.environ, "PIDFILE": str(self.pidfile)},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.server = self.serves(1)

    def serves(self, number: int) -> int:
        def look() -> int:
            try:
                facts = (self.folder / "port").read_text().split()
            except FileNotFoundError:
                return 0
            return int(facts[2]) if facts[1] == str(number) else 0

        return int(wait_for(look, f"generation {number}"))

    def end(self) -> None:
        for pid in {self.server, int((self.folder / "port").read_text().split()[2])}:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Stock]:
    found = Stock(tmp_path)
    yield found
    found.end()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Proxied]:
    pidfile = str(tmp_path / "app.pid")
    with Proxied(tmp_path, "--pidfile", pidfile, PIDFILE=pidfile) as found:
        yield found


def test_the_stock_one_ends_after_the_first_upgrade_and_calls_it_a_success(stock: Stock) -> None:
    stock.process.send_signal(signal.SIGHUP)
    successor = stock.serves(2)
    assert stock.process.wait(LOOKS) == 0
    assert not gone(successor), "an orphan serves on"


def test_ours_stays_with_the_successor(ours: Proxied) -> None:
    for number in (2, 3):
        server = ours.upgrade(number)
        wait_for(lambda: f"process {server} " in ours.running.text())  # noqa: B023 - looked at in this round
    assert ours.running.process.poll() is None
    os.kill(ours.pid, 0)


def test_the_stock_one_answers_term_before_the_child_has_drained(stock: Stock) -> None:
    os.kill(stock.server, signal.SIGSTOP)  # a drain that takes its time
    stock.process.send_signal(signal.SIGTERM)
    assert stock.process.wait(LOOKS) == 0
    assert not gone(stock.server)


def test_ours_waits_for_the_drain(ours: Proxied) -> None:
    server = ours.serves(1)
    os.kill(server, signal.SIGSTOP)
    ours.signal(signal.SIGTERM)
    ours.signal(signal.SIGUSR1)  # handled after the first
    with pytest.raises(subprocess.TimeoutExpired):
        ours.running.process.wait(0.3)
    os.kill(server, signal.SIGCONT)
    assert ours.running.ends() == 0
    assert gone(server)


def test_the_stock_one_ignores_term_where_the_pidfile_is_missing(stock: Stock) -> None:
    stock.pidfile.unlink()
    stock.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        stock.process.wait(1.0)
    assert not gone(stock.server)


def test_ours_stops_where_the_pidfile_is_missing(ours: Proxied, tmp_path: Path) -> None:
    (tmp_path / "app.pid").unlink()
    assert ours.stop() == 0


def test_the_stock_one_crashes_on_a_signal_where_the_pidfile_is_stale(stock: Stock) -> None:
    stock.pidfile.write_text(str(_dead()))
    stock.process.send_signal(signal.SIGHUP)
    assert stock.process.wait(LOOKS) == 1
    assert "ProcessLookupError" in (stock.folder / "errors").read_text()
    assert not gone(stock.server)


def test_ours_finds_the_service_where_the_pidfile_is_stale(ours: Proxied, tmp_path: Path) -> None:
    (tmp_path / "app.pid").write_text(str(_dead()))
    ours.upgrade(2)
    assert ours.running.process.poll() is None


def test_the_stock_one_takes_a_killed_child_for_a_success(stock: Stock) -> None:
    os.kill(stock.server, signal.SIGKILL)
    assert stock.process.wait(LOOKS) == 0


def test_ours_passes_on_that_the_child_was_killed(ours: Proxied) -> None:
    os.kill(ours.serves(1), signal.SIGKILL)
    assert ours.running.ends() == 137


def _dead() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid
