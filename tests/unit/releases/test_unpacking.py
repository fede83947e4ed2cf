"""Archives, good and evil."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from fdhandoff.releases import Refused, unpacking
from fdhandoff.releases.unpacking import is_archive, stem, unpack

if TYPE_CHECKING:
    from pathlib import Path

MAX = 1 << 20
REG, LINK, HARD, FIFO, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
DIRECTORY = tarfile.DIRTYPE


def tar(path: Path, *members: tuple[str, bytes, str], data: bytes = b"x", mode: int = 0o644) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, mode
            member.size = len(data) if kind == REG else 0
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("../x", REG, "")], "leads out of the archive"),
        ([("a/../../x", REG, "")], "leads out of the archive"),
        ([("/x", REG, "")], "leads out of the archive"),
        ([("x", DEVICE, "")], "is a device or a pipe"),
        ([("x", FIFO, "")], "is a device or a pipe"),
        ([("x", LINK, "/etc/passwd")], "outside of the archive"),
        ([("y", REG, ""), ("x", LINK, "../../etc/passwd")], "outside of the archive"),
        ([("a/y", REG, ""), ("a/x", LINK, "../y")], "outside of the archive"),
        ([("a", LINK, "."), ("a/x", REG, "")], "goes through a link"),
        ([("d/e/up", LINK, ".."), ("out", LINK, "d/e/up/../../..")], "outside of the archive"),
        ([("x", HARD, "/etc/passwd")], "leads out of the archive"),
        ([("x", HARD, "y")], "no file in the archive"),
        ([("x", REG, ""), ("x", REG, "")], "is there twice"),
        ([("x", LINK, "y"), ("x", REG, "")], "is there twice"),
        ([("x", REG, ""), ("x/y", REG, "")], "is there twice"),
        ([("x", REG, ""), ("x", DIRECTORY, "")], "is there twice"),
        ([("d/" * 101 + "x", REG, "")], "goes deeper than 100 directories"),
    ],
)
def test_what_would_leave_its_directory_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes, str]], sentence: str
) -> None:
    archive = tar(tmp_path / "x.tar.gz", *members)
    (tmp_path / "inner").mkdir()
    with pytest.raises(Refused, match=sentence):
        unpack(archive, tmp_path / "inner" / "into", MAX)
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar.gz", "inner"}


def test_a_directory_outside_keeps_its_permissions_though_a_link_leads_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o750)
    archive = tar(tmp_path / "x.tar", ("a", LINK, "../outside"), ("a", DIRECTORY, ""), mode=0o700)
    with pytest.raises(Refused, match="'a' is there twice"):
        unpack(archive, tmp_path / "into", MAX)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o750


def test_a_bomb_is_given_up_in_time(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar.gz", ("x", REG, ""), data=bytes(10 * MAX))
    with pytest.raises(Refused, match="more than the 1048576 bytes"):
        unpack(archive, tmp_path / "into", MAX)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x", bytes(10 * MAX))
    with pytest.raises(Refused, match="more than the 1048576 bytes"):
        unpack(tmp_path / "x.zip", tmp_path / "zip", MAX)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MEMBERS_MAX", 3)
    archive = tar(tmp_path / "x.tar", *((str(number), REG, "") for number in range(4)))
    with pytest.raises(Refused, match="more than 3 members"):
        unpack(archive, tmp_path / "into", MAX)
    archive = tar(tmp_path / "x.tar", ("a/b/c/x", REG, ""))
    with pytest.raises(Refused, match="more than 3 members and directories"):
        unpack(archive, tmp_path / "directories", MAX)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar", "x.zip", "x.tar.xz"])
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8bnonsense" * 100)
    with pytest.raises(Refused, match="can't be read"):
        unpack(tmp_path / name, tmp_path / "into", MAX)


def test_half_an_archive_is_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar.gz", ("x", REG, ""), data=os.urandom(100_000))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(Refused, match="can't be read"):
        unpack(archive, tmp_path / "into", MAX)


def test_links_inside_and_permissions_are_kept_and_set_id_bits_are_not(tmp_path: Path) -> None:
    archive = tar(
        tmp_path / "x.tgz", ("app/bin/x", REG, ""), ("app/y", LINK, "bin/x"), ("app/z", HARD, "app/bin/x"), mode=0o6777
    )
    into = tmp_path / "into"
    unpack(archive, into, MAX)
    assert sorted(path.name for path in into.iterdir()) == ["bin", "y", "z"], "one directory is that directory"
    assert stat.S_IMODE((into / "bin" / "x").stat().st_mode) == 0o755
    assert ((into / "y").read_bytes(), os.readlink(into / "y")) == (b"x", "bin/x")


def evil_zip(path: Path, name: str, kind: int) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        member = zipfile.ZipInfo(name)
        member.external_attr = (kind | 0o644) << 16
        packed.writestr(member, "/etc/passwd")
    return path


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("../x", stat.S_IFREG, "leads out"),
        ("/x", stat.S_IFREG, "leads out"),
        ("x", stat.S_IFCHR, "is a device"),
        ("x", stat.S_IFLNK, "outside of the archive"),
    ],
)
def test_a_zip_is_looked_at_in_the_same_way(tmp_path: Path, name: str, kind: int, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        unpack(evil_zip(tmp_path / "x.zip", name, kind), tmp_path / "into", MAX)


def test_a_zip_keeps_what_is_executable(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        member = zipfile.ZipInfo("bin/x")
        member.external_attr = (stat.S_IFREG | 0o755) << 16
        packed.writestr(member, "x")
        packed.writestr("y", "y")
    unpack(tmp_path / "x.zip", tmp_path / "into", MAX)
    assert os.access(tmp_path / "into" / "bin" / "x", os.X_OK)
    assert (tmp_path / "into" / "y").read_text() == "y"


def test_a_name_says_what_is_an_archive() -> None:
    assert is_archive("app-1.2.tar.gz")
    assert not is_archive("app.pyz")
    assert (stem("app-1.2.tar.gz"), stem("app.pyz")) == ("app-1.2", "app")
