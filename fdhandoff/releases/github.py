"""``github:OWNER/REPO``: the latest release there, of whose files, "assets", one is what runs here."""

from __future__ import annotations

import hashlib
import json
import re
import time
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from hmac import compare_digest
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ..system.environment import WATCH_AUTHORIZATION as AUTHORIZATION
from . import Found, Refused, Settings, Source, SourceError, options_in, tag_of
from .artefact import finish, verification_of
from .http import Client, authorization, forbid_password, is_private, retry_after

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

API = "https://api.github.com"
_OPTIONS = ("asset", "tag", "prereleases", "api")
_JSON = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_BYTES = {**_JSON, "Accept": "application/octet-stream"}
_PAGES = 10  # of 100 releases: no more are listed
_PAGE_MAX = 64 << 20
_BESIDE_MAX = 1 << 20
_MINUTE = 60.0
_MESSAGE_MAX = 200
# What lies beside an asset to verify it by, and is not meant by a pattern that fits both.
_BESIDE = (".sha256", ".sha512", ".minisig", ".sig", ".asc", ".sigstore", ".sigstore.json", ".pem", ".crt")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class GithubSource(Source):
    def __init__(self, where: str, settings: Settings) -> None:
        super().__init__(where, settings)
        self.repository, chosen = options_in(where, _OPTIONS)
        if not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", self.repository) or ".." in self.repository:
            raise SourceError(f"{self.repository!r} is no repository: say github:OWNER/REPO")
        self._pattern = chosen.get("asset", "*")
        self._tags = chosen.get("tag", "")
        early = chosen.get("prereleases", "no")
        if early not in ("yes", "no"):
            raise SourceError(f"prereleases={early!r} is neither yes nor no")
        self._early = early == "yes"
        self._api = chosen.get("api", API).rstrip("/")
        forbid_password(self._api)
        if not urlsplit(self._api).hostname or not is_private(self._api):
            raise SourceError(f"{self._api!r} can't be asked: say https://HOST/api/v3")
        self._verification = verification_of(settings)
        token = authorization()
        self._with_token = bool(token)
        self._client = Client(f"Bearer {token}" if token and " " not in token else token, self._explain)

    # --- what there is ------------------------------------------------------------------------------------------

    def look(self, state: Mapping[str, Any]) -> Found:
        known = list(state.get("pages", ()))
        pages: list[dict[str, Any]] = []
        # Which one is the latest its maintainers say, and are asked, unless the operator wants to see more.
        url = self._url("latest" if not self._tags and not self._early else "?per_page=100")
        while url and len(pages) < _PAGES:
            before = known[len(pages)] if len(pages) < len(known) and known[len(pages)]["url"] == url else None
            pages.append(self._page(url, before))
            url = pages[-1]["next"]
        there = [page["best"] for page in pages if page["best"]]
        if not there:
            raise SourceError(f"{self.repository} has no release" + f" whose tag fits {self._tags}" * bool(self._tags))
        best = max(there, key=lambda release: str(release["published"]))
        name = self._choose(best["tag"], best["assets"])
        # An asset's content never changes: another one in its place has another number.
        identity = self._url(f"assets/{best['assets'][name]['id']}")
        return Found(identity, tag_of(best["tag"]), {"pages": pages, "name": name, "assets": best["assets"]})

    def _url(self, rest: str) -> str:
        return f"{self._api}/repos/{self.repository}/releases" + (rest if rest.startswith("?") else f"/{rest}")

    def _page(self, url: str, before: dict[str, Any] | None) -> dict[str, Any]:
        """What is asked of a page: the newest release on it that will do, and which page is next. ``before``: what it was
        at the last look."""
        asked = {**_JSON, **({"If-None-Match": before["etag"]} if before and before["etag"] else {})}
        answer, _, body = self._client.read(url, asked, _PAGE_MAX)
        if answer.status == 304 and before:
            return before
        try:
            told = json.loads(body)
            releases = [_release(one) for one in (told if isinstance(told, list) else [told]) if self._is_wanted(one)]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise SourceError(f"{url} answered what is no list of releases") from None
        found = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link", ""))
        following = found[1] if found else ""
        if following and not following.startswith(f"{self._api}/"):
            raise SourceError(f"{url} says that it goes on at {following}, which is not where we ask")
        return {
            "url": url,
            "etag": answer.headers.get("ETag", ""),
            "next": following,
            "best": max(releases, key=lambda release: str(release["published"]), default=None),
        }

    def _is_wanted(self, release: dict[str, Any]) -> bool:
        if release["draft"] or (release["prerelease"] and not self._early):
            return False
        return not self._tags or fnmatchcase(release["tag_name"], self._tags)

    def _choose(self, tag: str, assets: Mapping[str, Any]) -> str:
        """The name of the asset that is meant."""
        beside = {f"{name}{suffix}" for name in assets for suffix in _BESIDE}
        beside |= {self.settings.verify.partition(":")[2]} if self.settings.verify.startswith("checksum:") else set()
        fits = [name for name in assets if fnmatchcase(name, self._pattern) and name not in beside]
        if len(fits) != 1:
            there = ", ".join(sorted(fits or assets)) or "none"
            what = f"{len(fits)} assets" if fits else "no asset"
            raise SourceError(
                f"release {tag} of {self.repository} has {what} for asset={self._pattern}: there are {there}"
            )
        if not assets[fits[0]]["whole"]:
            raise SourceError(f"{fits[0]} of release {tag} is still being uploaded")
        return fits[0]

    # --- and how it comes ---------------------------------------------------------------------------------------

    def fetch(self, found: Found, into: Path) -> Path:
        name, assets = found.state["name"], found.state["assets"]
        if PurePosixPath(name).name != name or name.startswith("."):
            raise Refused(f"{name!r} is no name for a file")
        artefact, whole = into / name, hashlib.sha256()
        with artefact.open("xb") as file:
            for part in self._client.download(self._asset(assets, name), "", self.settings, _BYTES):
                whole.update(part)
                file.write(part)
        digest = assets[name]["digest"]
        if digest and not compare_digest(digest, whole.hexdigest()):
            raise Refused(f"{name} is not what its digest says: {whole.hexdigest()} instead of {digest}")

        def beside(other: str, suffix: str) -> bytes:
            if digest and not other and suffix == ".sha256":
                return str(digest).encode()
            data = b""
            url = self._asset(assets, other or name + suffix)
            for part in self._client.download(url, "", Settings(size_max=_BESIDE_MAX), _BYTES):
                data += part
            return data

        return finish(artefact, self._verification, beside, self.settings)

    def _asset(self, assets: Mapping[str, Any], name: str) -> str:
        """Made by us: a URL out of an answer could lead our token anywhere."""
        if name not in assets or not assets[name]["whole"]:
            raise SourceError(f"there is no asset {name} yet, by which the release is to be verified")
        return self._url(f"assets/{assets[name]['id']}")

    def _explain(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> SourceError | None:
        host = urlsplit(url).hostname
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, TypeError, KeyError):
            message = f"it answered {status}"
        message = "".join(letter for letter in " ".join(message.split()) if letter.isprintable())[:_MESSAGE_MAX]
        if status in (403, 429):
            wait = _patience(headers, status == 429 or "rate limit" in message.lower())
            if wait:
                hint = "" if self._with_token else f"; with a token in {AUTHORIZATION} it may be asked more often"
                return SourceError(f"{host} is not to be asked again for {wait:.0f}s: {message}{hint}", wait)
        if status == 401:
            return SourceError(f"{host} does not accept what {AUTHORIZATION} has: {message}")
        if status == 403:
            return SourceError(f"{host} refuses {url}: {message}")
        if status == 404:
            hint = "the token may not see it" if self._with_token else f"it takes a token in {AUTHORIZATION} to see it"
            return SourceError(f"{self.repository} has no release on {host}, or {hint}: {url} is not found")
        return None


def _release(told: dict[str, Any]) -> dict[str, Any]:
    """What we need of one."""
    return {
        "tag": str(told["tag_name"]),
        "published": told["published_at"],
        "assets": {
            str(asset["name"]): {
                "id": int(asset["id"]),
                "whole": asset["state"] == "uploaded",
                "digest": _digits(asset.get("digest")),
            }
            for asset in told["assets"]
        },
    }


def _digits(digest: object) -> str:
    """Older releases, and older servers, have none."""
    return digest.partition(":")[2] if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""


def _patience(headers: Mapping[str, str], limited: bool) -> float:
    """How long we are told to wait, in seconds; 0 where it is not that we ask too often."""
    if "Retry-After" in headers:
        return retry_after(headers) or _MINUTE
    try:
        if headers.get("X-RateLimit-Remaining") == "0":
            # By their clock, since the moment is theirs.
            date = headers.get("Date")
            now = parsedate_to_datetime(date).timestamp() if date else time.time()
            return max(1.0, float(headers["X-RateLimit-Reset"]) - now)
    except (KeyError, ValueError, TypeError):
        return _MINUTE
    return _MINUTE if limited else 0.0


SOURCE = GithubSource
