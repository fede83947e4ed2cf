"""``deploy`` of a service that is found by its path, and what a release is called."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ..master import Load, Service, quick
from . import verb

if TYPE_CHECKING:
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
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], reason: str) -> None:
    done = verb("deploy", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert reason in done.stderr
