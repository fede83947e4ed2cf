"""Every verb of an operator, asked of a program that lives by ``Service``, in each of the ways to name it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ..services import App
from . import verb, wait_for
from .schema import check

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


class Named:
    """An app, and the words that mean it: ``way`` is ``path``, ``pid`` or ``name``."""

    def __init__(self, app: App, way: str) -> None:
        self.app = app
        self._way = way

    def ask(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        target = {
            "path": ["--path", str(self.app.path)],
            "pid": ["--pid", str(self.app.pid())],
            "name": ["--name", self.app.directory.name],
        }[self._way]
        return verb(name, *target, *words, env={"FDHANDOFF_RUNTIME_DIR": str(self.app.directory.parent)})

    def status(self) -> dict[str, Any]:
        done = self.ask("status", "--json")
        assert done.returncode == 0, done.stderr
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts


@pytest.fixture(params=["path", "pid", "name"])
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Named]:
    directory = tmp_path / "app"
    directory.mkdir(mode=0o700)
    with App(directory) as app:
        app.start()
        yield Named(app, request.param)


def test_it_tells_its_status_and_is_upgraded(named: Named) -> None:
    facts = named.status()
    check("Service", facts)
    assert (facts["state"], facts["generation"], facts["pid"]) == ("serving", 1, named.app.pid())
    done = named.ask("upgrade")
    assert (done.returncode, "generation 2" in done.stdout) == (0, True), done.stderr
    facts = named.status()
    check("Service", facts)
    assert (facts["generation"], facts["pid"]) == (2, named.app.pid())
    assert facts["listeners"][0]["name"] == "main"


def test_an_upgrade_is_waited_for_until_it_serves_or_not_at_all(named: Named) -> None:
    named.app.deploy(probation=60)
    assert named.ask("upgrade").returncode == 0  # in the probation of the one that gives, which is short
    done = named.ask("upgrade", "--wait", "served")
    assert (done.returncode, "generation 3 serves" in done.stdout) == (0, True), done.stderr
    assert named.status()["generation"] == 3
    done = named.ask("rollback")
    assert done.returncode == 0, "\n".join(named.app.lines)
    wait_for(lambda: named.status()["state"] == "serving")
    done = named.ask("upgrade", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "upgrade from generation 2 to 3 has begun\n"), done.stderr
    wait_for(lambda: named.app.generation() == 3, "the third generation")


def test_it_is_rolled_back_in_probation_and_not_without_one(named: Named) -> None:
    named.app.deploy(probation=60)
    done = named.ask("rollback")
    assert (done.returncode, done.stderr.count("\n"), "in no probation" in done.stderr) == (1, 1, True), done.stderr
    assert named.ask("upgrade").returncode == 0
    second = named.app.pid()
    assert named.ask("upgrade", "--wait", "served").returncode == 0
    assert named.app.pid() != second
    done = named.ask("rollback")
    assert (done.returncode, done.stdout) == (0, "rolled back: generation 2 serves\n"), done.stderr
    wait_for(lambda: named.app.pid() == second, "the second generation again")
    wait_for(lambda: (named.status()["last_upgrade"] or {}).get("result") == "rolled back", "the outcome")
    assert named.status()["state"] == "serving"


@pytest.mark.parametrize("name", ["drain", "stop"])
def test_it_ends(named: Named, name: str) -> None:
    done = named.ask(name, "--wait")
    assert done.returncode == 0, done.stderr
    assert not named.app.path.exists()
    done = verb("status", str(named.app.path))
    assert done.returncode == 4


def test_a_drain_that_lasts_is_hurried(named: Named) -> None:
    with named.app.connect() as late:
        late.sendall(b"half a question")
        wait_for(lambda: named.status()["generations"][0]["active"] >= 1, "the connection")
        assert named.ask("drain").returncode == 0
        done = verb("hurry", "--path", str(named.app.path))
        assert done.returncode == 0, done.stderr
        named.app.gone(20)
    assert not named.app.path.exists()
