"""A release from GitHub: which one is taken, what its API says instead of one, and whom the token is told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.releases import Refused, Settings, SourceError, http, make
from fdhandoff.system.environment import WATCH_AUTHORIZATION, WATCH_AUTHORIZATION_FILE

from ...conftest import needs
from . import Watched
from .github import DAY, GitHub
from .publishers import Github, run
from .signing import ISSUER, Sigstore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdhandoff.releases import Found

DATA = b"#!/bin/sh\n" * 1000


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.01)
    one = GitHub()
    yield one
    one.close()


def source(github: GitHub, query: str = "", verify: str = "checksum") -> Any:
    settings = Settings(size_max=1 << 24, verify=verify, say=lambda _: None)
    return make(f"github:{github.repository}?api={github.url}{query}", settings)


def found(github: GitHub, query: str = "") -> Found:
    answer: Found = source(github, query).look({})
    return answer


def fetched(github: GitHub, folder: Path, query: str = "", verify: str = "checksum") -> bytes:
    one = source(github, query, verify)
    folder.mkdir()
    data: bytes = one.fetch(one.look({}), folder).read_bytes()
    return data


def test_the_latest_release_is_the_one_that_its_maintainers_say(github: GitHub, tmp_path: Path) -> None:
    github.release("v1", {"web": DATA})
    github.release("v2", {"web": b"early"}, prerelease=True)
    github.release("v3", {"web": b"unfinished"}, draft=True, published_at=None)
    assert found(github).tag == "v1"
    assert fetched(github, tmp_path / "into") == DATA
    assert found(github, "&prereleases=yes").tag == "v2"


def test_what_has_not_changed_costs_no_request_of_the_limit(github: GitHub) -> None:
    github.release("v1", {"web": DATA})
    one = source(github)
    first = one.look({})
    assert one.look(first.state).identity == first.identity
    assert github.asked[-1][2] == 304
    github.release("v2", {"web": DATA})
    assert one.look(first.state).identity != first.identity


def test_a_release_is_found_on_a_further_page_and_remembered(github: GitHub) -> None:
    github.release("v1.9", {"web": DATA})
    for number in range(150):
        github.release(f"v2.{number}", {"web": DATA})
    one = source(github, "&tag=v1.*")
    first = one.look({})
    assert first.tag == "v1.9"
    assert [status for _, _, status in github.asked] == [200, 200]
    assert one.look(first.state) == first
    assert [status for _, _, status in github.asked[2:]] == [304, 304]
    github.release("v1.10", {"web": DATA}, published_at=DAY.format(30))
    assert one.look(first.state).tag == "v1.10"


@pytest.mark.parametrize(
    ("assets", "query", "sentence"),
    [
        ((), "", "no asset for asset=*: there are none"),
        (("other",), "&asset=web-*", "no asset for asset=web-*: there are other"),
        (("web-arm", "web-amd"), "&asset=web-*", "2 assets for asset=web-*: there are web-amd, web-arm"),
    ],
)
def test_which_asset_is_meant_must_be_clear(github: GitHub, assets: tuple[str, ...], query: str, sentence: str) -> None:
    github.release("v1", dict.fromkeys(assets, DATA))
    with pytest.raises(SourceError) as caught:
        found(github, query)
    assert str(caught.value).endswith(sentence)


def test_an_asset_that_is_being_uploaded_is_waited_for(github: GitHub) -> None:
    release = github.release("v1", {"web": DATA})
    release["assets"][0]["state"] = "starter"
    with pytest.raises(SourceError, match="web of release v1 is still being uploaded"):
        found(github)
    release["assets"][0]["state"] = "uploaded"
    assert found(github).tag == "v1"


def test_an_asset_that_was_replaced_is_another_release(github: GitHub) -> None:
    release = github.release("v1", {"web": DATA})
    first = found(github)
    release["assets"] = [github.asset("web", DATA[1:])]
    assert found(github).identity != first.identity


def test_a_digest_is_checked_however_it_is_to_be_verified(github: GitHub, tmp_path: Path) -> None:
    release = github.release("v1", {"web": DATA})
    github.storage.files[f"/{release['assets'][0]['id']}"] = b"evil"
    for verify in ("checksum", ""):
        with pytest.raises(Refused, match="web is not what its digest says"):
            fetched(github, tmp_path / f"with-{verify}", verify=verify)


def test_without_a_digest_it_is_verified_by_what_lies_beside_it(github: GitHub, tmp_path: Path) -> None:
    needs("minisign")
    github.digests = False
    sums = f"{hashlib.sha256(DATA).hexdigest()}  web\n".encode()
    github.release("v1", {"web": DATA})
    with pytest.raises(SourceError, match=r"there is no asset web\.sha256 yet"):
        fetched(github, tmp_path / "none")
    github.release("v2", {"web": DATA, "web.sha256": sums})
    assert fetched(github, tmp_path / "sums") == DATA
    github.release("v3", {"web": DATA, "SHA256SUMS": sums.replace(b"a", b"b")})
    with pytest.raises(Refused, match="is not what its checksum says"):
        fetched(github, tmp_path / "wrong", verify="checksum:SHA256SUMS")
    (tmp_path / "web").write_bytes(DATA)
    run("minisign", "-G", "-W", "-p", f"{tmp_path}/key.pub", "-s", f"{tmp_path}/key")
    run("minisign", "-S", "-W", "-m", f"{tmp_path}/web", "-s", f"{tmp_path}/key")
    github.release("v4", {"web": DATA, "web.minisig": (tmp_path / "web.minisig").read_bytes()})
    assert fetched(github, tmp_path / "signed", "&asset=web*", f"minisign:{tmp_path}/key.pub") == DATA


def test_who_signed_an_asset_is_asked_for(github: GitHub, tmp_path: Path) -> None:
    sigstore = Sigstore(tmp_path)
    how = f"sigstore:me@example.org {ISSUER} {sigstore.root}"
    github.release("v1", {"web": DATA})
    with pytest.raises(SourceError, match=r"there is no asset web\.sigstore\.json yet"):
        fetched(github, tmp_path / "unsigned", verify=how)
    github.release("v2", {"web": DATA, "web.sigstore.json": sigstore.sign(DATA, "me@example.org")})
    assert fetched(github, tmp_path / "signed", verify=how) == DATA


def test_a_token_is_told_to_the_api_alone(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    github.token = "ghp_secret"
    github.release("v1", {"web": DATA})
    with pytest.raises(SourceError, match=f"it takes a token in {WATCH_AUTHORIZATION} to see it"):
        found(github)
    (tmp_path / "token").write_text("ghp_secret\n")
    monkeypatch.setenv(WATCH_AUTHORIZATION_FILE, str(tmp_path / "token"))
    assert fetched(github, tmp_path / "into") == DATA
    assert [headers.get("Authorization") for _, headers, _ in github.asked[-2:]] == ["Bearer ghp_secret"] * 2
    ((_, headers, _),) = github.storage.asked
    assert "Authorization" not in headers
    monkeypatch.setenv(WATCH_AUTHORIZATION, "wrong")
    with pytest.raises(SourceError, match="does not accept what") as caught:
        found(github)
    assert "wrong" not in str(caught.value)
    for secret in ("two\nlines", "\N{EURO SIGN}"):
        monkeypatch.setenv(WATCH_AUTHORIZATION, secret)
        with pytest.raises(SourceError, match="is not one line of ASCII") as caught:
            found(github)
        assert secret not in str(caught.value)
    monkeypatch.delenv(WATCH_AUTHORIZATION)
    (tmp_path / "token").unlink()
    with pytest.raises(SourceError, match="which FDHANDOFF_WATCH_AUTHORIZATION_FILE names, can't be read"):
        found(github)


def test_a_page_that_leads_elsewhere_is_not_followed(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WATCH_AUTHORIZATION, "ghp_secret")
    elsewhere = f'<{github.storage.url}/repos/acme/web/releases?page=2>; rel="next"'
    github.complaint = (200, {"Link": elsewhere}, [])  # type: ignore[assignment]
    with pytest.raises(SourceError, match="is not where we ask"):
        found(github, "&tag=v*")
    assert github.storage.asked == []


@pytest.mark.parametrize(
    ("status", "headers", "message", "least", "most"),
    [
        (429, {"Retry-After": "77"}, "You have exceeded a secondary rate limit", 77, 77),
        (403, {"Retry-After": "77", "X-RateLimit-Remaining": "0"}, "slow down", 77, 77),
        (403, {}, "You have exceeded a secondary rate limit", 60, 60),
        (429, {"Retry-After": "soon"}, "slow down", 60, 60),
    ],
)
def test_a_limit_is_honoured(
    github: GitHub, status: int, headers: dict[str, str], message: str, least: float, most: float
) -> None:
    github.complaint = (status, headers, {"message": message})
    with pytest.raises(SourceError, match=f"is not to be asked again for {least}s: {message}; with a token") as caught:
        found(github)
    assert least <= caught.value.wait <= most
    assert len(github.asked) == 1


def test_where_requests_are_used_up_they_are_waited_for(github: GitHub) -> None:
    github.remaining = 0
    with pytest.raises(SourceError, match="API rate limit exceeded") as caught:
        found(github)
    assert 1700 < caught.value.wait <= 1800


@pytest.mark.parametrize("told", [{}, [1], "x", {"tag_name": 1}, [{"draft": False, "prerelease": False}]])
def test_what_makes_no_sense_is_said(github: GitHub, told: Any) -> None:
    github.complaint = (200, {}, told)
    with pytest.raises(SourceError, match="answered what is no list of releases"):
        found(github, "&prereleases=yes")


def test_a_server_in_trouble_is_asked_again(github: GitHub, tmp_path: Path) -> None:
    github.release("v1", {"web": DATA})
    github.errors, github.cuts, github.storage.cuts = 2, 1, 2
    assert fetched(github, tmp_path / "into") == DATA
    github.cuts = 1000
    with pytest.raises(SourceError, match="broke off after"):
        found(github)
    github.cuts, github.complaint = 0, (403, {}, {"message": "Resource not\naccessible"})
    with pytest.raises(SourceError, match=r"refuses .*: Resource not accessible"):
        found(github)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("acme", "'acme' is no repository"),
        ("acme/../web", "is no repository"),
        ("acme/web?assets=x", "'assets=x' of 'acme/web.assets=x' is no setting: there are asset=, tag="),
        ("acme/web?prereleases=maybe", "is neither yes nor no"),
        ("acme/web?api=http://ghe.example/api/v3", "can't be asked: say https://HOST/api/v3"),
        ("acme/web?api=https://me:secret@ghe.example", "a password in a URL is seen by everybody"),
    ],
)
def test_mistakes_are_said(where: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        make(f"github:{where}", Settings(size_max=1))


# --- and with a service ---------------------------------------------------------------------------------------


def test_nobody_else_hears_of_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Github(tmp_path)
    site.github.token = "ghp_verysecret"
    monkeypatch.setenv(WATCH_AUTHORIZATION, site.github.token)
    try:
        site.publish("one")
        with Watched(tmp_path, site.source, *site.options, words=site.words) as service:
            site.publish("two")
            service.comes("two")
            site.github.complaint = (403, {}, {"message": "no more"})
            service.says("refuses")
            told = [service.running.text(), str(service.status()), str(service.releases())]
            told += [(service.store / "releases.json").read_text()]
            for one in service.generations().values():
                for pid in one["pids"]:
                    told += [
                        Path(f"/proc/{pid}/{name}").read_bytes().decode("latin-1") for name in ("environ", "cmdline")
                    ]
            told += [Path(f"/proc/{service.pid}/{name}").read_text() for name in ("cmdline", "comm")]
            assert [text for text in told if site.github.token in text] == []
    finally:
        site.close()
