"""Each step of an upgrade and of a drain is one event, with the fields that are promised."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from fdhandoff import events

from ..cli import Running, environment, free_port, stopping, wait_for
from ..master import Service as Master, quick
from .test_health import Watched

HERE = Path(__file__).parent


def told(running: Running) -> list[dict[str, Any]]:
    """What was told so far, each checked against the contract."""
    found = [json.loads(line) for line in [*running.out, *running.err] if line.startswith('{"schema"')]
    for event in found:
        assert sorted(event) == sorted([*events.COMMON, *events.EVENTS[event["event"]]])
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    """Without sentences; a step by its own name."""
    return [event.get("step") or event["event"] for event in found if event["event"] != "message"]


def test_a_master_tells_each_step_as_a_line_of_json(tmp_path: Path) -> None:
    with Master(tmp_path, *quick("--log-format", "json", "--check", "true")) as service:
        service.upgrade()
        service.settled(2)
        service.release(FAULT="exit3")
        assert service.command()[0] == 1
        service.release()
        assert service.stop() == 0
        running = service.running
        assert all(line.startswith('{"schema":1,') for line in running.err), "nothing but events"
        found = told(running)
        ours = names(found)
        assert ours[0] == "generation.serves"
        begun = ours.index("upgrade.begun")
        steps = ["upgrade.begun", "check", "start", "ready", "switch", "generation.serves", "settle", "probation"]
        assert ours[begun : begun + len(steps)] == steps
        assert ours.count("upgrade.done") == 1
        assert ours.count("generation.ended") == 2, "the replaced one, and the one that failed"
        (failed,) = [event for event in found if event["event"] == "upgrade.failed"]
        assert (failed["from"], failed["to"], failed["result"]) == (2, 3, "failed")
        assert "exited with status 3" in failed["reason"]
        assert ours[-2:] == ["drain.begun", "stop.begun"]


PROGRAM = """
import json, sys
from fdhandoff import Service
def tell(event):
    print(json.dumps(event), flush=True)
    if event["event"] == "drain.begun":
        raise RuntimeError("a function that fails is in nobody's way")
with Service("told", path=sys.argv[1], probation=0.1, on_event=tell) as service:
    service.listen("main", sys.argv[2])
    service.ready()
    service.wait()
    service.drain()
"""


class Told(Running):
    def __init__(self, folder: Path, port: int) -> None:
        words = [sys.executable, "-c", PROGRAM, str(folder / "h.sock"), f"127.0.0.1:{port}"]
        self._start(words, env=environment())


def test_a_service_tells_its_function(tmp_path: Path) -> None:
    port = free_port()
    old = Told(tmp_path, port)
    with stopping(old):
        old.says("generation.serves")
        new = Told(tmp_path, port)
        with stopping(new):
            assert old.ends() == 0
            assert "in nobody's way" in old.text()
            assert names(told(old)) == [
                "generation.serves", "upgrade.begun", "ready", "switch", "probation", "upgrade.done", "drain.begun",
                "drain.ended",
            ]  # fmt: skip
            new.signal(signal.SIGTERM)
            assert new.ends() == 0
            assert names(told(new)) == ["generation.serves", "stop.begun", "drain.begun", "drain.ended"]


def test_a_service_that_keeps_serving_tells_why_its_upgrade_failed(tmp_path: Path) -> None:
    running = Told(tmp_path, free_port())
    with stopping(running):
        running.says("generation.serves")
        assert Watched(tmp_path, 0, health="127.0.0.1:1x").ends() != 0, "it had begun to take over"
        (failed,) = wait_for(lambda: [one for one in told(running) if one["event"] == "upgrade.failed"], "the failure")
        assert failed["result"] == "failed"
        assert failed["reason"]
