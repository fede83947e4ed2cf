"""What a service counts: through upgrades, kills and a rollback totals only grow, and agree with what the clients saw."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
from pathlib import Path

import pytest

from fdhandoff import Service, metrics

from ..cli import free_port, stopping, verb, wait_for
from ..master import Load, Service as Master, kill, quick, request
from .test_health import Watched

HERE = Path(__file__).parent


def read(path: Path) -> dict[str, float]:
    """By the verb; of one service, so the labels are left out, and what has several values is added up."""
    done = verb("metrics", "--path", str(path))
    assert done.returncode == 0, done.stderr
    return values(done.stdout)


def values(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name = line.partition("{")[0].removeprefix("fdhandoff_")
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def never_less(before: dict[str, float], after: dict[str, float]) -> None:
    totals = [name for name in before if name.endswith("_total")]
    assert [name for name in totals if after[name] < before[name]] == []


def hold(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
    return sock


def test_totals_only_grow_through_handovers_and_a_kill_and_are_what_the_clients_saw(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "h.sock"
    address = ("127.0.0.1", port)
    with contextlib.ExitStack() as stack:
        first = Watched(tmp_path, port, probation=0.1)
        stack.callback(first.stop)
        first.serves(1)
        for _ in range(7):
            request(address)
        held = stack.enter_context(contextlib.closing(hold(port)))
        wait_for(lambda: read(path)["accepted_total"] == 8, "eight to be counted")
        second = Watched(tmp_path, port, probation=0.1)
        stack.callback(second.stop)
        second.serves(2)
        request(address)
        wait_for(lambda: read(path)["accepted_total"] == 9, "those of both generations")
        assert (read(path)["active"], read(path)["upgrades_total"]) == (1, 1)
        first.says("handed over")
        kill(first.pid)
        first.ends()
        wait_for(lambda: read(path)["active"] == 0, "the killed one's connection to be counted out")
        held.close()
        now = read(path)
        assert (now["accepted_total"], now["finished_total"], now["forced_total"]) == (9, 8, 1)
        third = Watched(tmp_path, port, probation=0.1)
        stack.callback(third.stop)
        third.serves(3)
        assert second.ends() == 0
        never_less(now, read(path))
        assert read(path)["accepted_total"] == 9, "what is over is one sum, which goes on"


def test_what_a_generation_counted_that_was_rolled_back_still_counts(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "h.sock"
    old = Watched(tmp_path, port, probation=60)
    with stopping(old):
        old.serves(1)
        request(("127.0.0.1", port))
        new = Watched(tmp_path, port, probation=60)
        with stopping(new):
            new.serves(2)
            for _ in range(5):
                assert request(("127.0.0.1", port))[1] == 2
            wait_for(lambda: read(path)["finished_total"] == 6, "both generations'")
            before = read(path)
            kill(new.pid)
            old.says("failed")
            wait_for(lambda: read(path)["generation"] == 1, "the old one to answer")
            never_less(before, read(path))
            assert read(path)["accepted_total"] == 6
            assert read(path)["upgrades_failed_total"] == 1


def test_a_master_knows_what_its_generations_count_however_they_end(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "watched.py"), "0", "", "{}"]
    options = quick("--health", f"127.0.0.1:{(health := free_port())}")
    with Master(tmp_path, *options, bind="main=127.0.0.1:0", command=command) as service:
        address = service.address()
        with Load(address, clients=2) as load:
            for number in (2, 3):
                service.upgrade()
                load.heard(number)
        assert not load.failures
        seen = len(load.answers)
        wait_for(lambda: read(service.path)["finished_total"] >= seen, "all of them to be counted")
        before = read(service.path)
        (pid,) = service.generations()[3]["pids"]
        held = hold(address[1])
        wait_for(lambda: read(service.path)["active"] == 1, "it to be inside")
        kill(pid)
        held.close()
        wait_for(lambda: read(service.path)["forced_total"] == 1, "the killed one's to be counted out")
        service.serves()
        never_less(before, read(service.path))
        assert verb("upgrade", str(service.path), "--master").returncode == 0
        never_less(before, read(service.path))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", health, timeout=20)) as client:
            client.request("GET", "/metrics")
            answer = client.getresponse()
            assert answer.getheader("Content-Type") == metrics.CONTENT_TYPE
            never_less(before, values(answer.read().decode()))


def test_a_program_that_does_not_count_has_no_totals_but_the_rest(tmp_path: Path) -> None:
    with Master(tmp_path, *quick()) as service:
        service.upgrade()
        found = read(service.path)
        assert "accepted_total" not in found
        assert (found["generation"], found["upgrades_total"], found["ready"]) == (2, 1, 1)


def test_an_application_s_own_endpoint_shows_the_same(tmp_path: Path) -> None:
    client = pytest.importorskip("prometheus_client", reason="needs prometheus_client: pip install 'fdhandoff[test]'")
    pytest.importorskip("prometheus_client.parser")
    with Service("own", path=tmp_path / "h.sock", signals={}, log=lambda _: None) as service:
        service.listen("main", "127.0.0.1:0")
        service.ready()
        with service.gate:
            registry = client.CollectorRegistry()
            metrics.register(service, registry)
            theirs = client.generate_latest(registry).decode()
            ours = metrics.exposition(service.status())
    read = client.parser.text_string_to_metric_families
    assert {family.name: family for family in read(ours)} == {family.name: family for family in read(theirs)}
    assert 'fdhandoff_active{service="own"} 1.0' in ours


def test_what_is_missing_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'fdhandoff\[metrics\]'"):
        metrics.register(object())  # type: ignore[arg-type]


def test_what_is_special_in_a_label_is_escaped() -> None:
    text = metrics.exposition({"service": 'a"b\\c\nd', "generation": 1})
    assert text.splitlines()[-1] == 'fdhandoff_generation{service="a\\"b\\\\c\\nd"} 1.0'


def test_listeners_of_one_address_are_one() -> None:
    """As several sockets with SO_REUSEPORT are; the same sample twice would make the whole answer invalid."""
    one = {"name": "http", "address": "127.0.0.1:8000", "queue": 2, "backlog": 128}
    text = metrics.exposition({"service": "web", "listeners": [one, one, {**one, "name": "other", "queue": None}]})
    assert [line for line in text.splitlines() if line.startswith("fdhandoff_listener_queue{")] == [
        'fdhandoff_listener_queue{address="127.0.0.1:8000",listener="http",service="web"} 4.0'
    ]
