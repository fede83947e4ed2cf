"""``deploy`` of a service that is found by its path, and what a release is called."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ..master import Load, Service, quick, rude
from . import verb, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def answer(*words: str, code: int = 0) -> dict[str, Any]:
    done = verb("deploy", "--json", *words)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_a_service_is_upgraded_by_its_path(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service, Load(service.address()) as load:
        done = answer("--path", str(service.path), "--release", "v2")
        assert (done["result"], done["generation"], done["release"], done["pid"]) == ("upgraded", 2, "v2", service.pid)
        load.heard(2)
        assert answer("--path", str(service.path), "--release", "v2")["result"] == "unchanged"
        load.end()
        assert not load.failures
        assert [path.name for path in tmp_path.glob("*.deploy")] == []


def test_where_nobody_serves_it_says_so(tmp_path: Path) -> None:
    facts = answer("--path", str(tmp_path / "none.sock"), code=4)
    assert (facts["serving"], "nobody answers" in facts["error"]) == ("nobody", True)
    done = verb("deploy", "--path", str(tmp_path / "none" / "none.sock"))
    assert (done.returncode, "its directory does not exist" in done.stderr) == (4, True)


def test_run_names_its_releases_by_itself(tmp_path: Path) -> None:
    """``--release link:…`` is looked up for each generation: also one that a signal asked for."""
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "releases" / "1")
    with Service(tmp_path, *quick("--release", f"link:{current}")) as service:
        assert service.generations()[1]["release"] == "1"
        current.unlink()
        current.symlink_to("releases/2/")
        assert service.upgrade()["release"] == "2"
        assert service.generations()[2]["release"] == "2"
        assert service.upgrade(release="said")["release"] == "said"
        current.unlink()
        code, _, said = service.command()
        assert (code, "which is no symbolic link" in said) == (1, True)
        assert set(service.generations()) >= {3}
        code, out, _ = service.command("--dry-run")
        assert code == 1, out


# --- and started where nothing runs -------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A handoff path; what serves there is ended after the test."""
    path = tmp_path / "web.sock"
    yield path
    verb("stop", str(path), "--wait")


def words(path: Path, *more: str, command: list[str] | None = None) -> list[str]:
    folder = path.parent
    env = folder / "release.env"
    if not env.exists():
        env.write_text("RELEASE=one\n")
    said = ["--log", str(folder / "log"), "--bind", "http=127.0.0.1:0", "--env-file", str(env), *quick()]
    return ["--path", str(path), *said, *more, "--", *(command or rude())]


def test_what_does_not_run_is_started_in_the_background_and_upgraded_from_then_on(place: Path) -> None:
    first = answer(*words(place, "--release", "v1"))
    assert (first["result"], first["generation"], first["release"]) == ("started", 1, "v1")
    second = answer(*words(place, "--release", "v2"))
    assert (second["result"], second["generation"], second["release"]) == ("upgraded", 2, "v2")
    assert second["pid"] == first["pid"]
    assert answer(*words(place, "--release", "v2"))["result"] == "unchanged"
    assert answer("--path", str(place), "--release", "v3")["result"] == "upgraded"
    assert verb("stop", str(place), "--wait").returncode == 0
    assert [path.name for path in place.parent.glob("web.sock*")] == []


def test_another_command_than_the_one_that_runs_is_refused(place: Path) -> None:
    answer(*words(place))
    done = verb("deploy", *words(place, command=[*rude(), "other"]))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "an upgrade starts that again" in done.stderr
    assert json.loads(verb("status", str(place), "--json").stdout)["generation"] == 1


def test_a_start_that_fails_says_why_in_one_sentence(place: Path) -> None:
    for command, reason in (
        (["/none/at/all"], "/none/at/all"),
        ([sys.executable, "-c", "import sys; sys.exit(3)"], "exited with status 3"),
    ):
        done = verb("deploy", *words(place, command=command))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1), done.stderr
        assert f"the service at {place} could not be started: " in done.stderr
        assert reason in done.stderr
    done = verb("deploy", "--path", str(place), "--bind", "http=127.0.0.1:0", "--", "true")
    assert (done.returncode, "--log FILE" in done.stderr) == (2, True), "what run --daemon wants is asked for here"


def test_a_start_that_takes_too_long_is_given_up(place: Path) -> None:
    done = verb("deploy", *words(place, "--timeout", "2s", command=["sleep", "1000"]))
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
    assert "was not ready within 2s: its start was given up" in done.stderr
    wait_for(lambda: verb("status", str(place)).returncode == 4, "the end of what was begun")


@pytest.mark.parametrize("wrong", ["", "link:", "two\nlines", "x" * 201, "\x1b[2J"])
def test_what_can_not_name_a_release_is_refused_everywhere(tmp_path: Path, wrong: str) -> None:
    for words in (
        ["deploy", "--name", "x", f"--release={wrong}"],
        ["upgrade", "--name", "x", f"--release={wrong}"],
        ["run", "--path", str(tmp_path / "x.sock"), f"--release={wrong}", "--", "true"],
    ):
        done = verb(*words)
        assert (done.returncode, "can't name a release" in done.stderr) == (2, True), done.stderr
    with Service(tmp_path, *quick()) as service:
        if wrong:
            with pytest.raises(Exception, match="can't name a release"):
                service.upgrade(release=wrong)
        assert set(service.generations()) == {1}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "one of the arguments --supervisord --systemd --path --name is required"),
        (["--path", "x", "--name", "y"], "not allowed with"),
        (["--name", "x", "--user-manager"], "belongs to --systemd"),
        (["--name", "x", "--supervisord-conf", "y"], "belongs to --supervisord"),
        (["--name", "x", "--release", "a", "--release", "b"], "say one --release"),
        (["--name", "x", "--release", "a", "--release", "hash:b"], "say one --release"),
        (["--name", "x", "--release", "hash:"], "names no file"),
        (["--name", "x", "--release", "hash:/none"], "is to be read from /none: No such file"),
        (["--name", "x", "--release", "link:/none"], "which is no symbolic link"),
        (["--name", ""], "can't name a service"),
        (["--name", "x", "--bind", ":80"], "say what is to be started with these options"),
        (["--systemd", "x", "--bind", ":80"], "is for the service manager to say"),
        (["--supervisord", "x", "--", "prog"], "is for the service manager to say"),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], reason: str) -> None:
    done = verb("deploy", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert reason in done.stderr
