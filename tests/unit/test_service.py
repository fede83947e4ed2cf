"""A service in this very process: its beginning, its end, and what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import fdhandoff
from fdhandoff import Service, errors, registry
from fdhandoff.service import SERVING, STARTING, STOPPED

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def lines() -> list[str]:
    return []


def make(tmp_path: Path, lines: list[str], **options: Any) -> Service:
    return Service("test", **{"path": tmp_path / "handoff.sock", "log": lines.append, "probation": 0.2, **options})


def test_a_life_without_incident(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines, pidfile=tmp_path / "pid") as service:
        listener = service.listen("http", "127.0.0.1:0")
        assert service.state_word == STARTING
        assert not service.owner
        service.ready()
        assert service.owner
        assert service.state_word == SERVING
        assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
        status = service.status()
        assert status["listeners"][0]["address"].endswith(str(listener.getsockname()[1]))
        assert fdhandoff.ask(tmp_path / "handoff.sock", "status")["state"] == SERVING
        assert service.wait(0) == ""
        service.stop()
        assert service.wait(10) == "stop"
        assert service.draining
        report = service.drain()
        assert (report.finished, report.forced) == (0, 0)
    assert service.state_word == STOPPED
    assert list(tmp_path.iterdir()) == []
    assert service.wait() == "stop"
    service.close()  # again


def test_a_verb_stops_it(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        service.ready()
        fdhandoff.ask(tmp_path / "handoff.sock", "stop")
        assert service.wait(10) == "stop"


def test_closing_before_ready_leaves_nothing(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        service.listen("unix", f"unix:{tmp_path}/s")
        service.adopt("pipe", os.open(os.devnull, os.O_RDONLY))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["handoff.sock", "s"]
    assert list(tmp_path.iterdir()) == []


def test_an_exception_closes_it(tmp_path: Path, lines: list[str]) -> None:
    def fail() -> None:
        with make(tmp_path, lines) as service:
            service.listen("unix", f"unix:{tmp_path}/s")
            service.ready()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    assert registry.find(str(tmp_path / "handoff.sock")) is None


def test_ready_is_said_once(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        service.ready()
        with pytest.raises(errors.UpgradeError, match="ready\\(\\) was said already"):
            service.ready()


def test_nothing_is_accepted_before_ready(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        with pytest.raises(errors.UpgradeError, match="comes after ready"):
            service.wait_old()
        service.listen("http", "127.0.0.1:0")
        with pytest.raises(errors.UpgradeError, match="accept only after ready"):
            service.serve(lambda *_: None)


def test_nothing_is_bound_after_ready(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        service.ready()
        with pytest.raises(errors.UpgradeError, match="can't be bound after ready"):
            service.listen("http", "127.0.0.1:0")


@pytest.mark.parametrize("moment", ["before", "without a path", "in a hook", "stopped"])
def test_an_upgrade_is_refused(tmp_path: Path, lines: list[str], moment: str) -> None:
    path = None if moment == "without a path" else tmp_path / "handoff.sock"
    with make(tmp_path, lines, path=path) as service:
        if moment != "before":
            service.ready()
        if moment == "in a hook":
            outcome: list[BaseException] = []
            ran = threading.Event()

            @service.before("SIGUSR1")
            def hook() -> None:
                try:
                    service.upgrade()
                except errors.HandoffError as error:
                    outcome.append(error)
                ran.set()

            signal.raise_signal(signal.SIGUSR1)
            assert ran.wait(10)
            assert "would wait for itself" in str(outcome[0])
            return
        if moment == "stopped":
            service.stop()
            assert service.wait(10)
        with pytest.raises(errors.HandoffError) as caught:
            service.upgrade()
        assert isinstance(caught.value, errors.Unsupported if path is None else errors.UpgradeError)


def test_a_stop_before_ready_is_heeded(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        service.stop()
        assert service.wait(10) == "stop"
        with pytest.raises(errors.Aborted, match="before this process was ready"):
            service.ready()


def test_a_stop_that_was_vetoed_lets_upgrades_and_further_stops_happen(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines, command=["/no/such/server"]) as service:
        service.ready()
        vetoed = threading.Event()

        @service.before("stop")
        def veto() -> None:
            if not vetoed.is_set():
                vetoed.set()
                raise ValueError("not yet")

        service.stop()
        assert vetoed.wait(10)
        with pytest.raises(errors.SystemCallError) as caught:
            service.upgrade()
        assert caught.value.serving == "old"
        service.stop()
        assert service.wait(10) == "stop"


def test_two_stops_hurry_a_drain(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines, grace=None) as service:
        service.ready()
        assert service.gate.enter()
        service.stop()
        service.wait(10)
        service.stop()
        assert service.drain().forced == 1
        service.gate.leave()


def test_a_drain_ends_at_its_grace(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines, grace=0.05) as service:
        service.ready()
        service.gate.enter()
        service.gate.enter()
        service.gate.leave()
        service.stop()
        service.wait(10)
        report = service.drain()
        assert (report.finished, report.forced) == (0, 1), "only what finished since the drain began counts"
        service.gate.leave()


def test_an_address_of_several_sockets_wants_listen_all(tmp_path: Path, lines: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_: [(socket.AF_INET, 0, 0, "", (f"127.0.0.{n}", 0)) for n in (1, 2)],
    )
    with make(tmp_path, lines) as service:
        with pytest.raises(errors.ListenerError, match="stands for 2 sockets: use listen_all"):
            service.listen("http", "somewhere:0")
        assert len(service.listen_all("both", "somewhere:0")) == 2


def test_adopted_things_are_told_apart(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service, socket.create_server(("127.0.0.1", 0)) as listener:
        left, right = socket.socketpair()
        service.adopt("web", listener)
        service.adopt("pair", left)
        service.adopt("null", os.open(os.devnull, os.O_RDONLY))
        service.ready()
        assert [type(item).__name__ for item in service.holdings.items()] == ["Listener", "File", "File"]
        with pytest.raises(errors.ListenerError, match="'pair' is handed on already"):
            service.adopt("pair", right)
        right.close()


@pytest.mark.parametrize("bad", [lambda: "text", lambda: 1 / 0])
def test_a_state_that_can_not_be_made_is_a_veto(tmp_path: Path, lines: list[str], bad: Any) -> None:
    with make(tmp_path, lines) as service:
        service.on_state(bad)
        with pytest.raises(errors.Vetoed, match="the state could not be made"):
            service.make_state()


def test_a_closed_listener_fails_the_offer_and_the_taker_is_told(tmp_path: Path, lines: list[str]) -> None:
    with make(tmp_path, lines) as service:
        service.listen("http", "127.0.0.1:0").close()
        service.ready()
        with pytest.raises(errors.PeerAborted, match="'http' is closed"):
            fdhandoff.receive(tmp_path / "handoff.sock", timeout=10)
        assert service.owner
        deadline = time.monotonic() + 10  # the taker learns it before the service has finished with it
        while service.state_word != SERVING and time.monotonic() < deadline:
            service.wait(0.005)
        assert service.state_word == SERVING


def test_the_path_of_somebody_else_is_an_error(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "handoff.sock").write_text("not a socket")
    with pytest.raises(errors.PathError):
        make(tmp_path, lines)
    assert (tmp_path / "handoff.sock").read_text() == "not a socket"


def test_a_held_pidfile_is_an_error_before_anybody_is_disturbed(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "pid").write_text("1\n")
    with make(tmp_path, lines, pidfile=tmp_path / "pid") as service, pytest.raises(errors.PidfileLocked):
        service.ready()
    assert (tmp_path / "pid").read_text() == "1\n"


def test_what_belongs_to_the_drain_is_done_before_the_wait_is_over(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[bool, str]] = []

    def fail() -> None:
        raise ZeroDivisionError("shown")

    with make(tmp_path, lines) as service:
        service.ready()
        service.when_draining(fail)
        service.when_draining(lambda: seen.append((service.draining, service.wait(0))))
        assert not seen
        service.stop()
        assert service.wait(10) == "stop"
        assert seen == [(True, "")]
        assert "ZeroDivisionError: shown" in capsys.readouterr().err
        service.when_draining(lambda: seen.append((service.draining, service.wait(0))))
        assert seen[1:] == [(True, "stop")]
