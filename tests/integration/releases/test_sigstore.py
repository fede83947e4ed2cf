"""Who has signed a release, as an instance of sigstore of our own says it: no other can be asked here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fdhandoff.releases import Refused, Settings, SourceError, make

from .signing import ISSUER, Sigstore
from .web import Web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"print()"
ME = "me@example.org"
WORKFLOW = "https://code.example/me/app/.ci/release.yml@refs/heads/main"


@pytest.fixture
def web() -> Iterator[Web]:
    one = Web()
    one.files["/server"] = DATA
    yield one
    one.close()


@pytest.fixture
def sigstore(tmp_path: Path) -> Sigstore:
    return Sigstore(tmp_path)


def fetched(web: Web, folder: Path, who: str) -> bytes:
    source = make(f"{web.url}/server", Settings(size_max=1 << 20, verify=f"sigstore:{who}"))
    into = folder / "into"
    into.mkdir(exist_ok=True)
    try:
        return source.fetch(source.look({}), into).read_bytes()
    finally:
        for left in into.iterdir():
            left.unlink()


@pytest.mark.parametrize("suffix", [".sigstore.json", ".sigstore"])
@pytest.mark.parametrize("identity", [ME, WORKFLOW])
def test_what_the_right_people_signed_is_taken(
    web: Web, sigstore: Sigstore, tmp_path: Path, suffix: str, identity: str
) -> None:
    web.files[f"/server{suffix}"] = sigstore.sign(DATA, identity)
    assert fetched(web, tmp_path, f"{identity} {ISSUER} {sigstore.root}") == DATA


def test_nobody_else_will_do(web: Web, sigstore: Sigstore, tmp_path: Path) -> None:
    who = f"{ME} {ISSUER} {sigstore.root}"
    (tmp_path / "another").mkdir()
    for bundle, sentence in (
        (sigstore.sign(DATA, "you@example.org"), r"not signed by me@example\.org .*do not match me@example\.org"),
        (sigstore.sign(DATA, ME, "https://other.example"), "OIDCIssuer does not match"),
        (sigstore.sign(DATA + b"x", ME), "digest mismatch"),
        (Sigstore(tmp_path / "another").sign(DATA, ME), "failed to build timestamp certificate chain"),
        (sigstore.sign(DATA, ME).replace(b'"inclusionPromise"', b'"noPromise"'), "failed to load bundle|promise"),
        (sigstore.sign(DATA, ME)[:-1], "failed to load bundle"),
        (b"\xff", "failed to load bundle"),
        (b"{}", "failed to load bundle"),
        (b"", "failed to load bundle"),
    ):
        web.files["/server.sigstore.json"] = bundle
        with pytest.raises(Refused, match=sentence):
            fetched(web, tmp_path, who)
    web.files["/server"], web.files["/server.sigstore.json"] = DATA + b"x", sigstore.sign(DATA, ME)
    with pytest.raises(Refused, match=r"server is not signed by me@example\.org .*digest mismatch"):
        fetched(web, tmp_path, who)
    del web.files["/server.sigstore.json"]
    with pytest.raises(SourceError, match=r"server\.sigstore\.json can't be had: it answered 404"):
        fetched(web, tmp_path, who)


def test_each_word_of_the_bundle_counts(web: Web, sigstore: Sigstore, tmp_path: Path) -> None:
    """Whatever is changed in it: the certificate, the logs' words, the signature."""
    good = sigstore.sign(DATA, ME).decode()
    for name in ("rawBytes", "signedEntryTimestamp", "rootHash", "canonicalizedBody", "signature", "envelope"):
        begin = good.index(f'"{name}": "') + len(name) + 5
        place = (begin + 3 * good.index('"', begin)) // 4
        other = "A" if good[place] != "A" else "B"
        web.files["/server.sigstore.json"] = f"{good[:place]}{other}{good[place + 1 :]}".encode()
        with pytest.raises(Refused, match="server is not signed by"):
            fetched(web, tmp_path, f"{ME} {ISSUER} {sigstore.root}")


def test_mistakes_are_said(web: Web, sigstore: Sigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in (ME, f"{ME} {ISSUER} {sigstore.root} more"):
        with pytest.raises(SourceError, match="does not tell who must have signed: say 'sigstore:IDENTITY ISSUER'"):
            fetched(web, tmp_path, who)
    with pytest.raises(SourceError, match="is no way to verify"):
        fetched(web, tmp_path, "")
    web.files["/server.sigstore.json"] = sigstore.sign(DATA, ME)
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("{}")
    with pytest.raises(SourceError, match=r"whom to trust can't be read from .*/nonsense"):
        fetched(web, tmp_path, f"{ME} {ISSUER} {nonsense}")
    monkeypatch.setitem(sys.modules, "sigstore", None)
    with pytest.raises(SourceError, match=r"the package sigstore is needed: pip install 'fdhandoff\[sigstore\]'"):
        fetched(web, tmp_path, f"{ME} {ISSUER}")
