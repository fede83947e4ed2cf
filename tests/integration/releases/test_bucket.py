"""A release from a bucket, or from wherever else fsspec gets at."""

from __future__ import annotations

import errno
import hashlib
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fdhandoff.releases import Refused, Settings, SourceError, bucket, make

from ..cli import verb, wait_for
from . import Watched, script
from .publishers import S3, SECRET, packed

if TYPE_CHECKING:
    from fdhandoff.releases import Found

REGISTRY: Any = import_module("fsspec.registry")
DATA = bytes(range(256)) * 4096
URL = "odd://shelf/server"
SETTINGS = Settings(size_max=1 << 24, verify="checksum")


class Odd(MemoryFileSystem):
    """As good or as bad as a test wants it: how many more calls fail, and how; what it says of a file, besides or instead."""

    protocol = "odd"
    faults: ClassVar[list[Exception]] = []
    facts: ClassVar[dict[str, Any]] = {}
    forgets: ClassVar[tuple[str, ...]] = ()
    told: ClassVar[dict[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        type(self).told = options
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("odd:/")))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self.faults:
            raise self.faults.pop()
        return {name: value for name, value in {**super().info(path), **self.facts}.items() if name not in self.forgets}


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Odd:
    monkeypatch.setattr(bucket, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(bucket, "STABLE_SECONDS", 0.01)
    monkeypatch.setitem(REGISTRY._registry, "odd", Odd)
    for name, value in {"store": {}, "pseudo_dirs": [""], "faults": [], "facts": {}, "forgets": ()}.items():
        monkeypatch.setattr(Odd, name, value)
    one = Odd(skip_instance_cache=True)
    put(one, DATA)
    return one


def put(odd: Odd, data: bytes) -> None:
    odd.pipe_file("/shelf/server.sha256", f"{hashlib.sha256(data).hexdigest()}  server\n".encode())
    odd.pipe_file("/shelf/server", data)


def fetched(folder: Path, settings: Settings = SETTINGS) -> tuple[Found, bytes]:
    source = make(URL, settings)
    found = source.look({})
    folder.mkdir()
    return found, source.fetch(found, folder).read_bytes()


@pytest.mark.parametrize("tells", ["etag", "dates", "nothing"])
def test_what_has_not_changed_is_the_same(odd: Odd, tmp_path: Path, tells: str) -> None:
    Odd.facts = {"ETag": '"one"'} if tells == "etag" else {}
    Odd.forgets = ("created",) if tells == "nothing" else ()
    found, data = fetched(tmp_path / "into")
    assert data == DATA
    assert Odd.told == {}, "some libraries pass on whatever they are told, to what does not know it"
    source = make(URL, SETTINGS)
    assert source.look(found.state).identity == found.identity
    assert source.look({}).identity == found.identity, "after a start nothing is remembered"
    put(odd, DATA[:-1] + b"x")
    Odd.facts = {"ETag": '"two"'} if tells == "etag" else {}
    assert make(URL, SETTINGS).look(found.state).identity != found.identity


def test_a_file_that_grows_is_not_taken(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    def writes_on(seconds: float) -> None:
        odd.pipe_file("/shelf/server", DATA * 2)

    monkeypatch.setattr(bucket, "time", SimpleNamespace(monotonic=time.monotonic, sleep=writes_on))
    with pytest.raises(SourceError, match="odd://shelf/server is still being written"):
        make(URL, SETTINGS).look({})


def test_one_that_changes_between_look_and_fetch_is_left_to_the_next_look(odd: Odd, tmp_path: Path) -> None:
    for forgotten in ((), ("created",)):
        Odd.forgets = forgotten
        source = make(URL, SETTINGS)
        found = source.look({})
        put(odd, odd.cat_file("/shelf/server")[1:])
        (tmp_path / str(len(forgotten))).mkdir()
        with pytest.raises(SourceError, match="changed while it was fetched"):
            source.fetch(found, tmp_path / str(len(forgotten)))


@pytest.mark.parametrize("said", [{}, {"size": 5}, {"size": None}])
def test_one_that_is_too_large_is_given_up_whatever_is_said_of_its_size(
    odd: Odd, tmp_path: Path, said: dict[str, Any]
) -> None:
    Odd.facts = said
    with pytest.raises(SourceError, match=r"has more than the 1000 bytes that --fetch-max allows"):
        fetched(tmp_path / "into", Settings(size_max=1000, verify="checksum"))
    Odd.forgets = ("created",)
    with pytest.raises(SourceError, match=r"has more than the 1000 bytes that --fetch-max allows"):
        make(URL, Settings(size_max=1000, verify="checksum")).look({})


def test_one_that_breaks_off_is_noticed(odd: Odd, tmp_path: Path) -> None:
    Odd.facts = {"size": len(DATA) + 7}
    with pytest.raises(SourceError, match=f"broke off after {len(DATA)} bytes of {len(DATA) + 7}"):
        fetched(tmp_path / "into")


def test_what_fails_is_tried_again_and_what_would_fail_again_is_not(
    odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Odd.faults = [RuntimeError("busy"), ConnectionResetError(errno.ECONNRESET, "reset")]
    assert fetched(tmp_path / "into")[1] == DATA
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.1)
    Odd.faults = [RuntimeError("busy at https://host/key?Signature=abc")] * 1000
    with pytest.raises(SourceError, match=r"can't be had: busy at https://host/key\?…$"):
        make(URL, SETTINGS).look({})
    Odd.faults = [RuntimeError("never raised"), PermissionError("forbidden")]
    with pytest.raises(SourceError, match="can't be had: forbidden"):
        make(URL, SETTINGS).look({})
    assert len(Odd.faults) == 1
    Odd.faults = []
    with pytest.raises(SourceError, match="can't be had: there is no such file"):
        make("odd://shelf/nothing", SETTINGS).look({})
    with pytest.raises(SourceError, match="is a directory, and not a file"):
        make("odd://shelf", SETTINGS).look({})


def test_only_what_its_checksum_says_is_taken(odd: Odd, tmp_path: Path) -> None:
    odd.pipe_file("/shelf/server.sha256", b"0" * 64)
    with pytest.raises(Refused, match="server is not what its checksum says"):
        fetched(tmp_path / "tampered")
    odd.pipe_file("/shelf/SUMS", f"{hashlib.sha256(DATA).hexdigest()}  server\n".encode())
    assert fetched(tmp_path / "named", Settings(size_max=1 << 24, verify="checksum:SUMS"))[1] == DATA
    odd.rm_file("/shelf/server.sha256")
    with pytest.raises(SourceError, match=r"server\.sha256 can't be had: there is no such file"):
        fetched(tmp_path / "without")


def test_a_source_that_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, sentence in (
        ("s3://me:secret@bucket/key", "a password in a URL is seen by everybody"),
        ("nowhere://bucket/key", "there is no source 'nowhere', nor does fsspec know it"),
        ("memory://", "names no file"),
        ("memory://[x/key", "is no URL"),
    ):
        with pytest.raises(SourceError, match=sentence):
            make(url, SETTINGS)
    lacking = {"class": "nowhere.Lacking", "err": "install lackingfs"}
    monkeypatch.setitem(REGISTRY.known_implementations, "lacking", lacking)
    with pytest.raises(SourceError, match=r"to watch lacking:// .*'fdhandoff\[fsspec\]' \(install lackingfs\)"):
        make("lacking://bucket/key", SETTINGS)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SourceError, match=r"to watch s3:// a package is needed: pip install 'fdhandoff\[s3\]'$"):
        make("s3://bucket/key", SETTINGS)


def test_another_file_system_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "STABLE_SECONDS", 0.01)
    data = packed({"app/server.py": b"print()"})
    archive = tmp_path / "app.tar.gz"
    archive.write_bytes(data)
    archive.with_name("app.tar.gz.sha256").write_text(hashlib.sha256(data).hexdigest())
    source = make(f"local://{archive}", SETTINGS)
    found = source.look({})
    assert found.tag.startswith("app-")
    (tmp_path / "into").mkdir()
    assert (source.fetch(found, tmp_path / "into") / "server.py").read_bytes() == b"print()"


def test_what_goes_wrong_in_a_bucket_costs_nothing_and_tells_no_secret(tmp_path: Path) -> None:
    store = S3(tmp_path)
    try:
        store.publish("one")
        told: dict[str, Any] = {"words": store.words, "env": dict(store.env)}
        with Watched(tmp_path, store.source, wait=False, **told) as service:
            assert service.running.ends() == 125
            assert "say --verify, or waive it by --insecure-skip-verify" in service.running.text()
        note = f"sh -c 'echo $FDHANDOFF_RESULT $FDHANDOFF_RELEASE $FDHANDOFF_REASON >> {tmp_path}/notes'"
        with Watched(tmp_path, store.source, *store.options, "--on-failure", note, **told) as service:
            before = sorted(service.store.iterdir())
            store.put(store.name, packed({"app/server.py": script("evil").encode()}))
            service.says("is not what its checksum says")
            store.delete(f"{store.name}.sha256")
            service.says(f"{store.name}.sha256 can't be had: there is no such file")
            wait_for(lambda: sorted(service.store.iterdir()) == before, "an empty desk")
            assert service.answers() == "one"
            (noted,) = (tmp_path / "notes").read_text().splitlines()
            assert noted.startswith(f"refused {store.name} is not what its checksum says")
            title = Path(f"/proc/{service.pid}/cmdline").read_text()
            shown = [
                title,
                service.running.text(),
                *(verb(one, str(service.path)).stdout for one in ("status", "releases")),
            ]
            assert not [text for text in shown if SECRET in text or not text]
            store.publish("two")
            service.comes("two")
            assert service.stop() == 0
            assert "Traceback" not in service.running.text()
            assert "Unclosed" not in service.running.text()
    finally:
        store.close()
