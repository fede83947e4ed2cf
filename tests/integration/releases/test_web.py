"""A release from a web server: whatever that does, and whoever else can write there."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from fdhandoff.releases import Refused, Settings, SourceError, http, make

from ...conftest import needs, needs_that
from ..cli import wait_for
from . import Watched, script
from .publishers import Http, HttpWithoutValidators, packed, run
from .web import Proxy, Web

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdhandoff.releases import Found

DATA = bytes(range(256)) * 8192


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.01)
    one = Web()
    one.put("server", DATA)
    yield one
    one.close()


def fetched(
    web: Web, folder: Path, verify: str = "checksum", size_max: int = 1 << 24, path: str = "server"
) -> tuple[Found, bytes]:
    source = make(f"{web.url}/{path}", Settings(size_max=size_max, verify=verify))
    found = source.look({})
    folder.mkdir()
    return found, source.fetch(found, folder).read_bytes()


@pytest.mark.parametrize("validators", ["both", "modified", "none"])
def test_what_has_not_changed_is_the_same(web: Web, validators: str) -> None:
    web.validators = validators
    source = make(f"{web.url}/server", Settings(size_max=1 << 24, verify="checksum"))
    first = source.look({})
    assert source.look(first.state).identity == first.identity
    assert web.asked[-1][2] == (200 if validators == "none" else 304)
    assert source.look({}).identity == first.identity, "after a start nothing is remembered"
    web.put("server", DATA[1:])
    assert source.look(first.state).identity != first.identity


def test_a_download_that_breaks_off_goes_on_where_it_did(web: Web, tmp_path: Path) -> None:
    source = make(f"{web.url}/server", Settings(size_max=1 << 24, verify="checksum"))
    found = source.look({})
    web.cuts = 2
    (tmp_path / "into").mkdir()
    assert source.fetch(found, tmp_path / "into").read_bytes() == DATA
    ranges = [headers["Range"] for _, headers, status in web.asked if status == 206]
    assert ranges == [f"bytes={len(DATA) // 2}-", f"bytes={len(DATA) * 3 // 4}-"]


def test_a_server_that_can_only_begin_at_the_beginning_is_heard_out(web: Web, tmp_path: Path) -> None:
    web.ranges = False
    web.cuts = 3
    assert fetched(web, tmp_path / "into")[1] == DATA
    assert {status for _, _, status in web.asked} == {200}
    assert sum("Range" in headers for _, headers, _ in web.asked) == 2, "the first of them had only been looked at"


def test_one_that_breaks_off_and_changes_is_left_to_the_next_look(web: Web, tmp_path: Path) -> None:
    web.cuts = 1
    changed = web.files["/server"][::-1]
    source = make(f"{web.url}/server", Settings(size_max=1 << 24, verify="checksum"))
    found = source.look({})
    web.cuts = 1
    web.before_range = lambda: web.put("server", changed)
    with pytest.raises(SourceError, match="changed while it was fetched"):
        source.fetch(found, tmp_path)


@pytest.mark.parametrize("status", [204, 206, 304])
def test_an_answer_that_nobody_asked_for_is_no_release(web: Web, tmp_path: Path, status: int) -> None:
    source = make(f"{web.url}/server", Settings(size_max=1 << 24, unverified=True))
    found = source.look({})
    web.statuses = {"/server": status}
    with pytest.raises(SourceError, match=f"it answered {status}"):
        source.fetch(found, tmp_path)


def test_a_long_download_says_how_far_it_is(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PROGRESS_SECONDS", 0.0)
    said: list[str] = []
    source = make(f"{web.url}/server", Settings(size_max=1 << 24, verify="checksum", say=said.append))
    source.fetch(source.look({}), tmp_path)
    assert said[0].endswith(f" of {len(DATA)} bytes fetched")
    assert f"{len(DATA)} of {len(DATA)} bytes fetched" in said


def test_one_that_always_breaks_off_is_given_up(web: Web, tmp_path: Path) -> None:
    web.cuts = 1000
    with pytest.raises(SourceError, match="broke off after"):
        fetched(web, tmp_path / "into")


def test_a_wrong_length_is_noticed(web: Web, tmp_path: Path) -> None:
    web.longer = 7
    with pytest.raises(SourceError, match="broke off after"):
        fetched(web, tmp_path / "into")


def test_a_server_that_is_busy_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.errors = http.TRIES - 1
    assert fetched(web, tmp_path / "into")[1] == DATA
    web.errors = http.TRIES
    with pytest.raises(SourceError, match="it answered 503"):
        fetched(web, tmp_path / "again")
    web.errors, web.patience = 1, "77"
    with pytest.raises(SourceError, match="it answered 503") as caught:
        fetched(web, tmp_path / "later")
    assert (caught.value.wait, web.errors) == (77, 0)


def test_a_redirection_is_followed_and_a_circle_is_not(web: Web, tmp_path: Path) -> None:
    web.redirects = {"/latest": "/server", "/circle": "/circle"}
    web.files["/latest.sha256"] = web.files["/server.sha256"].replace(b"server", b"latest")
    assert fetched(web, tmp_path / "into", path="latest")[1] == DATA
    with pytest.raises(SourceError, match="too many redirects"):
        fetched(web, tmp_path / "circle", path="circle")


def test_a_missing_file_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/nothing can't be had: it answered 404"):
        fetched(web, tmp_path / "into", path="nothing")
    assert len(web.asked) == 1


def test_one_that_is_too_large_is_given_up(web: Web, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="more than the 1000 bytes"):
        fetched(web, tmp_path / "into", size_max=1000)


def test_a_release_that_changes_between_look_and_fetch_is_left_to_the_next_look(web: Web, tmp_path: Path) -> None:
    for validators in ("both", "none"):
        web.validators = validators
        source = make(f"{web.url}/server", Settings(size_max=1 << 24, verify="checksum"))
        found = source.look({})
        web.put("server", web.files["/server"][1:])
        (tmp_path / validators).mkdir()
        with pytest.raises(SourceError, match="changed while it was fetched"):
            source.fetch(found, tmp_path / validators)


def test_a_secret_is_sent_from_the_environment_alone(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http.AUTHORIZATION, "Bearer abc")
    fetched(web, tmp_path / "into")
    assert {headers["Authorization"] for _, headers, _ in web.asked} == {"Bearer abc"}
    other = Web()
    try:
        other.redirects = {f"/{name}": f"{web.url}/{name}" for name in ("server", "server.sha256")}
        web.asked.clear()
        assert fetched(other, tmp_path / "other")[1] == DATA
        assert {headers["Authorization"] for _, headers, _ in other.asked} == {"Bearer abc"}
        assert not any("Authorization" in headers for _, headers, _ in web.asked), "which is for the other alone"
    finally:
        other.close()
    with pytest.raises(SourceError, match="a password in a URL is seen by everybody"):
        make("http://me:secret@127.0.0.1/x", Settings(size_max=1))


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    one = Proxy()
    yield one
    one.close()


@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_of_the_environment_is_used(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Proxy, name: str, scheme: str
) -> None:
    monkeypatch.setenv(name, f"{scheme}me:a%20secret@{proxy.address}")
    assert fetched(web, tmp_path / "into")[1] == DATA
    credentials = f"Basic {base64.b64encode(b'me:a secret').decode()}"
    assert set(proxy.asked) == {("GET", f"{web.url}/{file}", credentials) for file in ("server", "server.sha256")}


def test_who_is_to_be_asked_without_a_proxy_is_also_when_another_leads_there(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    direct = urlsplit(web.url).netloc
    monkeypatch.setenv("no_proxy", f"elsewhere.invalid,{direct}")
    assert fetched(web, tmp_path / "direct")[1] == DATA
    assert proxy.asked == []
    by_proxy = Web()
    try:
        by_proxy.redirects = {f"/{name}": f"{web.url}/{name}" for name in ("server", "server.sha256")}
        assert fetched(by_proxy, tmp_path / "led")[1] == DATA
        assert {path for _, path, _ in proxy.asked} == {f"{by_proxy.url}{path}" for path in by_proxy.redirects}
    finally:
        by_proxy.close()


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """One with TLS, that is believed."""
    certificate = tmp_path / "web.pem"
    run(
        needs("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout",
        str(certificate.with_suffix(".key")), "-out", str(certificate),
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    one = Web(certificate)
    one.put("server", DATA)
    yield one
    one.close()


def test_https_is_not_left_for_http(web: Web, private: Web, tmp_path: Path) -> None:
    assert fetched(private, tmp_path / "private")[1] == DATA
    web.redirects = {f"/{name}": f"{private.url}/{name}" for name in ("server", "server.sha256")}
    assert fetched(web, tmp_path / "led")[1] == DATA
    private.redirects = {"/server": f"{web.url}/back", "/file": "file:///etc/passwd"}
    for path, sentence in (("server", "it leads from https to http://"), ("file", "which is not on the web")):
        with pytest.raises(SourceError, match=sentence):
            fetched(private, tmp_path / path, path=path)
    assert "/back" not in {path for path, _, _ in web.asked}


def test_a_server_that_nobody_vouches_for_is_not_believed(
    private: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SourceError, match=r"/server can't be had: .*certificate"):
        fetched(private, tmp_path / "into")


def test_https_goes_through_a_proxy(
    private: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
    assert fetched(private, tmp_path / "into")[1] == DATA
    assert set(proxy.asked) == {("CONNECT", urlsplit(private.url).netloc, "")}


@pytest.mark.parametrize("sums", [b"", b"zz\n", b"0" * 64 + b"  other\n", b"0" * 64 + b"\n"])
def test_a_checksum_that_is_none_or_another_is_refused(web: Web, tmp_path: Path, sums: bytes) -> None:
    web.files["/server.sha256"] = sums
    with pytest.raises(Refused, match=r"no checksum of server|not what its checksum says"):
        fetched(web, tmp_path / "into")


def test_a_file_of_checksums_can_be_named(web: Web, tmp_path: Path) -> None:
    web.files["/SHA256SUMS"] = b"0" * 64 + b"  other\n" + web.files.pop("/server.sha256")
    assert fetched(web, tmp_path / "into", "checksum:SHA256SUMS")[1] == DATA


def test_only_the_right_key_will_do(tmp_path: Path) -> None:
    needs("minisign")
    signed = HttpWithoutValidators(tmp_path)
    try:
        signed.put(DATA)
        how = signed.options[1]
        key = (tmp_path / "key.pub").read_text().splitlines()[1]
        for place, verify in (("file", how), ("text", f"minisign:{key}")):
            assert fetched(signed.web, tmp_path / place, verify, path=signed.name)[1] == DATA
        signed.web.files["/server.py"] = DATA[1:]
        with pytest.raises(Refused, match="not signed by the key"):
            fetched(signed.web, tmp_path / "tampered", how, path=signed.name)
        signed.put(DATA)
        with pytest.raises(Refused, match="not signed by the key"):
            fetched(signed.web, tmp_path / "other", f"minisign:{key[:-4]}AAA=", path=signed.name)
        del signed.web.files["/server.py.minisig"]
        with pytest.raises(SourceError, match="it answered 404"):
            fetched(signed.web, tmp_path / "unsigned", how, path=signed.name)
    finally:
        signed.close()


# --- and with a service ---------------------------------------------------------------------------------------


def test_what_comes_from_elsewhere_must_be_verified_or_that_be_waived(tmp_path: Path) -> None:
    site = Http(tmp_path)
    try:
        site.publish("one")
        with Watched(tmp_path, site.source, words=site.words, wait=False) as service:
            assert service.running.ends() == 125
            assert "say --verify, or waive it by --insecure-skip-verify" in service.running.text()
        with Watched(tmp_path, site.source, "--insecure-skip-verify", words=site.words) as service:
            assert service.answers() == "one"
            assert service.said("is NOT VERIFIED") == 1
    finally:
        site.close()


def test_a_tampered_release_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    site = Http(tmp_path)
    try:
        site.publish("one")
        with Watched(tmp_path, site.source, *site.options, words=site.words) as service:
            before = sorted(service.store.iterdir())
            good = site.web.files.copy()
            site.web.files[f"/{site.name}"] = packed({"app/server.py": script("evil").encode()})
            service.says("is not what its checksum says")
            wait_for(lambda: sorted(service.store.iterdir()) == before, "an empty desk")
            assert service.answers() == "one"
            site.web.files = {}
            service.says("it answered 404")
            site.web.files = good
            site.publish("two")
            service.comes("two")
    finally:
        site.close()


def test_a_full_disk_fails_the_look_and_leaves_nothing(tmp_path: Path) -> None:
    needs_that(os.geteuid() == 0 and shutil.which("mount") is not None, "root, to mount a small disk")
    site = Http(tmp_path)
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(store)], check=False).returncode:
        site.close()
        pytest.skip("this system lets nobody mount here")
    try:
        site.publish("one")
        with Watched(tmp_path, site.source, *site.options, words=site.words) as service:
            site.web.put(site.name, packed({"app/server.py": script("two").encode(), "app/zeros": bytes(1 << 20)}))
            service.says("No space left on device")
            assert service.answers() == "one"
            wait_for(lambda: not list(store.glob(".unfinished-*")), "an empty desk")
            site.publish("three")
            service.comes("three")
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)
        site.close()
