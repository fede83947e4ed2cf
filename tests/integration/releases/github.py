"""A double of GitHub's API for releases, with the answers that its reference documents, and a host of its own for the files."""

from __future__ import annotations

import hashlib
import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .web import Web

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.server import BaseHTTPRequestHandler

DAY = "2026-11-{:02}T12:00:00Z"


class GitHub(Web):
    """One repository. ``token``: without it nobody sees it; ``remaining``: how many more requests it takes until its limit is
    reached; ``complaint``: what it answers instead. ``digests``: whether it knows them; ``storage``: where files lie."""

    def __init__(self, repository: str = "acme/web") -> None:
        super().__init__()
        self.repository = repository
        self.storage = Web()
        self.releases: list[dict[str, Any]] = []  # the newest first
        self.token = ""
        self.remaining = 5000
        self.complaint: tuple[int, dict[str, str], dict[str, str]] | None = None
        self.digests = True
        self._last = 100

    def close(self) -> None:
        super().close()
        self.storage.close()

    def release(self, tag: str, assets: Mapping[str, bytes], **facts: Any) -> dict[str, Any]:
        """Published, with all of its assets at once."""
        number = self._number()
        day = DAY.format(1 + len(self.releases) % 28)
        one: dict[str, Any] = {
            "url": f"{self.url}/repos/{self.repository}/releases/{number}",
            "id": number,
            "node_id": f"RE_{number}",
            "tag_name": tag,
            "target_commitish": "main",
            "name": tag,
            "body": "What is new",
            "draft": False,
            "prerelease": False,
            "created_at": day,
            "published_at": day,
            "assets": [self.asset(name, data) for name, data in assets.items()],
        }
        one.update(facts)
        self.releases.insert(0, one)
        return one

    def asset(self, name: str, data: bytes) -> dict[str, Any]:
        number = self._number()
        self.storage.files[f"/{number}"] = data
        return {
            "url": f"{self.url}/repos/{self.repository}/releases/assets/{number}",
            "browser_download_url": f"{self.url}/{self.repository}/releases/download/x/{name}",
            "id": number,
            "node_id": f"RA_{number}",
            "name": name,
            "label": None,
            "state": "uploaded",
            "content_type": "application/octet-stream",
            "size": len(data),
            "digest": f"sha256:{hashlib.sha256(data).hexdigest()}" if self.digests else None,
            "download_count": 0,
        }

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _decide(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes, bool]:
        if self.errors:
            self.errors -= 1
            return 502, {}, b"", False
        status, headers, told = self._api(request)
        body = json.dumps(told).encode() if told is not None else b""
        if status == 200:
            headers["ETag"] = f'W/"{hashlib.sha256(body).hexdigest()}"'
            if request.headers.get("If-None-Match") == headers["ETag"]:
                return 304, headers, b"", False
        cut = self.cuts > 0
        self.cuts -= cut
        return status, {**headers, "Content-Type": "application/json; charset=utf-8"}, body, cut

    def _api(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], Any]:
        if self.complaint is not None:
            return self.complaint
        said = request.headers.get("Authorization", "")
        if said and said != f"Bearer {self.token}":
            return 401, {}, {"message": "Bad credentials", "status": "401"}
        self.remaining -= 1
        limits = {
            "X-RateLimit-Limit": "5000",
            "X-RateLimit-Remaining": str(max(0, self.remaining)),
            "X-RateLimit-Reset": str(int(time.time()) + 1800),
            "Date": formatdate(usegmt=True),
        }
        if self.remaining < 0:
            return 403, limits, {"message": "API rate limit exceeded for 127.0.0.1."}
        parts = urlsplit(request.path)
        base = f"/repos/{self.repository}/releases"
        if not (self.token and not said):
            if parts.path == base:
                return self._list(parts.query, limits)
            if parts.path == f"{base}/latest":
                full = [one for one in self.releases if not one["draft"] and not one["prerelease"]]
                if full:
                    return 200, limits, full[0]
            if parts.path.startswith(f"{base}/assets/"):
                number = parts.path.rpartition("/")[2]
                for one in (asset for release in self.releases for asset in release["assets"]):
                    if str(one["id"]) == number:
                        if request.headers.get("Accept") != "application/octet-stream":
                            return 200, limits, one
                        return 302, {**limits, "Location": f"{self.storage.url}/{number}"}, None
        return 404, limits, {"message": "Not Found", "status": "404"}

    def _list(self, query: str, limits: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        asked = parse_qs(query)
        size, page = int(asked.get("per_page", ["30"])[0]), int(asked.get("page", ["1"])[0])
        if page * size < len(self.releases):
            following = f"{self.url}/repos/{self.repository}/releases?per_page={size}&page={page + 1}"
            limits["Link"] = f'<{following}>; rel="next", <{following}>; rel="last"'
        # Drafts are told to those who may push, as our token is taken to.
        return 200, limits, self.releases[(page - 1) * size : page * size]
