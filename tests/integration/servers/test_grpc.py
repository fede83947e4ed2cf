"""grpc.aio with its adapter: clients that follow a GOAWAY lose no call, whoever replaces the server."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ..cli import DEADLINE, Running, environment, free_port, stopping, wait_for
from ..master import Service, quick
from . import Crowd

grpc = pytest.importorskip("grpc", reason="needs grpc: pip install 'fdhandoff[test]'")

PROGRAM = [sys.executable, str(Path(__file__).parent / "on_grpc.py")]


class Server(Running):
    def __init__(self, folder: Path, port: int) -> None:
        self._start([*PROGRAM, str(port), str(folder / "h.sock")], env=environment())


class Calls(Crowd):
    """Clients with a channel each that call without a pause, and repeat no call. ``answers`` by generation, ``failures`` by
    kind. ``fresh``: each call over a channel of its own."""

    def __init__(self, address: tuple[str, int], clients: int = 4, *, fresh: bool = False) -> None:
        super().__init__(clients)
        self._fresh = fresh
        self._target = "{}:{}".format(*address)

    def heard(self, generation: int, more: int = 20) -> None:
        super().heard(generation, more)

    def _run(self) -> None:
        while not self._over.is_set():
            self._call_over_one_channel()

    def _call_over_one_channel(self) -> None:
        with channel(self._target) as one:
            say = one.unary_unary("/Echo/Say")
            while not self._over.is_set():
                try:
                    answer = say(b"x" * 100, timeout=DEADLINE)
                except grpc.RpcError as error:
                    with self._lock:
                        self.failures[f"{error.code()}: {error.details()}"] += 1
                else:
                    with self._lock:
                        self.answers[int(answer.split()[0])] += 1
                if self._fresh:
                    return


def channel(target: str) -> Any:
    # With connections of its own. What gRPC does with a call that had not left when a GOAWAY came is part of following it.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    return grpc.insecure_channel(target, options)


def upgraded(folder: Path, times: int) -> None:
    with Service(folder, *quick("--switch", "kernel", "--grace", "60"), command=[*PROGRAM, "0", ""]) as service:
        with Calls(service.address()) as calls:
            for number in range(2, times + 2):
                assert service.upgrade()["result"] == "done"
                calls.heard(number)
                service.settled(number)
        assert not calls.failures
        assert set(calls.answers) == set(range(1, times + 2))
        print(f"grpc.aio: {times} upgrades, {sum(calls.answers.values())} calls, 0 failed")
        assert service.stop() == 0


def test_no_call_fails_through_upgrades_under_the_master(tmp_path: Path) -> None:
    upgraded(tmp_path, 3)


@pytest.mark.soak
def test_no_call_fails_through_fifty_upgrades_under_the_master(tmp_path: Path) -> None:
    upgraded(tmp_path, 50)


def test_strangers_take_over_and_calls_under_way_end_where_they_are(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        old = Server(tmp_path, port)
        stack.callback(old.stop)
        old.says("generation 1 serves")
        long = stack.enter_context(channel(f"127.0.0.1:{port}"))
        stream = long.unary_stream("/Echo/Count")(b"30", timeout=DEADLINE)
        slow = long.unary_unary("/Echo/Say").future(b"slow2", timeout=DEADLINE)
        assert next(stream) == b"1 0"
        with Calls(("127.0.0.1", port)) as calls:
            new = Server(tmp_path, port)
            stack.callback(new.stop)
            new.says("generation 2 serves")
            calls.heard(2)
            assert [*stream] == [b"1 %d" % number for number in range(1, 30)]
            assert slow.result() == b"1 5"
            assert old.ends() == 0, old.text()
            assert "cut at the deadline" not in old.text()
            assert long.unary_unary("/Echo/Say")(b"again", timeout=DEADLINE) == b"2 5"
        assert not calls.failures
    assert os.listdir(tmp_path) == []


def test_a_stop_lets_a_call_under_way_finish(tmp_path: Path) -> None:
    port = free_port()
    only = Server(tmp_path, port)
    with stopping(only), channel(f"127.0.0.1:{port}") as one:
        only.says("generation 1 serves")
        slow = one.unary_unary("/Echo/Say").future(b"slow1", timeout=DEADLINE)
        assert one.unary_unary("/Echo/Say")(b"here", timeout=DEADLINE) == b"1 4"
        only.stop()
        assert slow.result() == b"1 5"
        assert only.ends() == 0


def test_the_program_on_the_page_is_upgraded(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "servers" / "grpc-aio.md"
    if not page.exists():
        pytest.skip("the documentation is not part of this copy")
    program = tmp_path / "hello.py"
    program.write_text(page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], encoding="utf-8")
    with (
        Service(tmp_path, *quick(), command=[sys.executable, str(program)]) as service,
        channel("{}:{}".format(*service.address())) as one,
    ):
        say = one.unary_unary("/Hello/Say")
        assert say(b"", timeout=DEADLINE) == b"generation 1\n"
        assert service.upgrade()["result"] == "done"
        wait_for(lambda: say(b"", timeout=DEADLINE) == b"generation 2\n", "generation 2")
