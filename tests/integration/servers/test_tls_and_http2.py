"""TLS in the server, and HTTP/2: such a connection ends with its process, and its client is told in time."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ...conftest import needs
from ..cli import DEADLINE, PACKAGE, Running, environment, free_port, wait_for
from ..master import Service, quick
from . import KeepAlive
from .http2 import Http2, certificate

HERE = Path(__file__).parent
UNMODIFIED = HERE / "unmodified"
ASGI, WSGI = "tests.integration.servers.app:app", "tests.integration.servers.wsgi:app"

REQUESTS = 200
#: How often each is upgraded.
often = pytest.mark.parametrize("upgrades", [2, pytest.param(50, marks=pytest.mark.soak)])


def command(name: str, port: int, path: Path, files: list[str], *, http2: bool = False) -> list[str]:
    """A server with its adapter; with TLS if there are ``files``, a certificate and its key."""
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    words = {
        "hypercorn": ["", "--certfile", "--keyfile"],
        "uvicorn": [f"{ASGI} --no-access-log --timeout-keep-alive 60 --port {port}", "--ssl-certfile", "--ssl-keyfile"],
        "gunicorn": [f"{WSGI} --bind 127.0.0.1:{port} --worker-class gthread --threads 12", "--certfile", "--keyfile"],
        "granian": [
            f"{ASGI} --interface asgi --port {port}" + (" --http 2" if http2 else ""),
            "--ssl-certificate",
            "--ssl-keyfile",
        ],
        "flask": [f"--app tests.integration.servers.on_flask run --port {port}", "--cert", "--key"],
    }.get(name, ["", "", ""])
    tls = [word for pair in zip(words[1:], files, strict=True) for word in pair if word] if files else []
    if not words[0]:
        script, *kind = {"socketserver": ("threaded.py", "http"), "asyncio": ("on_asyncio.py", "protocol")}.get(
            name, (f"on_{name}.py",)
        )
        grace = ["20"] if kind and tls else []
        return [sys.executable, str(HERE / script), *kind, str(port), str(path / "h.sock"), *grace, *tls]
    ours = ["--handoff-path", str(path / "h.sock"), "--handoff-probation", "500ms"]
    return [sys.executable, "-m", f"{PACKAGE}.servers.{name}", *words[0].split(), *tls, *ours]


def unmodified(name: str, folder: Path, *files: str) -> Service:
    """A ``Service`` with a server as it is."""
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    if name == "hypercorn":
        program = [sys.executable, "-m", "hypercorn", "--log-level", "error", "--bind", "fd://3", "asgi:app"]
    else:
        program = [sys.executable, str(UNMODIFIED / "with_granian.py"), *files]
    ready = "accept" if files else "http:/"
    options = quick("--ready", ready, "--grace", "60", "--env", f"PYTHONPATH={UNMODIFIED}")
    return Service(folder, *options, command=program)


class Server(Running):
    def __init__(self, command: list[str]) -> None:
        self._start(command, env=environment())


def strangers(words: list[str], stack: contextlib.ExitStack) -> Server:
    old = Server(words)
    stack.callback(old.stop)
    old.says("generation 1 serves")
    return old


def upgraded(words: list[str], old: Server, stack: contextlib.ExitStack, number: int) -> Server:
    new = Server(words)
    stack.callback(new.stop)
    new.says(f"generation {number} serves")
    assert old.ends() == 0, old.text()
    assert "cut at the deadline" not in old.text()
    assert set(re.findall(r"(\d+) connections moved on", old.text())) <= {"0"}, "what TLS knows can't move"
    return new


SWAPPED = ("hypercorn", "uvicorn", "aiohttp", "gunicorn")


@pytest.mark.parametrize(
    ("name", "upgrades"),
    [
        *((name, 2) for name in SWAPPED),
        *(
            (name, 1)
            for name in ("socketserver", "asyncio", "tornado", "sanic", "cheroot", "twisted", "flask", "granian")
        ),
        *(pytest.param(name, 50, marks=pytest.mark.soak) for name in SWAPPED),
    ],
)
def test_clients_with_tls_are_told_to_connect_again_and_fail_nothing(tmp_path: Path, name: str, upgrades: int) -> None:
    files, context = certificate(tmp_path)
    port = free_port()
    words = command(name, port, tmp_path, files)
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        old = strangers(words, stack)
        with KeepAlive(address, context=context) as busy, KeepAlive(address, pause=0.2, context=context) as lazy:
            for number in range(2, upgrades + 2):
                old = upgraded(words, old, stack, number)
                busy.heard(number)
                lazy.heard(number, 1)
        assert not busy.failures
        assert not lazy.failures
        if name != "flask":  # which keeps no connection
            assert busy.reconnects == lazy.reconnects == 4 * upgrades, "once for each client and upgrade"


@often
def test_granian_with_tls_under_the_master_fails_no_client_that_asks_once(tmp_path: Path, upgrades: int) -> None:
    """It announces no end, so those that keep their connection would have to end it while it drains."""
    files, context = certificate(tmp_path)
    with unmodified("granian", tmp_path, *files) as service:
        with KeepAlive(service.address(), context=context, once=True) as load:
            for number in range(2, upgrades + 2):
                service.upgrade()
                load.heard(number)
                service.settled(number)
        assert not load.failures
        assert service.stop() == 0


@often
@pytest.mark.parametrize(
    ("name", "tls"),
    [
        ("hypercorn", False),
        ("hypercorn", True),
        ("gunicorn", True),
        ("twisted", True),
        ("granian", False),
        ("granian", True),
    ],
)
def test_http2_clients_are_told_to_go_away_and_fail_nothing(
    tmp_path: Path, name: str, tls: bool, upgrades: int
) -> None:
    files, context = certificate(tmp_path) if tls else ([], None)
    if context is not None:
        context.set_alpn_protocols(["h2"])
    port = free_port()
    words = command(name, port, tmp_path, files, http2=True)
    if name == "gunicorn":
        words += ["--http-protocols", "h2,h1", "--worker-class", "asgi", ASGI]
        words.remove(WSGI)
    with contextlib.ExitStack() as stack:
        old = strangers(words, stack)
        with Http2(("127.0.0.1", port), context) as load:
            for number in range(2, upgrades + 2):
                old = upgraded(words, old, stack, number)
                load.heard(number)
        assert not load.failures
        assert load.reconnects == 3 * upgrades, "once for each client and upgrade"


def test_http2_under_the_master_fails_nothing(tmp_path: Path) -> None:
    words = [*command("hypercorn", 0, tmp_path, [])[:3], ""]
    with Service(tmp_path, *quick("--ready", "http:/"), command=words) as service:
        with Http2(service.address()) as load:
            for number in (2, 3):
                service.upgrade()
                load.heard(number)
                service.settled(number)
        assert not load.failures
        assert service.stop() == 0


class H2load:
    """h2load, ``REQUESTS`` a round; ``succeeded``: how many answers it got in all. It does not connect again after GOAWAY: it
    gives up what it has not sent yet, and calls that failed."""

    def __init__(self, url: str) -> None:
        self.succeeded = self.rounds = 0
        self._command = [needs("h2load", "nghttp2-client"), "-n", str(REQUESTS), "-c", "4", "-m", "4", url]
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

    def goes_on(self, more: int = REQUESTS) -> None:
        before = self.succeeded
        wait_for(lambda: self.succeeded >= before + more, "answers for h2load")


@often
@pytest.mark.parametrize("name", ["granian", "hypercorn"])
def test_h2load_gets_an_answer_to_every_request_that_reached_a_server(tmp_path: Path, name: str, upgrades: int) -> None:
    files, _ = certificate(tmp_path)
    port = free_port()
    words = command(name, port, tmp_path, files, http2=True)
    with contextlib.ExitStack() as stack:
        everyone = [strangers(words, stack)]
        with H2load(f"https://127.0.0.1:{port}/") as load:
            for number in range(2, upgrades + 2):
                load.goes_on()
                everyone.append(upgraded(words, everyone[-1], stack, number))
            load.goes_on()
        everyone[-1].stop()
        reached = [int(found) for one in everyone for found in re.findall(r"lifespan over, (\d+) requests", one.text())]
        assert len(reached) == upgrades + 1
        assert load.succeeded == sum(reached)


@often
@pytest.mark.parametrize("name", ["granian", "hypercorn"])
def test_h2load_against_a_server_as_it_is_has_no_request_fail(tmp_path: Path, name: str, upgrades: int) -> None:
    """Its rounds are short: each connection ends by itself while its generation drains."""
    with unmodified(name, tmp_path) as service:
        host, port = service.address()
        with H2load(f"http://{host}:{port}/") as load:
            for number in range(2, upgrades + 2):
                load.goes_on()
                service.upgrade()
                service.settled(number)
            load.goes_on()
        assert load.succeeded == REQUESTS * load.rounds
        assert service.stop() == 0


def test_an_http2_connection_that_had_its_requests_goes_away_with_all_its_answers(tmp_path: Path) -> None:
    """hypercorn by itself ends such a connection before it has answered."""
    (tmp_path / "few.py").write_text("keep_alive_max_requests = 20\n")
    port = free_port()
    words = [*command("hypercorn", port, tmp_path, []), "--config", f"file:{tmp_path / 'few.py'}"]
    with contextlib.ExitStack() as stack:
        strangers(words, stack)
        with Http2(("127.0.0.1", port), count=2) as load:
            load.heard(1, 200)
        assert not load.failures
        assert load.reconnects >= 5
