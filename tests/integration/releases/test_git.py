"""A release from a repository."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fdhandoff.releases import Refused, Settings, SourceError, make

from ...conftest import needs
from .gits import SERVERS
from .publishers import Git, SignedGit, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def repository(tmp_path: Path) -> Git:
    one = Git(tmp_path)
    one.publish("one")
    return one


def test_a_branch_a_tag_and_the_head_lead_to_their_commit(repository: Git, tmp_path: Path) -> None:
    settings = Settings(size_max=1 << 20)
    repository.git("tag", "-a", "v1", "-m", "v1")
    first = make(repository.source, settings).look({})
    repository.publish("two")
    assert make(f"git:{repository.folder}#v1", settings).look({}).identity == first.identity
    head = make(f"git:{repository.folder}", settings).look({})
    assert head.identity == make(repository.source, settings).look({}).identity != first.identity
    release = make(f"git:{repository.folder}#v1", settings).fetch(
        make(f"git:{repository.folder}#v1", settings).look({}), tmp_path
    )
    assert "'one'" in (release / "server.py").read_text()
    assert [path.name for path in release.iterdir()] == ["server.py"]


def test_what_is_not_there_is_said(repository: Git, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no branch or tag 'other'"):
        make(f"git:{repository.folder}#other", Settings(size_max=1 << 20)).look({})
    with pytest.raises(SourceError, match="git: "):
        make(f"git:{tmp_path}/nowhere", Settings(size_max=1 << 20)).look({})
    with pytest.raises(SourceError, match="a password in a URL"):
        make("git:https://me:secret@host/x", Settings(size_max=1))


def test_a_commit_that_is_too_large_is_refused(repository: Git, tmp_path: Path) -> None:
    source = make(repository.source, Settings(size_max=100))
    with pytest.raises(Refused, match="more than --fetch-max allows"):
        source.fetch(source.look({}), tmp_path)


def test_what_comes_is_given_up_when_it_is_too_large(repository: Git, tmp_path: Path) -> None:
    (repository.folder / "large").write_bytes(os.urandom(3 << 20))
    repository.git("add", "large")
    repository.publish("two")
    source = make(repository.source, Settings(size_max=1 << 20))
    with pytest.raises(Refused, match="sends more than --fetch-max allows"):
        source.fetch(source.look({}), tmp_path)


def test_submodules_are_not_followed_and_that_is_said(repository: Git, tmp_path: Path) -> None:
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendored/x")
    repository.publish("two")
    said: list[str] = []
    source = make(repository.source, Settings(size_max=1 << 20, say=said.append))
    release = source.fetch(source.look({}), tmp_path)
    assert "'two'" in (release / "server.py").read_text()
    assert len(said) == 1
    assert said[0].endswith("are not followed, and are empty: vendored/x")


@pytest.fixture(params=sorted(SERVERS))
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SignedGit]:
    one = SignedGit(tmp_path, request.param)
    one.publish("one")
    yield one
    one.close()


def fetched(source: str, verify: str, into: Path) -> tuple[str, Path]:
    """Its identity, and where it is."""
    one = make(source, Settings(size_max=1 << 20, verify=verify))
    found = one.look({})
    into.mkdir()
    return found.identity, one.fetch(found, into)


def test_one_commit_comes_from_elsewhere_and_a_branch_may_be_pushed_by_force(
    elsewhere: SignedGit, tmp_path: Path
) -> None:
    verify = elsewhere.options[1]
    elsewhere.publish("two")
    second, release = fetched(elsewhere.source, verify, tmp_path / "second")
    assert "'two'" in (release / "server.py").read_text()
    assert (tmp_path / "second" / "repository" / "shallow").read_text().split() == [second], "its parent did not come"
    elsewhere.git("reset", "--quiet", "--hard", "HEAD~1")
    elsewhere.publish("three")
    third, release = fetched(elsewhere.source, verify, tmp_path / "third")
    assert third != second
    assert "'three'" in (release / "server.py").read_text()


def test_what_nobody_signed_does_not_come_from_elsewhere(elsewhere: SignedGit, tmp_path: Path) -> None:
    elsewhere.publish("two", "", "-c", "commit.gpgSign=false")
    with pytest.raises(Refused, match="is not signed by anybody in"):
        fetched(elsewhere.source, elsewhere.options[1], tmp_path / "into")
    assert make(elsewhere.source, Settings(size_max=1)).remote, "so that it must be verified, or that be waived"


def test_a_branch_or_a_repository_that_was_deleted_elsewhere_is_said(elsewhere: SignedGit) -> None:
    settings = Settings(size_max=1 << 20, verify=elsewhere.options[1])
    elsewhere.git("branch", "--quiet", "--move", "other")
    with pytest.raises(SourceError, match="has no branch or tag 'main'"):
        make(elsewhere.source, settings).look({})
    with pytest.raises(SourceError, match="git: "):
        make(f"git:{elsewhere.url}-that-is-not-there", settings).look({})


def test_only_a_commit_that_the_right_people_signed_is_taken(repository: Git, tmp_path: Path) -> None:
    needs("ssh-keygen", "openssh-client")
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    signers = tmp_path / "signers"
    signers.write_text(f"somebody@example {(tmp_path / 'key.pub').read_text()}")
    source = make(repository.source, Settings(size_max=1 << 20, verify=f"signers:{signers}"))
    (tmp_path / "unsigned").mkdir()
    with pytest.raises(Refused, match="is not signed by anybody in"):
        source.fetch(source.look({}), tmp_path / "unsigned")
    repository.publish("two", "", "-c", "gpg.format=ssh", "-c", f"user.signingKey={key}", "-c", "commit.gpgSign=true")
    (tmp_path / "signed").mkdir()
    assert "'two'" in (source.fetch(source.look({}), tmp_path / "signed") / "server.py").read_text()
    signers.write_text(
        "somebody@example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0000000000000000000000000000000000000000000\n"
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(Refused, match="is not signed by anybody in"):
        source.fetch(source.look({}), tmp_path / "other")
