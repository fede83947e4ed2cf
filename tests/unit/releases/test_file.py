"""What a file or a directory is told apart by."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fdhandoff.releases import Settings, SourceError, file, make, split, tag_of
from fdhandoff.releases.file import FileSource, digest_of, is_written_to

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings(size_max=1 << 20)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "STABLE_SECONDS", 0.05)
    monkeypatch.setattr(file, "PATIENCE_SECONDS", 0.3)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "a").write_text("a")
    (tree / "link").symlink_to("inner/a")
    return tree


def change_nothing(tree: Path) -> None:
    os.utime(tree / "inner" / "a", (1, 1))


def change_content(tree: Path) -> None:
    (tree / "inner" / "a").write_text("b")


def change_mode(tree: Path) -> None:
    (tree / "inner" / "a").chmod(0o700)


def change_name(tree: Path) -> None:
    (tree / "inner" / "a").rename(tree / "inner" / "b")


def change_link(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("inner")


@pytest.mark.parametrize("change", [change_nothing, change_content, change_mode, change_name, change_link])
def test_a_directory_is_another_when_anything_but_a_date_in_it_is(tree: Path, change: object) -> None:
    before = digest_of(tree)
    change(tree)  # type: ignore[operator]
    assert (digest_of(tree) == before) == (change is change_nothing)


def test_what_was_copied_is_what_was_found(tree: Path, tmp_path: Path) -> None:
    source = FileSource(str(tree), SETTINGS)
    found = source.look({})
    into = tmp_path / "into"
    into.mkdir()
    assert digest_of(source.fetch(found, into)) == found.identity
    change_content(tree)
    (tmp_path / "again").mkdir()
    with pytest.raises(SourceError, match="changed while it was copied"):
        source.fetch(found, tmp_path / "again")


def test_what_is_no_file_is_refused(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a directory"):
        FileSource(str(tree), SETTINGS).look({})


def test_a_file_that_somebody_has_open_to_write_in_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "server"
    with path.open("w") as writing:
        writing.write("half")
        writing.flush()
        if not is_written_to(path):
            pytest.skip("this system gives no leases here")
        with pytest.raises(SourceError, match="is still being written"):
            FileSource(str(path), SETTINGS).look({})
    assert not is_written_to(path)
    assert FileSource(str(path), SETTINGS).look({}).tag.startswith("server-")


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "server"
    path.write_bytes(bytes(100))
    with pytest.raises(SourceError, match="has 100 bytes, more than --fetch-max allows"):
        FileSource(str(path), Settings(size_max=99)).look({})


def test_a_source_is_found_by_its_word() -> None:
    assert split("https://host/x") == ("https", "https://host/x")
    assert split("file:/a:b") == ("file", "/a:b")
    with pytest.raises(SourceError, match="there is no source 'nowhere': there are file, symlink, http, https, git"):
        make("nowhere:x", SETTINGS)


def test_a_tag_can_be_a_directory() -> None:
    assert tag_of("../v 1/x") == "v-1-x"
    with pytest.raises(SourceError, match="can't name a release"):
        tag_of("../..")
