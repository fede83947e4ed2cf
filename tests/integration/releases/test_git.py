"""A release from a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fdhandoff.releases import Refused, Settings, SourceError, make

from ...conftest import needs
from .publishers import Git, run

if TYPE_CHECKING:
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
