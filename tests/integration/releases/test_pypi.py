"""A release from a package index: which version is taken, what an index can get wrong, and what is left of one that fails."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.releases import Broken, Refused, Settings, SourceError, http, make, pypi
from fdhandoff.system.environment import WATCH_AUTHORIZATION

from ...conftest import needs_that
from ..cli import wait_for
from . import Watched
from .index import JSON, Index, wheel
from .publishers import Pypi
from .signing import ISSUER, Sigstore
from .web import Web

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdhandoff.releases import Found

SECRET = "pypi-verysecret"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    one = Index()
    yield one
    one.close()


def source(index: Index, what: str = "web", verify: str = "checksum", size_max: int = 1 << 24) -> Any:
    settings = Settings(size_max=size_max, verify=verify, say=lambda _: None)
    return make(f"pypi:{what}?index={index.simple}", settings)


def newest(index: Index, what: str = "web") -> str:
    found: Found = source(index, what).look({})
    return found.tag


def fetched(index: Index, folder: Path, what: str = "web", verify: str = "checksum", size_max: int = 1 << 24) -> Path:
    one = source(index, what, verify, size_max)
    folder.mkdir()
    place: Path = one.fetch(one.look({}), folder)
    return place


@pytest.mark.parametrize("speaks_json", [True, False])
def test_the_newest_version_that_fits_is_taken(index: Index, speaks_json: bool) -> None:
    index.json = speaks_json
    with pytest.raises(SourceError, match=r"/web/ can't be had: it answered 404"):
        newest(index)
    for version in ("1.9", "1.10", "2.0rc1"):
        index.wheel("web", version)
    index.wheel("web", "1.11", {"yanked": "a mistake"})
    index.wheel("web", "1.12", {"requires-python": ">=4"})
    index.add("web-1.13.zip.sig", b"not a release")
    index.add("web-1.14-1/../x-py3-none-any.whl", b"out of the directory")
    assert newest(index) == "1.10"
    assert newest(index, "web<1.10") == "1.9"
    assert newest(index, "Web>=2.0rc0") == "2.0rc1"
    with pytest.raises(SourceError, match="has no version of web for this Python that fits: >=3"):
        newest(index, "web>=3")


def test_what_has_not_changed_is_the_same(index: Index) -> None:
    index.wheel("web", "1.0")
    one = source(index)
    first = one.look({})
    assert one.look(first.state) == first
    assert index.asked[-1][2] == 304
    index.wheel("web", "0.9")
    assert one.look(first.state).identity == first.identity, "an older one does not matter"
    index.pages["web"].clear()
    index.wheel("web", "1.0", needs=["other"])
    assert one.look(first.state).identity != first.identity


def test_a_version_without_a_wheel_that_fits_is_broken_until_there_is_one(index: Index, tmp_path: Path) -> None:
    index.wheel("web", "1.0")
    index.add("web-2.0.tar.gz", b"")
    index.add("web-2.0-cp27-cp27m-win32.whl", b"")
    broken = source(index).look({})
    with pytest.raises(Broken, match=r"web 2.0 has no wheel that fits this machine: there are web-2.0-cp27"):
        fetched(index, tmp_path / "into")
    index.wheel("web", "2.0")
    assert source(index).look({}).identity != broken.identity
    assert fetched(index, tmp_path / "again").is_dir()


def test_it_is_installed_with_what_it_needs(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    index.wheel("greeting", "1.0", {"yanked": "a mistake"})
    index.wheel("greeting", "2.0")
    index.wheel("extra", "1.0")
    index.wheel("web", "1.0", needs=["greeting==1.0", "extra; extra == 'more'"])
    one = source(index, "web[more]")
    found = one.look({})
    place = one.fetch(found, tmp_path)
    one.settle(found, place)
    code = "import web, greeting, extra, sys; print(greeting.VERSION, sys.prefix, sep='\\n')"
    told = subprocess.run([place / "bin" / "python", "-I", "-c", code], capture_output=True, text=True)
    assert told.stdout.splitlines() == ["1.0", str(place)], told.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment", "log"]
    assert not (place / ".making").exists()


@pytest.mark.parametrize(
    ("whose", "what"), [("web", "other"), ("web", "none"), ("web", "weak"), ("greeting", "other"), ("greeting", "none")]
)
def test_what_the_index_does_not_vouch_for_is_refused(index: Index, tmp_path: Path, whose: str, what: str) -> None:
    for name, needs in (("greeting", []), ("web", ["greeting"])):
        index.algorithm = (
            ("" if what == "none" else "md5" if what == "weak" else "sha256") if name == whose else "sha256"
        )
        file = index.wheel(name, "1.0", needs=needs)
        if name == whose and what == "other":
            index.files[f"/files/{file['filename']}"] = wheel(name, "1.0", {"evil.py": ""})
    sentence = rf"{whose}-1.0-py3-none-any.whl" if what != "other" else "not what the index says"
    with pytest.raises(Refused, match=sentence):
        fetched(index, tmp_path / "into")


def test_who_signed_the_package_can_be_asked_for_too(index: Index, tmp_path: Path) -> None:
    sigstore = Sigstore(tmp_path)
    how = f"sigstore:me@example.org {ISSUER} {sigstore.root}"
    file = index.wheel("web", "1.0")
    path = f"/files/{file['filename']}"
    with pytest.raises(SourceError, match=r"\.whl\.sigstore\.json can't be had: it answered 404"):
        fetched(index, tmp_path / "unsigned", verify=how)
    index.files[f"{path}.sigstore.json"] = sigstore.sign(index.files[path], "somebody@example.org")
    with pytest.raises(Refused, match="not signed"):
        fetched(index, tmp_path / "other", verify=how)
    index.files[f"{path}.sigstore.json"] = sigstore.sign(index.files[path], "me@example.org")
    assert fetched(index, tmp_path / "signed", verify=how).is_dir()
    file["hashes"] = {}
    with pytest.raises(Refused, match="gives no SHA-2 checksum"):
        fetched(index, tmp_path / "without", verify=how)


def test_a_checksum_that_anybody_can_change_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="can be changed on its way, the checksums too"):
        make("pypi:web?index=http://index.example/simple", Settings(size_max=1, verify="checksum"))
    make("pypi:web?index=http://index.example/simple", Settings(size_max=1, unverified=True))
    monkeypatch.setenv(WATCH_AUTHORIZATION, SECRET)
    with pytest.raises(SourceError, match=r"a password for http://index\.example/simple could be read on its way"):
        make("pypi:web?index=http://index.example/simple", Settings(size_max=1, unverified=True))


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        (["nowhere"], "what it needs can't be had: .*nowhere"),
        (["greeting>1"], "what it needs can't be had: .*greeting>1"),
        (["greeting", "other"], "what it needs can't be had: .*conflict"),
    ],
)
def test_what_it_needs_and_nobody_has_is_its_fault(
    index: Index, tmp_path: Path, needs: list[str], sentence: str
) -> None:
    index.wheel("greeting", "1.0")
    index.wheel("other", "1.0", needs=["greeting<1"])
    index.wheel("web", "1.0", needs=needs)
    with pytest.raises(Broken, match=sentence):
        fetched(index, tmp_path / "into")


def test_an_index_in_trouble_is_not_the_release_s_fault(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.wheel("greeting", "1.0")
    index.wheel("web", "1.0", needs=["greeting"])
    index.cuts = 2
    one = source(index)
    found = one.look({})
    (tmp_path / "into").mkdir()
    index.bad_pages = 1000
    with pytest.raises(SourceError, match="what it needs can't be had") as caught:
        one.fetch(found, tmp_path / "into")
    assert not isinstance(caught.value, (Broken, Refused))
    with pytest.raises(SourceError, match="it answered 500"):
        newest(index)
    index.bad_pages, index.cuts = 0, 1000
    with pytest.raises(SourceError, match="broke off after"):
        newest(index)


@pytest.mark.parametrize(
    "told",
    [
        ("text/plain", b""),
        ("image/png", b"\x89PNG"),
        (JSON, b"{"),
        (JSON, b"[]"),
        (JSON, b'{"meta":{"api-version":"2.0"}}'),
    ],
)
def test_a_page_that_makes_no_sense_is_said(index: Index, told: tuple[str, bytes]) -> None:
    index.told = told
    with pytest.raises(SourceError, match="is no page of an index"):
        newest(index)


def test_a_wheel_that_is_none_is_broken(index: Index, tmp_path: Path) -> None:
    index.add("web-1.0-py3-none-any.whl", b"PK")
    with pytest.raises(Broken, match=r"web-1.0-py3-none-any.whl is no wheel: File is not a zip file"):
        fetched(index, tmp_path / "into")


def test_a_wheel_that_can_not_be_installed_is_broken(index: Index, tmp_path: Path) -> None:
    index.wheel("web", "1.0", form="9.0")
    one = source(index)
    found = one.look({})
    place = one.fetch(found, tmp_path)
    with pytest.raises(Broken, match=r"web 1\.0 can't be installed: .*Wheel-Version"):
        one.settle(found, place)


def test_more_than_is_allowed_is_not_kept(index: Index, tmp_path: Path) -> None:
    index.add("web-1.0-py3-none-any.whl", wheel("web", "1.0", {"zeros": "0" * 100_000}))
    with pytest.raises(SourceError, match="more than the 100 bytes"):
        fetched(index, tmp_path / "packed", size_max=100)
    with pytest.raises(Refused, match="with all that it needs, more than --fetch-max allows"):
        fetched(index, tmp_path / "unpacked", size_max=50_000)
    index.add("greeting-1.0-py3-none-any.whl", wheel("greeting", "1.0", {"noise": os.urandom(60_000).hex()}))
    index.wheel("web", "2.0", needs=["greeting"])
    with pytest.raises(Refused, match="a file of it has more bytes than --fetch-max allows"):
        fetched(index, tmp_path / "needed", size_max=50_000)


def test_a_full_disk_is_not_the_release_s_fault(index: Index, tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0 and shutil.which("mount") is not None, "root, to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this system lets nobody mount here")
    try:
        index.add("web-1.0-py3-none-any.whl", wheel("web", "1.0", {"noise.txt": os.urandom(80_000).hex()}))
        one = source(index)
        found = one.look({})
        place = one.fetch(found, disk)
        with pytest.raises(SourceError, match="No space left on device") as caught:
            one.settle(found, place)
        assert not isinstance(caught.value, (Broken, Refused))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_redirection_of_the_page_is_followed(index: Index, tmp_path: Path) -> None:
    index.wheel("web", "1.0")
    index.redirects["/simple/old/"] = "/simple/web/"
    index.redirects["/simple/round/"] = "/simple/round/"
    assert source(index, "web").look({}).tag == "1.0"
    with pytest.raises(SourceError, match="has no version of old"):
        newest(index, "old")
    with pytest.raises(SourceError, match="too many redirects"):
        newest(index, "round")


def _commands() -> Iterator[bytes]:
    """What everybody can read of the programs that run."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (process / "cmdline").read_bytes()


@pytest.mark.parametrize("how", ["token", "url"])
def test_a_secret_is_told_to_the_index_alone(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    user = "somebody@example" if how != "token" else "__token__"
    index.who = f"Basic {base64.b64encode(f'{user}:{SECRET}'.encode()).decode()}"
    index.files_at = Web()
    try:
        index.wheel("greeting", "1.0")
        index.wheel("web", "1.0", needs=["greeting"])
        with pytest.raises(SourceError, match="it answered 401"):
            newest(index)
        if how == "url":
            index_url = index.simple.replace("://", f"://somebody%40example:{SECRET}@")
            monkeypatch.setenv("PIP_INDEX_URL", index_url)
            one = make("pypi:web", Settings(size_max=1 << 24, verify="checksum"))
        else:
            monkeypatch.setenv(WATCH_AUTHORIZATION, SECRET if how == "token" else index.who)
            one = source(index)
        found = one.look({})
        commands: set[bytes] = set()
        index.look_around = lambda: commands.update(_commands())
        assert one.fetch(found, tmp_path).is_dir()
        assert [command for command in commands if b"download" in command and str(tmp_path).encode() in command]
        assert [command for command in commands if SECRET.encode() in command] == []
        assert {"/files/greeting-1.0-py3-none-any.whl", "/files/web-1.0-py3-none-any.whl"} == {
            path for path, _, _ in index.files_at.asked
        }
        assert [headers for _, headers, _ in index.files_at.asked if "Authorization" in headers] == []
        index.who = "Basic another"
        with pytest.raises(SourceError) as caught:
            one.fetch(one.look({}), tmp_path)
        assert SECRET not in str(caught.value)
    finally:
        index.files_at.close()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("web @ https://x/y.whl", "is no package: say pypi:NAME"),
        ("web; python_version < '3'", "is no package"),
        ("?index=https://x/", "'' is no package"),
        ("web?index=ftp://x/", "is to be named by a URL"),
        ("web?index=https://me:secret@x/", "a password in a URL is seen by everybody"),
        ("web?extra-index=https://x/", "is no setting: there are index="),
    ],
)
def test_mistakes_are_said(what: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        make(f"pypi:{what}", Settings(size_max=1))


def test_what_an_index_can_not_do_is_said(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="an index says the checksum of a file itself"):
        source(index, verify="checksum:SHA256SUMS")
    with pytest.raises(SourceError, match="is no way to verify"):
        source(index, verify="signers:file")
    monkeypatch.setenv(WATCH_AUTHORIZATION, "Bearer x")
    with pytest.raises(SourceError, match="takes a token alone in"):
        source(index)
    monkeypatch.setattr(pypi, "find_spec", lambda name: None if name == "pypi_simple" else name)
    with pytest.raises(SourceError, match=r"pypi_simple is needed: pip install 'fdhandoff\[pypi\]'"):
        source(index)


# --- and with a service ---------------------------------------------------------------------------------------


def test_a_release_that_can_not_be_installed_has_failed_and_leaves_nothing(tmp_path: Path) -> None:
    site = Pypi(tmp_path)
    told = {"words": tuple(site.words), "env": {**site.env, WATCH_AUTHORIZATION: SECRET}}
    site.index.who = f"Basic {base64.b64encode(f'__token__:{SECRET}'.encode()).decode()}"
    try:
        site.publish("one")
        with Watched(tmp_path, site.source, *site.options, **told) as service:
            assert service.answers() == "one"
            before = sorted(service.store.iterdir())
            site.publish("two", needs=["nowhere"])
            service.says("release 2.0, which can't be used (what it needs can't be had")
            looked = service.status()["releases"]["looked"]
            wait_for(lambda: service.status()["releases"]["looked"] > looked, "another look")
            assert service.said("can't be used") == 1
            assert service.fates() == ["failed", "serving"]
            assert sorted(service.store.iterdir()) == before
            assert os.path.realpath(service.store / "current") == str(service.store / "1.0" / "environment")
            texts = [service.running.text(), str(service.status()), str(service.releases())]
            texts += [(service.store / "releases.json").read_text()]
            for one in service.generations().values():
                for pid in one["pids"]:
                    texts += [
                        Path(f"/proc/{pid}/{name}").read_bytes().decode("latin-1") for name in ("environ", "cmdline")
                    ]
            assert [text for text in texts if SECRET in text] == []
    finally:
        site.close()
