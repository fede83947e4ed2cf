"""A service's health where something fails: its end is no less an end, and whoever asks is answered."""

from __future__ import annotations

import http.client
import json
import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff import HandoffError, Service
from tests.conftest import needs_that
from tests.unit.accepting import FewDescriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 20.0
NOBODY = 65534


@pytest.fixture
def lines() -> list[str]:
    return []


def make(lines: list[str], **options: Any) -> Service:
    return Service("web", path=None, signals={}, log=lines.append, **options)


def address_of(lines: list[str]) -> tuple[str, int]:
    host, _, port = next(line for line in lines if "health on" in line).rpartition(" ")[2].partition(":")
    return host, int(port)


def asked(address: tuple[str, int], path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=LONG)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that others see, and may not write to."""
    needs_that(os.geteuid() == 0, "root")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    os.seteuid(0)
    shutil.rmtree(folder)


def test_a_file_that_can_not_be_removed_keeps_no_service_from_its_end(closed: Path, lines: list[str]) -> None:
    with make(lines, health_file=closed / "ready") as service:
        service.ready()
        assert (closed / "ready").exists()
        os.seteuid(NOBODY)  # as a program does that gives up its rights once it has what it needs
        service.stop()
        assert service.wait(LONG) == "stop"
        assert service.drain().forced == 0
    assert any("can't be removed (Permission denied)" in line for line in lines)


def test_one_of_somebody_else_that_can_not_be_removed_is_an_error(closed: Path, lines: list[str]) -> None:
    (closed / "ready").touch()
    os.seteuid(NOBODY)
    with pytest.raises(HandoffError, match="can't be removed"):
        make(lines, health_file=closed / "ready")


def test_what_the_application_does_wrong_is_shown_and_the_next_one_is_answered(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def count() -> int:
        raise KeyError("bug")

    with make(lines, health="127.0.0.1:0") as service:
        service.observes(count)
        service.ready()
        status, body = asked(address_of(lines), "/metrics")
        assert (status, json.loads(body)["error"]) == (500, "KeyError: 'bug'")
        assert "KeyError: 'bug'" in capsys.readouterr().err
        assert asked(address_of(lines), "/ready")[0] == 200


def test_who_asks_while_descriptors_are_short_costs_nothing_and_is_answered(lines: list[str]) -> None:
    with make(lines, health="127.0.0.1:0") as service:
        service.ready()
        with socket.socket() as late:
            late.settimeout(LONG)
            with FewDescriptors():
                late.connect(address_of(lines))
                late.sendall(b"GET /live HTTP/1.1\r\n\r\n")
                before = resource.getrusage(resource.RUSAGE_SELF)
                time.sleep(0.5)  # a loop that asks again and again would have all of it
                after = resource.getrusage(resource.RUSAGE_SELF)
            assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.25
            assert late.recv(12) == b"HTTP/1.1 200"
