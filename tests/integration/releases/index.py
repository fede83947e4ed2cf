"""A package index, as good or as bad as a test wants it, and wheels that are made by hand."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from html import escape
from typing import TYPE_CHECKING, Any

from .web import Web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from http.server import BaseHTTPRequestHandler

JSON = "application/vnd.pypi.simple.v1+json"


def wheel(
    name: str, version: str, files: Mapping[str, str], needs: Sequence[str] = (), script: str = "", form: str = "1.0"
) -> bytes:
    """``script``: the function that the program of the package's name calls; ``form``: of the wheel."""
    facts = f"{name}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *[f"Requires-Dist: {one}" for one in needs],
    ]
    metadata += [f"Provides-Extra: {one.split(chr(39))[1]}" for one in needs if "extra ==" in one]
    inside = {
        **files,
        f"{facts}/METADATA": "\n".join([*metadata, ""]),
        f"{facts}/WHEEL": f"Wheel-Version: {form}\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        inside[f"{facts}/entry_points.txt"] = f"[console_scripts]\n{name} = {script}\n"
    record = ""
    for path, text in inside.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    inside[f"{facts}/RECORD"] = f"{record}{facts}/RECORD,,\n"
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as packed:
        for path, text in inside.items():
            packed.writestr(path, text)
    return whole.getvalue()


class Index(Web):
    """``pages`` by project. ``json``: whether it speaks that, or HTML alone; ``algorithm``: of the hashes that it gives, or
    empty; ``who``: what it wants as ``Authorization``. ``files_at``: another host that has the files; ``look_around`` is
    called while somebody asks."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[str, list[dict[str, Any]]] = {}
        self.json = True
        self.algorithm = "sha256"
        self.who = ""
        self.told: tuple[str, bytes] | None = None
        self.bad_pages = 0
        self.files_at: Web = self
        self.look_around: Callable[[], object] = lambda: None

    @property
    def simple(self) -> str:
        return f"{self.url}/simple/"

    def add(self, filename: str, data: bytes, **facts: Any) -> dict[str, Any]:
        project = filename.split("-")[0].replace("_", "-")
        self.files_at.files[f"/files/{filename}"] = data
        hashes = {self.algorithm: hashlib.new(self.algorithm, data).hexdigest()} if self.algorithm else {}
        one = {"filename": filename, "url": f"{self.files_at.url}/files/{filename}", "hashes": hashes, **facts}
        self.pages.setdefault(project, []).append(one)
        return one

    def wheel(self, name: str, version: str, facts: Mapping[str, Any] | None = None, **made: Any) -> dict[str, Any]:
        data = wheel(name, version, {f"{name}.py": f"VERSION = {version!r}\n"}, **made)
        return self.add(f"{name}-{version}-py3-none-any.whl", data, **(facts or {}))

    def _decide(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes, bool]:
        self.look_around()
        if self.who and request.headers.get("Authorization") != self.who:
            return 401, {"WWW-Authenticate": 'Basic realm="index"'}, b"", False
        name = request.path.removeprefix("/simple/").strip("/")
        if not request.path.startswith("/simple/") or request.path in self.redirects:
            return super()._decide(request)
        if self.bad_pages:
            self.bad_pages -= 1
            return 500, {}, b"", False
        if self.told is not None:
            return 200, {"Content-Type": self.told[0]}, self.told[1], False
        if name not in self.pages:
            return 404, {}, b"", False
        if self.json and JSON in request.headers.get("Accept", ""):
            kind, body = (
                JSON,
                json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": self.pages[name]}).encode(),
            )
        else:
            kind, body = "text/html; charset=utf-8", self._html(name).encode()
        headers = {"Content-Type": kind, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return 304, headers, b"", False
        cut = self.cuts > 0
        self.cuts -= cut
        return 200, headers, body, cut

    def _html(self, name: str) -> str:
        lines = []
        for file in self.pages[name]:
            digest = "".join(f"#{algorithm}={digest}" for algorithm, digest in file["hashes"].items())
            more = ""
            if file.get("yanked"):
                more += f' data-yanked="{escape(str(file["yanked"]))}"'
            if file.get("requires-python"):
                more += f' data-requires-python="{escape(file["requires-python"])}"'
            lines.append(f'<a href="{escape(file["url"])}{digest}"{more}>{file["filename"]}</a><br>')
        return f"<!DOCTYPE html><html><body>{''.join(lines)}</body></html>"
