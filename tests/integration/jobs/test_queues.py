"""The workers of celery, rq, arq and dramatiq, unmodified under ``run`` and on a real redis: through upgrades every job is
done exactly once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...conftest import needs
from ..cli import DEADLINE, environment, wait_for
from ..master import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
SECONDS = 0.2

#: Each with two jobs at a time.
WORKERS = {
    "celery": ["sh", "-c", f"exec {BIN}/celery -A on_celery worker --concurrency 2 -n worker$FDHANDOFF_GENERATION@%h"],
    "rq": [str(BIN / "rq"), "worker", "--url", "unix://{redis}"],
    "arq": [str(BIN / "arq"), "on_arq.WorkerSettings"],
    "dramatiq": [str(BIN / "dramatiq"), "on_dramatiq", "--processes", "2", "--threads", "1"],
}
OPTIONS = {"rq": ["--workers", "2"]}
# Long enough for any of them to be there, with two processors that others use too; if not, nothing is lost by it.
RUN = ["--ready", "delay:500ms", "--settle", "0", "--probation", "100ms", "--grace", "60s", "--max-draining", "10"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Path]:
    """The path of its socket."""
    path = tmp_path / "redis.sock"
    process = subprocess.Popen(
        [needs("redis-server"), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(path.exists, "redis")
        yield path
    finally:
        process.terminate()
        process.wait(DEADLINE)


class Queue:
    """Jobs that were sent, and what became of them."""

    def __init__(self, kind: str, folder: Path, redis: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.sent = 0
        self.env = {"REDIS": str(redis), "SPOOL": str(folder), "SECONDS": str(SECONDS)}
        self.command = [word.format(redis=redis) for word in WORKERS[kind]]

    def send(self, count: int) -> None:
        numbers = [str(number) for number in range(self.sent, self.sent + count)]
        script = str(HERE / f"on_{self.kind}.py")
        done = subprocess.run(
            [sys.executable, script, *numbers], env=environment(**self.env), capture_output=True, text=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.sent += count

    def noted(self, file: str) -> Counter[str]:
        path = self.folder / file
        return Counter(path.read_text().split()) if path.exists() else Counter()

    def more_begin(self, count: int = 3) -> None:
        before = self.noted("begun").total()
        wait_for(lambda: self.noted("begun").total() >= before + count, "more jobs to begin")


@pytest.mark.parametrize("kind", WORKERS)
@pytest.mark.parametrize("upgrades", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_every_job_is_done_exactly_once(kind: str, upgrades: int, tmp_path: Path, redis: Path) -> None:
    pytest.importorskip(kind)
    queue = Queue(kind, tmp_path, redis)
    options = [*RUN, *OPTIONS.get(kind, [])]
    for name, value in {**queue.env, "PYTHONPATH": str(HERE)}.items():
        options += ["--env", f"{name}={value}"]
    with Service(tmp_path, *options, command=queue.command, bind="") as service:
        for number in range(1, upgrades + 1):
            queue.send(12)  # more than is done until the next one
            queue.more_begin()
            assert service.upgrade()["result"] == "done"
            assert number + 1 in service.generations()
        wait_for(lambda: queue.noted("done").total() >= queue.sent, f"the last jobs: {service.running.text()[-2000:]}")
        service.settled(upgrades + 1)
        assert service.stop() == 0
        assert "it is killed" not in service.running.text()
    assert queue.noted("begun") == queue.noted("done") == Counter(map(str, range(queue.sent)))
