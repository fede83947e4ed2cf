"""TLS in the server, and HTTP/2: such a connection ends with its process, and its client is told in time."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs
from ..cli import DEADLINE, PACKAGE, Running, environment, free_port, wait_for
from ..master import Service, quick
from . import KeepAlive
from .http2 import Http2, certificate

if TYPE_CHECKING:
    pass

HERE = Path(__file__).parent
UPGRADES = 3


def hypercorn(port: int, path: Path, files: list[str]) -> list[str]:
    pytest.importorskip("hypercorn", reason="needs hypercorn: pip install 'fdhandoff[test]'")
    tls = ["--certfile", files[0], "--keyfile", files[1]] if files else []
    return [sys.executable, str(HERE / "on_hypercorn.py"), str(port), str(path / "h.sock"), *tls]


def uvicorn(port: int, path: Path, files: list[str]) -> list[str]:
    pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'fdhandoff[test]'")
    return [
        sys.executable, "-m", f"{PACKAGE}.servers.uvicorn", "tests.integration.servers.app:app", "--port", str(port),
        "--no-access-log", "--timeout-keep-alive", "60", "--ssl-certfile", files[0], "--ssl-keyfile", files[1],
        "--handoff-path", str(path / "h.sock"), "--handoff-probation", "500ms",
    ]  # fmt: skip


SERVERS = {"hypercorn": hypercorn, "uvicorn": uvicorn}


class Server(Running):
    def __init__(self, command: list[str]) -> None:
        self._start(command, env=environment())


def strangers(command: list[str], stack: contextlib.ExitStack) -> Server:
    old = Server(command)
    stack.callback(old.stop)
    old.says("generation 1 serves")
    return old


def upgraded(command: list[str], old: Server, stack: contextlib.ExitStack, number: int) -> Server:
    new = Server(command)
    stack.callback(new.stop)
    new.says(f"generation {number} serves")
    assert old.ends() == 0, old.text()
    assert "cut at the deadline" not in old.text()
    return new


@pytest.mark.parametrize("name", SERVERS)
def test_clients_with_tls_are_told_to_connect_again_and_fail_nothing(tmp_path: Path, name: str) -> None:
    files, context = certificate(tmp_path)
    port = free_port()
    command = SERVERS[name](port, tmp_path, files)
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = strangers(command, stack)
        with KeepAlive(address, context=context) as busy, KeepAlive(address, pause=0.2, context=context) as lazy:
            for number in range(2, UPGRADES + 2):
                old = upgraded(command, old, stack, number)
                busy.heard(number)
                lazy.heard(number, 1)
        assert not busy.failures
        assert not lazy.failures
        assert busy.reconnects == lazy.reconnects == 4 * UPGRADES, "once for each client and upgrade"


@pytest.mark.parametrize("tls", [False, True], ids=["prior knowledge", "TLS"])
def test_http2_clients_are_told_to_go_away_and_fail_nothing(tmp_path: Path, tls: bool) -> None:
    files, context = certificate(tmp_path) if tls else ([], None)
    if context is not None:
        context.set_alpn_protocols(["h2"])
    port = free_port()
    command = hypercorn(port, tmp_path, files)
    with contextlib.ExitStack() as stack:
        old = strangers(command, stack)
        with Http2(("127.0.0.1", port), context) as load:
            for number in range(2, UPGRADES + 2):
                old = upgraded(command, old, stack, number)
                load.heard(number)
        assert not load.failures
        assert load.reconnects == 3 * UPGRADES, "once for each client and upgrade"


def test_http2_under_the_master_fails_nothing(tmp_path: Path) -> None:
    command = [*hypercorn(0, tmp_path, [])[:3], ""]
    with Service(tmp_path, *quick("--ready", "http:/"), command=command) as service:
        with Http2(service.address()) as load:
            for number in (2, 3):
                service.upgrade()
                load.heard(number)
                service.settled(number)
        assert not load.failures
        assert service.stop() == 0


class H2load:
    """h2load, 400 requests a round; ``succeeded``: how many answers it got in all. It does not connect again after GOAWAY: it
    gives up what it has not sent yet, and calls that failed."""

    def __init__(self, url: str) -> None:
        self.succeeded = self.rounds = 0
        self._command = [needs("h2load", "nghttp2-client"), "-n", "400", "-c", "4", "-m", "4", url]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> H2load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE)

    def _run(self) -> None:
        while not self._over.is_set():
            done = subprocess.run(self._command, capture_output=True, text=True, timeout=DEADLINE, check=False)
            found = re.search(r"(\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout)
            assert found, done.stdout
            self.succeeded += int(found[1])
            self.rounds += 1

    def goes_on(self, more: int = 400) -> None:
        before = self.succeeded
        wait_for(lambda: self.succeeded >= before + more, "answers for h2load")


def test_h2load_gets_an_answer_to_every_request_that_reached_a_server(tmp_path: Path) -> None:
    files, _ = certificate(tmp_path)
    port = free_port()
    command = hypercorn(port, tmp_path, files)
    with contextlib.ExitStack() as stack:
        everyone = [strangers(command, stack)]
        with H2load(f"https://127.0.0.1:{port}/") as load:
            for number in range(2, UPGRADES + 2):
                load.goes_on()
                everyone.append(upgraded(command, everyone[-1], stack, number))
            load.goes_on()
        everyone[-1].stop()
        reached = [int(found) for one in everyone for found in re.findall(r"lifespan over, (\d+) requests", one.text())]
        assert len(reached) == UPGRADES + 1
        assert load.succeeded == sum(reached)


def test_h2load_against_granian_under_the_master_has_no_request_fail(tmp_path: Path) -> None:
    """Its rounds are short: each connection ends by itself while its generation drains."""
    pytest.importorskip("granian", reason="needs granian: pip install 'fdhandoff[test]'")
    page = HERE.parents[2] / "docs" / "how-to" / "servers" / "granian.md"
    if not page.exists():
        pytest.skip("the documentation is not part of this copy")
    program = tmp_path / "program.py"
    program.write_text(page.read_text(encoding="utf-8").split("```python\n")[1].partition("```")[0], encoding="utf-8")
    options = quick("--ready", "http:/", "--grace", "60")
    with Service(tmp_path, *options, command=[sys.executable, str(program)]) as service:
        host, port = service.address()
        with H2load(f"http://{host}:{port}/") as load:
            for number in range(2, UPGRADES + 2):
                load.goes_on()
                service.upgrade()
                service.settled(number)
            load.goes_on()
        assert load.succeeded == 400 * load.rounds
        assert service.stop() == 0


def test_an_http2_connection_that_had_its_requests_goes_away_with_all_its_answers(tmp_path: Path) -> None:
    """hypercorn by itself ends such a connection before it has answered."""
    (tmp_path / "few.py").write_text("keep_alive_max_requests = 20\n")
    port = free_port()
    command = [*hypercorn(port, tmp_path, []), "--config", f"file:{tmp_path / 'few.py'}"]
    with contextlib.ExitStack() as stack:
        strangers(command, stack)
        with Http2(("127.0.0.1", port), count=2) as load:
            load.heard(1, 200)
        assert not load.failures
        assert load.reconnects >= 5
