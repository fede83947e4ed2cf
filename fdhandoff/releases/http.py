"""``https://…``, ``http://…``: one file on a web server, an archive or what is run as it is."""

from __future__ import annotations

import hashlib
import os
import time
from importlib import import_module
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from ..system.environment import WATCH_AUTHORIZATION as AUTHORIZATION, WATCH_AUTHORIZATION_FILE as AUTHORIZATION_FILE
from . import Found, Settings, Source, SourceError
from .artefact import artefact_tag, finish, verification_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    #: (URL, status, headers, the beginning of the body) → what that means, or nothing: then it is as with any server.
    Explain = Callable[[str, int, Mapping[str, str], bytes], SourceError | None]

TRIES = 5
BACKOFF_SECONDS = 0.5  # before the second try, and doubled before each further one
_REDIRECTS = 5
_CONNECT_SECONDS, _READ_SECONDS = 15.0, 30.0
_PART = 1 << 18
_BESIDE_MAX = 1 << 20
_SECRET_MAX = 1 << 16
_COMPLAINT_MAX = 1 << 14
_PATIENCE_SECONDS = 5.0  # who wants to be left alone for longer is asked at a later look
PROGRESS_SECONDS = 10.0
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class HttpSource(Source):
    def __init__(self, where: str, settings: Settings) -> None:
        super().__init__(where, settings)
        self.url = urlsplit(where)
        if not self.url.hostname:
            raise SourceError(f"{where!r} names no host")
        forbid_password(where)
        self.name = PurePosixPath(self.url.path).name
        if not self.name or self.name in (".", ".."):
            raise SourceError(f"{where!r} names no file")
        self._verification = verification_of(settings)
        self._client = Client(authorization())

    def look(self, state: Mapping[str, Any]) -> Found:
        asked = {}
        if state.get("identity"):
            if state.get("etag"):
                asked["If-None-Match"] = state["etag"]
            if state.get("modified"):
                asked["If-Modified-Since"] = state["modified"]
        with self._client.get(self.where, asked) as answer:
            if answer.status == 304 and state.get("identity"):
                return self._found(state)
            etag, modified = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
            length = answer.headers.get("Content-Length", "")
        if etag or modified:
            whole = hashlib.sha256(f"{self.where}\0{etag}\0{modified}\0{length}".encode())
            return self._found({"identity": f"validator:{whole.hexdigest()}", "etag": etag, "modified": modified})
        whole = hashlib.sha256()
        for part in self._client.download(self.where, "", self.settings):
            whole.update(part)
        return self._found({"identity": f"content:{whole.hexdigest()}"})

    def _found(self, state: Mapping[str, Any]) -> Found:
        digest = state["identity"].partition(":")[2]
        return Found(state["identity"], artefact_tag(self.name, digest), dict(state))

    def fetch(self, found: Found, into: Path) -> Path:
        artefact = into / self.name
        whole = hashlib.sha256()
        with artefact.open("xb") as file:
            for part in self._client.download(self.where, found.state.get("etag", ""), self.settings):
                whole.update(part)
                file.write(part)
        if found.identity.startswith("content:") and found.identity != f"content:{whole.hexdigest()}":
            raise SourceError(f"{self.where} changed while it was fetched")
        return finish(artefact, self._verification, self._beside, self.settings)

    def _beside(self, name: str, suffix: str) -> bytes:
        """The file called ``name`` in the same place, or ours with ``suffix``."""
        path = str(PurePosixPath(self.url.path).with_name(name)) if name else self.url.path + suffix
        url = urlunsplit(self.url._replace(path=path))
        data = b""
        for part in self._client.download(url, "", Settings(size_max=_BESIDE_MAX)):
            data += part
        return data


def forbid_password(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise SourceError(f"a password in a URL is seen by everybody: put what is to be sent into {AUTHORIZATION}")


def is_private(url: str) -> bool:
    """Whether nobody on the way can read or change what is said."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" or host in ("localhost", "::1") or host.startswith("127.")


def retry_after(headers: Mapping[str, str]) -> float:
    """For how many seconds a server wants to be left alone; 0 where it doesn't say, or as a date."""
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() else 0.0


def authorization() -> str:
    """What is to be sent as ``Authorization``: out of the environment, or a file that it names; else empty."""
    text, name = os.environ.get(AUTHORIZATION, ""), AUTHORIZATION
    path = os.environ.get(AUTHORIZATION_FILE, "")
    if path and not text:
        name = AUTHORIZATION_FILE
        try:
            with open(path, "rb") as file:
                text = file.read(_SECRET_MAX).decode("latin-1")
        except OSError as error:
            raise SourceError(f"{path}, which {name} names, can't be read: {error.strerror}") from None
    text = text.strip()
    if not (text.isprintable() and text.isascii()):
        raise SourceError(f"what {name} has is not one line of ASCII, and can't be sent")
    return text


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _begin_of(answer: Any, url: str, wanted: int) -> int:
    """At which byte its body begins: there, or at 0. ``SourceError`` if it is another, or not told."""
    if answer.status == 200:
        return 0
    if answer.status == 206 and wanted and answer.headers.get("Content-Range", "").startswith(f"bytes {wanted}-"):
        return wanted
    where = f" after {wanted} bytes, and can't be gone on with there" if wanted else ""
    raise SourceError(f"{url} broke off{where}: it answered {answer.status}")


class Client:
    """What urllib3 does, with our patience, and our sentences. ``authorization`` is sent to whom we ask, and not on to another
    host that we are sent to; ``explain`` knows better what an answer means."""

    def __init__(self, authorization: str = "", explain: Explain | None = None) -> None:
        self._authorization = authorization
        self._explain = explain
        try:
            self._urllib3: Any = import_module("urllib3")
        except ImportError:
            raise SourceError("to watch a URL the package urllib3 is needed: pip install 'fdhandoff[http]'") from None
        self._pools: dict[str, Any] = {}

    def get(self, url: str, headers: Mapping[str, str]) -> Any:
        """An answer that is 200, 206 or 304, whose body is yet to be read. Tried again where that may help."""
        return self._get(url, headers)[0]

    def _get(self, url: str, headers: Mapping[str, str]) -> tuple[Any, str]:
        """And where it came from in the end."""
        pause, wait = BACKOFF_SECONDS, 0.0
        for left in range(TRIES - 1, -1, -1):
            try:
                answer, place = self._request(url, headers)
            except self._urllib3.exceptions.HTTPError as error:
                problem, wait = self._in_words(error), 0.0
                if isinstance(error, self._urllib3.exceptions.SSLError):
                    break  # nobody vouches for it, and nobody will a moment later
            else:
                if answer.status in (200, 206, 304):
                    return answer, place
                problem = f"it answered {answer.status}"
                wait = retry_after(answer.headers)
                self._judge(url, answer)
                if answer.status not in _AGAIN or wait > _PATIENCE_SECONDS:
                    break
            if left:
                time.sleep(max(pause, wait))
                pause *= 2
        raise SourceError(f"{url} can't be had: {problem}", wait)

    def _judge(self, url: str, answer: Any) -> None:
        """``SourceError`` where ``explain`` knows better than to try again."""
        with answer:
            if self._explain is None:
                return
            try:
                body = answer.read(_COMPLAINT_MAX)
            except self._urllib3.exceptions.HTTPError:
                body = b""  # the headers say the more important part
            explained = self._explain(url, answer.status, answer.headers, body)
        if explained is not None:
            raise explained

    def read(self, url: str, headers: Mapping[str, str], size_max: int) -> tuple[Any, str, bytes]:
        """A whole answer, where it came from in the end, and its body. One that breaks off is asked for again."""
        for left in range(TRIES - 1, -1, -1):
            answer, place = self._get(url, headers)
            with answer:
                body = bytearray()
                try:
                    for part in answer.stream(_PART, decode_content=False):
                        body += part
                        if len(body) > size_max:
                            raise SourceError(f"{url} has more than {size_max} bytes, which can't be meant")
                    return answer, place, bytes(body)
                except self._urllib3.exceptions.HTTPError as error:
                    problem = self._in_words(error)
            if left:
                time.sleep(BACKOFF_SECONDS)
        raise SourceError(f"{url} broke off after {len(body)} bytes: {problem}")

    def download(
        self, url: str, etag: str, settings: Settings, headers: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """Its whole content, in parts. One that breaks off is gone on with where it did, if the server can tell that it is the
        same still."""
        done, tries, said = 0, TRIES, time.monotonic()
        while True:
            strong = etag if etag and not etag.startswith("W/") else ""
            answer = self.get(
                url, {**(headers or {}), **({"Range": f"bytes={done}-", "If-Range": strong} if done else {})}
            )
            with answer:
                if etag and answer.headers.get("ETag", etag) != etag:
                    raise SourceError(f"{url} changed while it was fetched")
                etag = etag or answer.headers.get("ETag", "")
                skip = done - _begin_of(answer, url, done)  # of one that always begins at its beginning
                length = answer.headers.get("Content-Length", "")
                whole = done - skip + int(length) if length.isdecimal() else 0
                if whole > settings.size_max:
                    raise SourceError(
                        f"{url} has {whole} bytes, more than the {settings.size_max} bytes that --fetch-max allows"
                    )
                try:
                    for part in answer.stream(_PART, decode_content=False):
                        part, skip = part[skip:], max(0, skip - len(part))
                        done += len(part)
                        if done > settings.size_max:
                            raise SourceError(
                                f"{url} has more than the {settings.size_max} bytes that --fetch-max allows"
                            )
                        yield part
                        if time.monotonic() - said > PROGRESS_SECONDS:
                            said = time.monotonic()
                            settings.say(f"{done} of {whole or 'an unknown number of'} bytes fetched")
                    return
                except self._urllib3.exceptions.HTTPError as error:
                    tries -= 1
                    if not tries or not etag or etag.startswith("W/"):
                        raise SourceError(f"{url} broke off after {done} bytes: {self._in_words(error)}") from None
                    time.sleep(BACKOFF_SECONDS)

    def _request(self, url: str, headers: Mapping[str, str]) -> tuple[Any, str]:
        """An answer that leads nowhere else, and its place. Redirections are followed here and not by urllib3, which would
        follow them to where everybody can read and change what is said, and by the first place's proxy."""
        place = url
        for _ in range(_REDIRECTS + 1):
            ours = {"User-Agent": "fdhandoff", "Accept-Encoding": "identity", **headers}
            if self._authorization and _origin(place) == _origin(url):
                ours["Authorization"] = self._authorization
            answer = self._pool(place).request(
                "GET", place, headers=ours, redirect=False, retries=False, preload_content=False
            )
            location = answer.get_redirect_location()
            if not location:
                return answer, place
            answer.close()
            before, place = place, urljoin(place, location)
            if urlsplit(place).scheme not in ("http", "https"):
                raise SourceError(f"{url} can't be had: it leads to {place}, which is not on the web")
            if urlsplit(before).scheme == "https" and urlsplit(place).scheme == "http":
                raise SourceError(
                    f"{url} can't be had: it leads from https to {place}, where anybody on the way could change it"
                )
        raise SourceError(f"{url} can't be had: too many redirects")

    def _pool(self, url: str) -> Any:
        """By way of the proxy that the environment names for it, if any."""
        from urllib.request import getproxies, proxy_bypass

        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)
        proxy = "" if proxy_bypass(f"{host}:{port}") else getproxies().get(parts.scheme, "")
        if proxy not in self._pools:
            timeout = self._urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
            if proxy:
                there = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
                user = there.username is not None and f"{unquote(there.username)}:{unquote(there.password or '')}"
                self._pools[proxy] = self._urllib3.ProxyManager(
                    urlunsplit(there._replace(netloc=there.netloc.rpartition("@")[2])),
                    proxy_headers=self._urllib3.make_headers(proxy_basic_auth=user) if user else None,
                    timeout=timeout,
                )
            else:
                self._pools[proxy] = self._urllib3.PoolManager(timeout=timeout)
        return self._pools[proxy]

    def _in_words(self, error: Any) -> str:
        reason = getattr(error, "reason", None) or error
        return str(reason).rpartition(": ")[2] or type(reason).__name__


SOURCE = HttpSource
