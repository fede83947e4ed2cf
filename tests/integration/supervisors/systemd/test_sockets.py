"""Socket activation: systemd binds, by the page's socket unit, and the master takes what it is passed."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from ...cli import wait_for
from . import QUICK, Bed, Load, Question, units

if TYPE_CHECKING:
    from .conftest import Boot

WEB = ("127.0.0.1", 8000)
PATH = "/run/web/handoff.sock"


#: It shares its queue well: it waits before it accepts, finishes what it has when it is told to end, and accepts nothing then.
POLITE = """
import os, select, signal, socket
listener = socket.socket(fileno=3)
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(True))
body = f" {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
while not over:
    if not select.select([listener], [], [], 0.05)[0] or over:
        continue
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        continue
    with connection:
        connection.settimeout(10)
        if connection.recv(4096):
            head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body)
            connection.sendall(head + body)
"""


def start(bed: Bed, *, user: str = "", ready: str = "http:/healthz", quick: str = QUICK) -> None:
    """The generator's two units; its socket unit is the page's. ``user``: ``User=`` in a drop-in."""
    bed.program("web/current/bin/server")
    bed.cli(
        "unit", "systemd", "--socket", "--program", "/usr/local/bin/fdhandoff-cli", "--name", "web",
        "--bind", "http=127.0.0.1:8000", "--ready", ready, *quick.split(),
        "--output", "/etc/systemd/system", "--", "/srv/web/current/bin/server",
    )  # fmt: skip
    socket = bed.inside("cat", "/etc/systemd/system/web.socket").stdout
    assert socket == f"# /etc/systemd/system/web.socket\n{units()['/etc/systemd/system/web.socket']}"
    if user:
        bed.unit("web.service.d/user.conf", f"[Service]\nUser={user}\n")
    bed.reload()
    bed.systemctl("start", "web.socket")


def started(bed: Bed) -> None:
    """systemd makes one of a start under way and a reload: it starts."""
    wait_for(lambda: bed.show("web", "ActiveState") == "active", "the end of the start")


def listener(bed: Bed, *options: str) -> dict[str, Any]:
    facts = json.loads(bed.cli("status", "--json", "--path", PATH, *options).stdout)
    return dict(facts["listeners"][0])


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_the_first_connection_starts_it_and_upgrades_under_load_lose_nothing(boot: Boot, version: int) -> None:
    bed = boot(version)
    start(bed)
    assert bed.show("web", "ActiveState") == "inactive"
    with Load(bed, WEB) as load:
        started(bed)
        pid = bed.main_pid("web")
        facts = listener(bed)
        assert (facts["name"], facts["origin"], facts["switch"]) == ("http", "inherited", "kernel")
        for number in range(2, 5):
            bed.systemctl("reload", "web")
            load.heard(number)
    assert not load.failures
    assert bed.main_pid("web") == pid
    assert bed.show("web", "NRestarts") == "0"
    bed.systemctl("stop", "web.socket", "web.service")
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""


def test_another_user_than_the_one_who_bound_shares_the_queue(bed: Bed) -> None:
    start(bed, user="www-data", ready="accept")
    bed.program("web/current/bin/server", POLITE)
    with Load(bed, WEB) as load:
        facts = listener(bed, "--allow-uid", "www-data")
        assert (facts["origin"], facts["switch"]) == ("inherited", "shared")
        assert "one queue for all generations" in bed.log("web")
        started(bed)
        for number in (2, 3):
            bed.systemctl("reload", "web")
            load.heard(number)
    assert not load.failures


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_what_is_queued_over_a_restart_is_served(boot: Boot, version: int) -> None:
    bed = boot(version)
    start(bed)
    with Load(bed, WEB) as load:
        started(bed)
        bed.systemctl("reload", "web")
        load.heard(2)
    assert not load.failures
    bed.systemctl("stop", "web.service")
    # Nobody is there, and the socket unit starts nobody yet.
    bed.unit(
        "web.service.d/slow.conf", "[Service]\nExecStartPre=/bin/sh -c 'until test -e /srv/go; do sleep 0.05; done'\n"
    )
    bed.reload()
    clients = [Question(bed, WEB) for _ in range(8)]
    wait_for(lambda: bed.show("web", "SubState") == "start-pre", "the start")
    wait_for(lambda: _waiting(bed) == 8, f"8 in the queue, not {_waiting(bed)}")
    (bed.shared / "go").touch()
    assert {client.answer()[1] for client in clients} == {1}


def test_connections_during_a_restart_under_load_lose_nothing(bed: Bed) -> None:
    start(bed)
    with Load(bed, WEB) as load:
        for number in (2, 2):
            started(bed)
            bed.systemctl("reload", "web")
            load.heard(number)
            bed.systemctl("restart", "web")
            since = time.monotonic()
            wait_for(lambda since=since: load.generations(since)[1] > 20, "answers after the restart")
    assert not load.failures


def test_everything_dies_and_what_waits_in_any_queue_is_served(bed: Bed) -> None:
    start(bed)
    assert bed.request(WEB)[1] == 1
    started(bed)
    bed.systemctl("reload", "web")
    (_, number, server) = bed.request(WEB)
    assert number == 2
    bed.freeze(server)
    clients = [Question(bed, WEB) for _ in range(8)]
    wait_for(lambda: _waiting(bed) == 8, f"8 in the queue, not {_waiting(bed)}")
    bed.systemctl("kill", "-s", "KILL", "web")
    assert {client.answer()[1] for client in clients} == {1}
    with Load(bed, WEB) as load:
        started(bed)
        bed.systemctl("reload", "web")
        load.heard(2)
    assert not load.failures


def _waiting(bed: Bed) -> int:
    rows = bed.inside("ss", "-Hltn", "sport = :8000").stdout.splitlines()
    return sum(int(row.split()[1]) for row in rows)
